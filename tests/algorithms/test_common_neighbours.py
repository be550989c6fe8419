"""Common neighbours: scores against sets, and a graph in which they find the answer."""

import pytest
import torch

from lightning_meta.algorithms import CommonNeighbours
from lightning_meta.core import Batch
from lightning_meta.errors import ConfigError
from lightning_meta.metrics import EpisodicMRR
from tests.conftest import Make, blobs, random_pairs
from tests.modules.test_episodic import trainer

RELATIONS: dict[str, Make] = {"common_neighbours": CommonNeighbours}


def unscaled() -> CommonNeighbours:
    module = CommonNeighbours().eval()
    torch.nn.init.zeros_(module.log_scale)
    return module


def neighbours(entity: list[list[int]]) -> set[tuple[int, int]]:
    return {(relation, neighbour) for relation, neighbour in entity if neighbour != 0}


def test_scores_are_cosines_of_sets() -> None:
    tasks = random_pairs()
    preds = unscaled().play(tasks).preds
    for t, q, c in ((0, 0, 0), (1, 2, 3), (2, 1, 1)):
        candidate, total = tasks.query.x[t, q, c].tolist(), 0.0
        for known in [tasks.support.x[t, k, answer].tolist() for k, answer in enumerate(tasks.support.y[t].tolist())]:
            for a, b in zip(map(neighbours, candidate), map(neighbours, known), strict=True):
                total += len(a & b) / (len(a) * len(b)) ** 0.5
        assert preds[t, q, c].item() == pytest.approx(total / len(tasks.support.y[t]), rel=1e-6)


def test_the_only_candidate_like_the_known_tail_is_found() -> None:
    """Entities 7 to 9 have neighbours of their own; nobody's neighbour is padding."""
    head, tail, other, nobody = ([[1, n], [2, n + 1], [0, 0]] for n in (10, 20, 30, 0))
    nobody = [[0, 0]] * 3
    support = Batch(torch.tensor([[[head, other], [head, tail]]]), torch.tensor([1]))
    query = Batch(torch.tensor([[[head, other], [head, nobody], [head, tail]]]), torch.tensor([2]))
    module = unscaled()
    preds = module.query_loss(module.adapt(support), query).preds
    torch.testing.assert_close(preds, torch.tensor([[1.0, 1.0, 2.0]]))
    assert EpisodicMRR.per_episode(preds[None], query.y[None]).item() == 1


def test_other_data_are_refused() -> None:
    with pytest.raises(ConfigError, match="compares pairs of entities by their neighbours"):
        trainer().test(CommonNeighbours(), datamodule=blobs(), verbose=False)
