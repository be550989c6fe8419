"""FEAT (feat): its Transformer against torch's attention, and what it promises of sets."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_meta.algorithms import FEAT, ProtoNet
from lightning_meta.core import Batch, Episode
from lightning_meta.errors import ConfigError
from tests.conftest import Make, conv4, random_episodes

SETTINGS = dict(dropout=0.0, temperature=2.0, contrastive_temperature=3.0)
CASES: dict[str, Make] = {"feat": lambda: FEAT(conv4(halvings=3), **SETTINGS)}


def feat(**overrides) -> FEAT:
    torch.manual_seed(0)
    return FEAT(conv4(halvings=3), **(SETTINGS | overrides)).double()


def attention_of(module: FEAT) -> nn.MultiheadAttention:
    """torch's own, with one head and the projections of the module."""
    ours, size = module.set_to_set, module.backbone.out_features
    attention = nn.MultiheadAttention(size, 1, batch_first=True, dtype=torch.float64)
    with torch.no_grad():
        attention.in_proj_weight.copy_(torch.cat([ours.queries.weight, ours.keys.weight, ours.values.weight]))
        attention.in_proj_bias.zero_()
        attention.out_proj.load_state_dict(ours.out.state_dict())
    return attention


def adapted(module: FEAT, members: Tensor) -> Tensor:
    read, _ = attention_of(module)(members[None], members[None], members[None])
    return F.layer_norm(
        members + read[0], members.shape[1:], module.set_to_set.norm.weight, module.set_to_set.norm.bias
    )


@pytest.mark.parametrize("mode", ["vmap", "loop"])
@pytest.mark.parametrize("k_shot", [1, 3])
@torch.no_grad()
def test_logits_and_losses_equal_those_of_torch_s_attention(mode: str, k_shot: int) -> None:
    """Class by class, without masks or class slots."""
    module, tasks = feat(task_mode=mode, contrastive_weight=0.7), random_episodes(k_shot=k_shot)
    nn.init.normal_(module.set_to_set.norm.weight)
    training, plain = module.train().play(tasks), module.eval().play(tasks)
    for t in range(3):
        support, query = (module.backbone(batch.x[t]) for batch in tasks)
        labels, truth = tasks.support.y[t], tasks.query.y[t]
        prototypes = adapted(module, torch.stack([support[labels == c].mean(0) for c in range(3)]))
        logits = -torch.cdist(query, prototypes).square() / 2
        torch.testing.assert_close(plain.preds[t, :, :3], logits, rtol=1e-8, atol=1e-9)
        assert (plain.preds[t, :, 3:] == -torch.inf).all()
        torch.testing.assert_close(plain.loss[t], F.cross_entropy(logits, truth), rtol=1e-8, atol=1e-10)
        sets = [torch.cat([support[labels == c], query[truth == c]]) for c in range(3)]
        centres = torch.stack([adapted(module, members).mean(0) for members in sets])
        distances = torch.cdist(torch.cat([support, query]), centres).square()
        contrastive = F.cross_entropy(-distances / 3, torch.cat([labels, truth]))
        torch.testing.assert_close(training.logs["contrastive"][t], contrastive, rtol=1e-8, atol=1e-10)
        torch.testing.assert_close(training.loss[t], plain.loss[t] + 0.7 * contrastive, rtol=1e-8, atol=1e-10)


@torch.no_grad()
def test_other_labels_for_the_same_classes_permute_the_logits(episodes: Episode) -> None:
    """Of a set it does not matter which member is the first; and each prototype depends on the others."""
    module, ((x, y), query) = feat().eval(), episodes
    preds = module.play(episodes).preds
    permuted = module.play(Episode(Batch(x, (y + 1) % 3), query)).preds
    torch.testing.assert_close(permuted[..., [1, 2, 0]], preds[..., :3], rtol=1e-9, atol=1e-10)
    other = torch.where((y == 0)[:, :, None, None, None], 1 - x, x)
    changed = module.play(Episode(Batch(other, y), query)).preds
    assert (changed[..., 1] - preds[..., 1]).abs().min() > 1e-6


@torch.no_grad()
def test_without_attention_it_is_a_prototypical_network_with_normalised_prototypes(episodes: Episode) -> None:
    """Where nothing is added and nothing normalised, it is one as it stands."""
    module = feat(temperature=1.0).eval()
    nn.init.zeros_(module.set_to_set.out.weight)
    nn.init.zeros_(module.set_to_set.out.bias)
    protonet = ProtoNet(module.backbone).double()
    assert not torch.allclose(module.play(episodes).preds, protonet.play(episodes).preds)
    module.set_to_set.norm = nn.Identity()
    torch.testing.assert_close(module.play(episodes), protonet.play(episodes), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["temperature", "contrastive_temperature"])
def test_a_temperature_is_positive(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name}=0"):
        feat(**{name: 0})
