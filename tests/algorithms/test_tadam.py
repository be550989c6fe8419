"""TADAM (tadam): a Prototypical Network until its strengths grow, then one with scales and shifts put in by hand."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_meta.algorithms import TADAM, ProtoNet
from lightning_meta.backbones import MLP
from lightning_meta.backbones.norm import batch_norm_layers
from lightning_meta.core import Batch, Episode
from lightning_meta.errors import ConfigError
from tests.conftest import Make, conv4, meta_gradient, random_episodes


def strong(module: TADAM) -> TADAM:
    """As after training."""
    torch.manual_seed(1)
    for condition in module.conditions.values():
        nn.init.uniform_(condition.strengths, 0.3, 0.6)
    for layer in batch_norm_layers(module.backbone).values():
        nn.init.normal_(layer.weight, 1.0, 0.2)
        nn.init.normal_(layer.bias, 0.0, 0.2)
    return module


CASES: dict[str, Make] = {"tadam": lambda: TADAM(conv4())}
VARIANTS: dict[str, Make] = {"tadam-strong": lambda: strong(TADAM(conv4()))}


@pytest.mark.parametrize("norm", ["transductive", "inductive"])
@pytest.mark.parametrize("mode", ["vmap", "loop"])
def test_before_training_it_is_a_prototypical_network(norm: str, mode: str, episodes: Episode) -> None:
    """And the strengths have a gradient, so that it does not stay one."""
    module = TADAM(conv4(norm), task_mode=mode).double()
    protonet = ProtoNet(module.backbone, task_mode=mode).double()
    torch.testing.assert_close(module.play(episodes), protonet.play(episodes), rtol=1e-9, atol=1e-10)
    gradient = meta_gradient(module, episodes)
    for name, expected in meta_gradient(protonet, episodes).items():
        torch.testing.assert_close(gradient[name], expected, rtol=1e-8, atol=1e-11)
    assert gradient["conditions.blocks/0/1.strengths"].abs().min() > 1e-6


def embed(module: TADAM, x: Tensor, task: Tensor) -> Tensor:
    """The backbone's layers one after another, with the task's scale and shift after each normalisation."""
    for block, condition in zip(module.backbone.blocks, module.conditions.values(), strict=True):
        convolution, norm, *rest = block
        x = F.batch_norm(convolution(x), None, None, norm.weight, norm.bias, training=True)
        made = []
        for network, strength in zip((condition.scale, condition.shift), condition.strengths, strict=True):
            first, *others = network
            values = first.weight @ task + first.bias
            for layer in others:
                values = values + layer.linear.weight @ values.clamp(min=0) + layer.linear.bias
            made.append(strength * values)
        x = x * (1 + made[0][:, None, None]) + made[1][:, None, None]
        for layer in rest:
            x = layer(x)
    return x.flatten(1)


@pytest.mark.parametrize("mode", ["vmap", "loop"])
def test_logits_equal_those_of_features_that_are_scaled_and_shifted(mode: str, episodes: Episode) -> None:
    module = strong(TADAM(conv4(), scale=0.7, strength_penalty=0.3, task_mode=mode)).double()
    out, plain = module.train().play(episodes), module.eval().play(episodes)
    for t in range(3):
        labels = episodes.support.y[t]
        first = module.backbone(episodes.support.x[t])
        task = torch.stack([first[labels == c].mean(0) for c in range(3)]).mean(0)
        support, query = (embed(module, batch.x[t], task) for batch in episodes)
        means = torch.stack([support[labels == c].mean(0) for c in range(3)])
        logits = -module.log_scale.exp() * torch.cdist(query, means).square()
        torch.testing.assert_close(plain.preds[t, :, :3], logits, rtol=1e-8, atol=1e-9)
        assert (plain.preds[t, :, 3:] == -torch.inf).all()
        penalty = sum(value**2 for condition in module.conditions.values() for value in condition.strengths.tolist())
        torch.testing.assert_close(out.loss[t] - plain.loss[t], torch.tensor(0.3 * penalty).double())


def test_the_features_of_a_query_depend_on_the_support_set(episodes: Episode) -> None:
    module = strong(TADAM(conv4("inductive"))).double()
    first, second = (module.adapt(Batch(episodes.support.x[t], episodes.support.y[t])).params for t in range(2))
    name = "blocks.3.1.weight"
    assert (first[name] - second[name]).abs().min() > 1e-6


def test_plays_any_way_with_the_same_weights() -> None:
    module = TADAM(conv4()).double()
    for n_way in (2, 7):
        assert module.play(random_episodes(n_way=n_way, k_shot=1)).preds.shape == (3, 2 * n_way, n_way)


def test_a_backbone_without_normalisation_and_settings_without_sense_are_refused() -> None:
    with pytest.raises(ConfigError, match="MLP has none"):
        TADAM(MLP(4))
    with pytest.raises(ConfigError, match=r"depth=0"):
        TADAM(conv4(), depth=0)
