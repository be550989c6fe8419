"""GMatching: encoder, matching and loss against loops, and what it must not depend on."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_meta.algorithms import GMatching
from lightning_meta.algorithms.compare.g_matching import margin_loss
from lightning_meta.backbones import NeighbourEncoder
from lightning_meta.core import Batch, Episode
from lightning_meta.errors import ConfigError
from tests.conftest import Make, blobs, random_pairs, rule_graph
from tests.modules.test_episodic import trainer


def matching(**overrides: Any) -> GMatching:
    return GMatching(**(dict(backbone=NeighbourEncoder(60, width=4), processing_steps=2, margin=1.0) | overrides))


RELATIONS: dict[str, Make] = {"g_matching": matching}


def of_task(part: Batch, task: int) -> Batch:
    return Batch(part.x[task], part.y[task])


def test_an_entity_is_the_mean_over_its_neighbours_one_by_one() -> None:
    encoder, pair = NeighbourEncoder(60, width=4).double(), random_pairs().support.x[0, 0, 0]
    expected = []
    for entity in pair.tolist():
        messages = [
            encoder.linear(torch.cat([encoder.vectors.weight[relation], encoder.vectors.weight[neighbour]]))
            for relation, neighbour in entity
            if neighbour != 0
        ]
        assert len(messages) >= 4
        expected.append(torch.stack(messages).mean(0).tanh())
    torch.testing.assert_close(encoder(pair[None])[0], torch.cat(expected))


def predictions(module: GMatching, tasks: Episode) -> Tensor:
    with torch.no_grad():
        return module.eval().play(tasks).preds


def test_the_order_of_neighbours_and_padding_change_nothing() -> None:
    module, tasks = matching().double(), random_pairs()

    def changed(x: Tensor) -> Tensor:
        shuffled = x[..., torch.randperm(x.shape[-2]), :]
        return F.pad(shuffled, (0, 0, 3, 2))

    other = Episode(*(part._replace(x=changed(part.x)) for part in tasks))
    torch.testing.assert_close(predictions(module, other), predictions(module, tasks), rtol=1e-10, atol=1e-12)
    lost = Episode(tasks.support, tasks.query._replace(x=tasks.query.x[..., :2, :]))
    assert not torch.allclose(predictions(module, lost), predictions(module, tasks))


def test_the_order_of_candidates_and_of_support_pairs_is_no_matter() -> None:
    module, tasks = matching().double(), random_pairs()
    order = torch.randperm(tasks.query.x.shape[2])
    support = Batch(*(leaf.flip(1) for leaf in tasks.support))
    query = tasks.query._replace(x=tasks.query.x[:, :, order])
    found = predictions(module, Episode(support, query))
    torch.testing.assert_close(found, predictions(module, tasks)[..., order], rtol=1e-10, atol=1e-12)


def test_the_matching_processor_is_torchs_lstm_that_reads_the_support_set() -> None:
    """Of one support vector, the attention is 1: each step reads it, and adds the pair to the hidden state."""
    module, tasks = matching(processing_steps=3).double(), random_pairs()
    cell = torch.nn.LSTMCell(16, 8).double()
    cell.load_state_dict(module.attention.state_dict())
    support, query = of_task(tasks.support, 0), of_task(tasks.query, 0)
    known = torch.stack([support.x[k, answer] for k, answer in enumerate(support.y.tolist())])
    relation = module.encode(known).mean(0)
    for q, c in ((0, 0), (1, 3)):
        pair = module.encode(query.x[q, c][None])[0]
        h = state = torch.zeros(1, 8, dtype=torch.float64)
        for _ in range(3):
            h, state = cell(torch.cat([pair, relation])[None], (h, state))
            h = h + pair
        score = module.query_loss(module.adapt(support), query).preds[q, c]
        torch.testing.assert_close(score, (h[0] @ relation))


def test_the_loss_is_the_mean_hinge_over_wrong_candidates() -> None:
    scores, answers = torch.tensor([[1.0, 3.0, 2.5], [0.0, 0.2, 5.0]]), torch.tensor([1, 0])
    hinges = [max(0, 1 - 3.0 + 1.0), max(0, 1 - 3.0 + 2.5), max(0, 1 - 0.0 + 0.2), max(0, 1 - 0.0 + 5.0)]
    assert margin_loss(scores, answers, 1.0).item() == pytest.approx(sum(hinges) / 4)


def test_other_data_and_other_vocabularies_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"compares pairs of entities.*Blobs have the shape \(1, 16, 16\)"):
        trainer().fit(matching(), datamodule=blobs())
    with pytest.raises(ConfigError, match="vocabulary=20 ids, but RuleGraph has 60"):
        trainer().fit(matching(backbone=NeighbourEncoder(20)), datamodule=rule_graph())
    with pytest.raises(ConfigError, match="margin=0 must be positive"):
        matching(margin=0)
    with pytest.raises(ConfigError, match="NeighbourEncoder needs vocabulary"):
        NeighbourEncoder()
