"""The conditional neural process as a classifier against the direct formula."""

import pytest
import torch
from torch.nn import functional as F

from lightning_meta.algorithms import CNPClassifier
from lightning_meta.core import Episode
from lightning_meta.core.episode import EpisodeShape
from lightning_meta.errors import ConfigError
from tests.conftest import Make, conv4

CASES: dict[str, Make] = {"cnp_classifier": lambda: CNPClassifier(conv4(), n_way=3, hidden=(16,))}


@pytest.mark.parametrize("mode", ["vmap", "loop"])
def test_logits_are_decoded_from_the_query_and_the_class_means_side_by_side(mode: str, episodes: Episode) -> None:
    module = CNPClassifier(conv4(), n_way=3, hidden=(8,), task_mode=mode).double()
    out = module.play(episodes)
    for t in range(3):
        features = [module.backbone(batch.x[t]) for batch in episodes]
        support, query = (
            (f - f.mean(1, keepdim=True)) / (f.var(1, False, keepdim=True) + 1e-5).sqrt() for f in features
        )
        means = torch.cat([support[episodes.support.y[t] == label].mean(0) for label in range(3)])
        for q in range(len(query)):
            logits = module.decoder(torch.cat([query[q], means])[None])[0]
            torch.testing.assert_close(out.preds[t, q], logits, rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(out.loss[t], F.cross_entropy(out.preds[t], episodes.query.y[t]))


def test_another_way_is_refused() -> None:
    module = CNPClassifier(conv4(), n_way=3)
    module.check_task(EpisodeShape(3, 1, 1), "test")
    with pytest.raises(ConfigError, match=r"test episodes are 20-way, but CNPClassifier has n_way=3 outputs"):
        module.check_task(EpisodeShape(20, 1, 1), "test")
    with pytest.raises(ConfigError, match="needs n_way"):
        CNPClassifier(conv4())
