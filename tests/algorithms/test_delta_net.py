"""DeltaNet as a few-shot learner: what its memory is, and what a write does for a prediction."""

import torch

from lightning_meta.algorithms import DeltaNet
from lightning_meta.core import Batch, Episode
from tests.algorithms.streams import check_query_is_the_next_row
from tests.conftest import Make, conv4

CASES: dict[str, Make] = {"delta_net": lambda: DeltaNet(conv4(), n_way=3, width=8, layers=2, heads=2, factor=2)}
VARIANTS: dict[str, Make] = {
    "delta_net_in_turn": lambda: DeltaNet(conv4(), n_way=3, width=8, layers=1, heads=2, factor=2, classes_in_turn=True)
}


def small(**settings: bool) -> DeltaNet:
    torch.manual_seed(0)
    return DeltaNet(conv4("inductive"), n_way=3, width=8, layers=2, heads=2, factor=2, **settings).double()


def test_a_query_is_the_next_row_of_the_stream(episodes: Episode) -> None:
    check_query_is_the_next_row(small(), episodes)


def test_without_writes_the_support_set_is_not_seen(episodes: Episode) -> None:
    """Values of 0 to empty matrices leave them empty, and then all that is left is the query itself."""
    module = small()
    support, query = (Batch(*(leaf[0] for leaf in part)) for part in episodes)
    relabelled = support._replace(y=support.y.roll(1))

    def preds(support: Batch) -> torch.Tensor:
        return module.query_loss(module.adapt(support), query).preds

    assert (preds(support) - preds(relabelled)).abs().amax() > 1e-6
    with torch.no_grad():
        for layer in module.reader.layers:
            layer.slow.weight.unflatten(0, (2, -1))[:, 8:12].zero_()  # of a head: query, key, value, rate
    memory = module.adapt(support).head
    assert all(not weights.any() for weights in memory)
    assert torch.equal(preds(support), preds(relabelled))


def test_in_turn_it_reads_one_class_after_another_whatever_the_order_of_the_stream(episodes: Episode) -> None:
    support = Batch(*(leaf[0] for leaf in episodes.support))
    mixed, sorted_S = torch.tensor([0, 1, 2, 2, 1, 0]), torch.tensor([2, 3, 1, 4, 0, 5])
    support = Batch(support.x, mixed)  # seen last in the order 2, 1, 0
    in_turn = small(classes_in_turn=True).adapt(support).head
    blocks = Batch(support.x[sorted_S], support.y[sorted_S])
    torch.testing.assert_close(in_turn, small().adapt(blocks).head, rtol=1e-10, atol=1e-12)
    other = small().adapt(support).head
    assert max((a - b).abs().amax().item() for a, b in zip(in_turn, other, strict=True)) > 1e-6
