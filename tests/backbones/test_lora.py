"""LoRA against the same network with the changes added to its weights by hand."""

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torchvision import models

from lightning_meta.algorithms import MAML, ProtoNet
from lightning_meta.backbones import LoRA, Wrapped
from lightning_meta.core import Episode
from lightning_meta.errors import ConfigError
from lightning_meta.pretrained import start_from
from tests.conftest import SIZE, blobs, conv4, meta_gradient
from tests.modules.test_episodic import trainer


class Attention(nn.Module):
    """An image's rows attend to each other."""

    def __init__(self) -> None:
        super().__init__()
        self.out_features = SIZE
        self.attention = nn.MultiheadAttention(SIZE, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(1, 2)
        return self.attention(rows, rows, rows)[0].mean(1)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "conv4": conv4,
    "linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(SIZE * SIZE, 7), nn.Tanh(), nn.Linear(7, 5)),
    "resnet": lambda: models.ResNet(models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=5),
    "attention": Attention,
}


def moved(backbone: LoRA) -> LoRA:
    """With changes that are not zero, as after training."""
    for name, parameter in backbone.named_parameters():
        if name.endswith(".b"):
            nn.init.normal_(parameter, std=0.1)
    return backbone


def by_hand(backbone: LoRA) -> dict[str, Tensor]:
    """The network's weights with the changes in them, from the paper's formula; with a graph."""
    parts = dict(backbone.named_parameters())
    weights = {}
    for name, value in parts.items():
        if name.endswith(".original"):
            change = name.removesuffix("original") + "0."
            a, b = parts[f"{change}a"], parts[f"{change}b"]
            value = value + backbone.get_submodule(change[:-1]).scale * (b @ a).reshape(value.shape)
            name = name.removesuffix(".original").replace("parametrizations.", "")
        elif name.endswith((".0.a", ".0.b")):
            continue
        weights[name.removeprefix("network.")] = value
    return weights


@pytest.mark.parametrize("name", NETWORKS)
def test_it_is_the_network_at_first_and_the_network_with_changed_weights_later(name: str) -> None:
    network = NETWORKS[name]()
    plain, lora = Wrapped(deepcopy(network)) if name != "conv4" else deepcopy(network), LoRA(network, rank=2, alpha=6)
    x = torch.rand(4, 1, SIZE, SIZE).expand(-1, 3 if name == "resnet" else 1, -1, -1)
    torch.testing.assert_close(lora(x), plain(x))
    before = plain(x)
    moved(lora)
    weights = by_hand(lora)
    assert weights.keys() == dict(plain.named_parameters()).keys()
    torch.testing.assert_close(lora(x), functional_call(plain, weights, (x,)), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(lora(x), before, rtol=1e-2)


@pytest.mark.parametrize("mode", ["vmap", "loop"])
@pytest.mark.parametrize("name", ["linear", "attention"])
def test_the_meta_gradient_of_maml_is_that_of_plain_autograd(name: str, mode: str, episodes: Episode) -> None:
    module = MAML(LoRA(NETWORKS[name](), rank=2), n_way=3, inner_lr=0.1, inner_steps=2, task_mode=mode).double()
    lora: LoRA = moved(module.backbone)  # type: ignore[assignment]
    plain = Wrapped(NETWORKS[name]()).double()
    theta = {key: p for key, p in module.learner.named_parameters() if p.requires_grad}
    frozen = {key: p for key, p in module.learner.named_parameters() if not p.requires_grad}

    def logits(phi: dict[str, Tensor], x: Tensor) -> Tensor:
        everything = frozen | phi
        weights = {}
        for key, value in everything.items():
            if key.endswith(".original"):
                a, b = (everything[key.replace(".original", f".0.{letter}")] for letter in "ab")
                value = value + (b @ a).reshape(value.shape)
                key = key.replace(".original", "").replace("parametrizations.", "")
            if key.startswith("0.network."):
                weights[key.removeprefix("0.network.")] = value
        features = functional_call(plain, {key: weights[key] for key in names}, (x,))
        return F.linear(features, phi["1.weight"], phi["1.bias"])

    names = dict(plain.named_parameters()).keys()
    losses = []
    with sdpa_kernel(SDPBackend.MATH):  # the fused kernel has no second derivative
        for x, y, x2, y2 in zip(*episodes.support, *episodes.query, strict=True):
            phi = theta
            for _ in range(2):
                loss = F.cross_entropy(logits(phi, x), y)
                grads = torch.autograd.grad(loss, list(phi.values()), create_graph=True)
                phi = {key: p - 0.1 * g for (key, p), g in zip(phi.items(), grads, strict=True)}
            losses.append(F.cross_entropy(logits(phi, x2), y2))
        expected = dict(zip(theta, torch.autograd.grad(torch.stack(losses).mean(), list(theta.values())), strict=True))
    found = meta_gradient(module, episodes)
    assert found.keys() == {f"learner.{key}" for key in theta}
    assert sum(p.numel() for key, p in theta.items() if key[0] == "0") == 2 * sum(
        len(w) + w[0].numel() for w in (lora.get_parameter(f"network.network.{at}.parametrizations.{w}.original")
                                        for at, w in lora.adapted.items())
    )  # fmt: skip
    torch.testing.assert_close({key: found[f"learner.{key}"] for key in theta}, expected, rtol=1e-8, atol=1e-12)


def test_training_moves_the_changes_alone() -> None:
    module = MAML(LoRA(conv4(), rank=2), n_way=3, inner_lr=0.1)
    before = deepcopy(module.state_dict())
    trainer(max_steps=2).fit(module, datamodule=blobs())
    moved = {name for name, value in module.state_dict().items() if not torch.equal(value, before[name])}
    assert {name for name in moved if name.startswith("learner.0")} == {
        name for name in before if name.endswith((".0.a", ".0.b"))
    }
    assert "learner.1.weight" in moved


def test_pretrained_weights_go_to_the_network(tmp_path: Path) -> None:
    source, file = conv4("running"), tmp_path / "weights.pt"
    source.blocks[0][1].running_mean.normal_()
    torch.save({"state_dict": ProtoNet(source).state_dict()}, file)
    lora = LoRA(conv4("running"))
    said = start_from(lora, str(file))
    assert f"{len(source.state_dict())} of its {len(source.state_dict())} tensors" in said
    x = torch.rand(3, 1, SIZE, SIZE)
    torch.testing.assert_close(lora.eval()(x), source.eval()(x))


def test_layers_are_chosen_by_name() -> None:
    network = NETWORKS["linear"]()
    assert set(LoRA(network, layers=["3"]).adapted) == {"3"}
    assert network[3].weight.requires_grad, "the user's own is left as it was"
    with pytest.raises(ConfigError, match=r"layers has fc, .* it has 1, 3"):
        LoRA(network, layers=["fc"])
    with pytest.raises(ConfigError, match="no linear layer"):
        LoRA(Wrapped(nn.Flatten(), in_shape=(1, SIZE, SIZE)))
    with pytest.raises(ConfigError, match="rank"):
        LoRA(network, rank=0)
