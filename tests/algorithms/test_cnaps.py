"""CNAPs: without what the task says it is a classifier written from class means; with it, its channels change."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_meta.algorithms import CNAPs
from lightning_meta.backbones import MLP
from lightning_meta.core import Batch, Episode
from lightning_meta.errors import ConfigError
from tests.conftest import Make, conv4

CASES: dict[str, Make] = {"cnaps": lambda: CNAPs(conv4(), conv4(hidden=4), rank=3)}


def cnaps(spoken: bool = True, **overrides) -> CNAPs:
    torch.manual_seed(0)
    module = CNAPs(conv4(), conv4(hidden=4), **({"rank": 3} | overrides)).double()
    if spoken:
        for head in module.generated.heads.values():
            nn.init.normal_(head.weight, std=0.5)
    return module


def first(tasks: Episode) -> tuple[Batch, Batch]:
    return Batch(tasks.support.x[0], tasks.support.y[0]), Batch(tasks.query.x[0], tasks.query.y[0])


def by_hand(module: CNAPs, support: Batch, x: torch.Tensor) -> torch.Tensor:
    """Scores of queries, the features through the backbone as it stands."""
    features, queries = module.backbone(support.x), module.backbone(x)
    means = torch.stack([features[support.y == label].mean(0) for label in range(3)])
    return queries @ module.class_weight(means).T + module.class_bias(means).T


def test_at_first_the_task_changes_no_channel(episodes: Episode) -> None:
    module, (support, query) = cnaps(spoken=False), first(episodes)
    out = module.query_loss(module.adapt(support), query)
    torch.testing.assert_close(out.preds[:, :3], by_hand(module, support, query.x))
    torch.testing.assert_close(out.loss, F.cross_entropy(by_hand(module, support, query.x), query.y))


def test_scales_and_shifts_are_those_that_the_embedding_says(episodes: Episode) -> None:
    module, (support, query) = cnaps(), first(episodes)
    found = module.query_loss(module.adapt(support), query).preds[:, :3]
    code = module.generated.code(module.encoder(support.x).mean(0))
    plain = by_hand(module, support, query.x)
    with torch.no_grad():
        for place, block in enumerate(module.backbone.blocks):
            for part in ("weight", "bias"):
                head = module.generated.heads[f"blocks/{place}/1/{part}"]
                getattr(block[1], part).add_(head.weight @ code)
    torch.testing.assert_close(found, by_hand(module, support, query.x))
    assert (found - plain).abs().max() > 0.01


def test_ways_and_shots_may_differ_from_task_to_task() -> None:
    module = cnaps().eval()
    x, y = torch.rand(7, 1, 16, 16).double(), torch.tensor([0, 0, 0, 1, 2, 3, 3])
    probabilities = module.predict(module.adapt(Batch(x, y)), torch.rand(2, 1, 16, 16).double())
    torch.testing.assert_close(probabilities[:, :4].sum(1), torch.ones(2).double())


def test_a_frozen_backbone_does_not_learn() -> None:
    module = cnaps(freeze=True)
    assert not any(p.requires_grad for p in module.backbone.parameters())
    assert all(p.requires_grad for p in module.generated.parameters())


def test_a_backbone_without_normalisation_is_refused() -> None:
    with pytest.raises(ConfigError, match="MLP has no batch normalisation"):
        CNAPs(MLP(in_features=4, hidden=[3]), MLP(in_features=4, hidden=[3]))
