"""Meta-transfer learning (meta_transfer_learning): ANIL on a backbone whose kernels are only scaled and shifted."""

import pytest
import torch
from torch import nn

from lightning_meta.algorithms import ANIL, MTL
from lightning_meta.algorithms.initialize.meta_transfer_learning import ScaledAndShifted
from lightning_meta.backbones import MLP
from lightning_meta.core import Batch, Episode
from tests.conftest import SIZE, Make, conv4, meta_gradient

CASES: dict[str, Make] = {"meta_transfer_learning": lambda: MTL(conv4(), n_way=3, inner_lr=0.1, inner_steps=2)}
VARIANTS: dict[str, Make] = {
    "meta_transfer_learning-linear": lambda: MTL(MLP(SIZE**2, [9, 8]), n_way=3, inner_lr=0.1, inner_steps=2)
}
BACKBONES = {"conv4": conv4, "mlp": lambda: MLP(SIZE**2, [9, 8])}


def mtl(backbone: str = "conv4", **overrides) -> MTL:
    torch.manual_seed(0)
    return MTL(BACKBONES[backbone](), **(dict(n_way=3, inner_lr=0.1, inner_steps=2) | overrides)).double()


def plain(backbone: str = "conv4", **overrides) -> ANIL:
    torch.manual_seed(0)
    return ANIL(BACKBONES[backbone](), **(dict(n_way=3, inner_lr=0.1, inner_steps=2) | overrides)).double()


@pytest.mark.parametrize("mode", ["vmap", "loop"])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_without_scale_and_shift_it_is_anil_on_the_kernels_that_it_was_given(
    mode: str, backbone: str, episodes: Episode
) -> None:
    module, anil = mtl(backbone, task_mode=mode), plain(backbone, task_mode=mode)
    torch.testing.assert_close(module.play(episodes), anil.play(episodes), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_scaled_and_shifted_kernels_are_those_of_another_network(backbone: str, episodes: Episode) -> None:
    """By a loop over kernels. Gradients of the factors follow by the chain rule from those of the other's weights."""
    module, anil = mtl(backbone), plain(backbone)
    others = dict(anil.backbone.named_modules())
    layers = {name: layer for name, layer in module.backbone.named_modules() if isinstance(layer, ScaledAndShifted)}
    assert len(layers) == (4 if backbone == "conv4" else 2)
    for name, layer in layers.items():
        nn.init.normal_(layer.scale, mean=1.0, std=0.3)
        for index in torch.cartesian_prod(*map(torch.arange, layer.scale.shape)).tolist():
            places = tuple(i if size > 1 else slice(None) for i, size in zip(index, layer.scale.shape, strict=True))
            with torch.no_grad():
                others[name].weight[places] *= layer.scale[tuple(index)]
        if layer.shift is not None:
            nn.init.normal_(layer.shift)
            others[name].bias.data += layer.shift.data
    torch.testing.assert_close(module.play(episodes), anil.play(episodes), rtol=1e-10, atol=1e-12)
    found, truth = meta_gradient(module, episodes), meta_gradient(anil, episodes)
    for name, layer in layers.items():
        product = truth[f"learner.0.{name}.weight"] * layer.layer.weight
        expected = product.flatten(2).sum(2).view_as(layer.scale) if product.ndim == 4 else product.sum(1, keepdim=True)
        torch.testing.assert_close(found[f"learner.0.{name}.scale"], expected, rtol=1e-8, atol=1e-12)
        if layer.shift is not None:
            bias = truth[f"learner.0.{name}.bias"]
            torch.testing.assert_close(found[f"learner.0.{name}.shift"], bias, rtol=1e-8, atol=1e-12)


def test_kernels_stay_and_the_caller_s_backbone_too(episodes: Episode) -> None:
    backbone = conv4()
    module = MTL(backbone, n_way=3).double()
    assert all(param.requires_grad for param in backbone.parameters())
    trained = set(meta_gradient(module, episodes))
    kernels = {name for name, _ in module.named_parameters() if name.endswith(".layer.weight")}
    assert len(kernels) == 4
    assert trained == {name for name, _ in module.named_parameters()} - kernels
    phi = module.adapt(Batch(episodes.support.x[0], episodes.support.y[0]))
    assert set(phi) == {"1.weight", "1.bias"}
