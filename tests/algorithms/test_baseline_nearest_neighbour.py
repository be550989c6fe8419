"""The nearest neighbour, found one query at a time; training is Baseline's and tested there."""

import torch
from torch import nn

from lightning_meta.algorithms import BaselineNearestNeighbour
from lightning_meta.core import Batch
from tests.conftest import Make, conv4

CASES: dict[str, Make] = {"baseline-nearest-neighbour": lambda: BaselineNearestNeighbour(conv4(), n_classes=12)}


def test_the_label_is_that_of_the_single_most_similar_example() -> None:
    """Not of the class that is closest on average: classes of three examples, far apart from each other."""
    module = BaselineNearestNeighbour(nn.Flatten()).double().eval()
    support = Batch(torch.randn(9, 4).double(), torch.arange(3).repeat(3))
    queries = torch.randn(200, 4).double()
    out = module.query_loss(module.adapt(support), Batch(queries, torch.zeros(200, dtype=torch.long)))
    nearest = [nn.functional.cosine_similarity(query[None], support.x).argmax() for query in queries]
    assert torch.equal(out.preds.argmax(1), support.y[torch.stack(nearest)])
    means = torch.stack([nn.functional.normalize(support.x)[support.y == c].mean(0) for c in range(3)])
    assert not torch.equal((queries @ means.T).argmax(1), out.preds.argmax(1))
    assert out.preds[:, 3:].eq(-torch.inf).all()
