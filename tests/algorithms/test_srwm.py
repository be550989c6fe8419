"""SRWM as a few-shot learner: the matrix that it starts from is all there is, and it rewrites all of it."""

import torch

from lightning_meta.algorithms import SRWM
from lightning_meta.core import Batch, Episode
from tests.algorithms.streams import check_query_is_the_next_row
from tests.conftest import Make, conv4

CASES: dict[str, Make] = {"srwm": lambda: SRWM(conv4(), n_way=3, width=8, layers=2, heads=2, factor=2)}


def small() -> SRWM:
    torch.manual_seed(0)
    return SRWM(conv4("inductive"), n_way=3, width=8, layers=2, heads=2, factor=2).double()


def test_a_query_is_the_next_row_of_the_stream(episodes: Episode) -> None:
    check_query_is_the_next_row(small(), episodes)


def test_every_row_of_a_matrix_changes_and_only_in_the_span_of_the_keys(episodes: Episode) -> None:
    """A support set of one example can write a matrix of rank 1, no more."""
    module, support = small(), Batch(*(leaf[0, :1] for leaf in episodes.support))
    for layer, after in zip(module.reader.layers, module.adapt(support).head, strict=True):
        change = (after - layer.weights).detach()
        assert (change.abs().amax(-1) > 0).all()  # those that make queries, keys and rates too
        assert (torch.linalg.matrix_rank(change) == 1).all()


def test_what_was_read_decides(episodes: Episode) -> None:
    """Beside the matrices as they start, and beside the same images under other labels."""
    module = small()
    support, query = (Batch(*(leaf[0] for leaf in part)) for part in episodes)
    adapted = module.adapt(support)
    unread = adapted._replace(head=[layer.weights for layer in module.reader.layers])
    relabelled = module.adapt(support._replace(y=support.y.roll(1)))
    preds = module.query_loss(adapted, query).preds
    for other in (unread, relabelled):
        assert (preds - module.query_loss(other, query).preds).abs().amax() > 1e-6
