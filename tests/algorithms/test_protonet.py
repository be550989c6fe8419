"""Prototypical Networks against the direct formula."""

import pytest
import torch
from torch.nn import functional as F

from lightning_meta.algorithms import ProtoNet
from lightning_meta.core import Episode
from tests.conftest import Make, conv4, random_episodes

CASES: dict[str, Make] = {"protonet": lambda: ProtoNet(conv4())}
VARIANTS: dict[str, Make] = {
    "protonet-cosine": lambda: ProtoNet(conv4(), distance="cosine"),
    "protonet-inductive": lambda: ProtoNet(conv4("inductive")),
}


@pytest.mark.parametrize("mode", ["vmap", "loop"])
@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_logits_and_loss_equal_the_direct_formula(mode: str, distance: str, episodes: Episode) -> None:
    module = ProtoNet(conv4(), distance=distance, task_mode=mode).double()
    out = module.play(episodes)
    for t in range(3):
        support, query = module.backbone(episodes.support.x[t]), module.backbone(episodes.query.x[t])
        prototypes = torch.stack([support[episodes.support.y[t] == c].mean(0) for c in range(3)])
        if distance == "euclidean":
            expected = -torch.cdist(query, prototypes).square()
        else:
            expected = module.log_scale.exp() * F.cosine_similarity(query[:, None], prototypes[None], dim=-1)
        torch.testing.assert_close(out.preds[t, :, :3], expected, rtol=1e-9, atol=1e-9)
        assert (out.preds[t, :, 3:] == -torch.inf).all()
        torch.testing.assert_close(out.loss[t], F.cross_entropy(expected, episodes.query.y[t]))


def test_plays_any_way_with_the_same_weights() -> None:
    module = ProtoNet(conv4()).double()
    for n_way in (2, 7):
        out = module.play(random_episodes(n_way=n_way, k_shot=1))
        assert out.preds.shape == (3, 2 * n_way, n_way)


def test_running_statistics_update_in_training_and_hold_in_evaluation(episodes: Episode) -> None:
    module = ProtoNet(conv4("running"), task_mode="loop").double()
    layer = module.backbone.blocks[0][1]
    module.train().play(episodes)
    assert layer.running_mean.abs().max() > 0
    before = layer.running_mean.clone()
    module.eval().play(episodes)
    assert torch.equal(layer.running_mean, before)


def test_running_statistics_need_no_loop(episodes: Episode) -> None:
    """The backbone is outside vmap, so the mode changes nothing."""
    outs = []
    for mode in ("vmap", "loop"):
        torch.manual_seed(0)
        outs.append(ProtoNet(conv4("running"), task_mode=mode).double().play(episodes))
    torch.testing.assert_close(*outs, rtol=1e-10, atol=1e-12)
