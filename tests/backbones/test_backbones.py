"""What every image backbone promises, and normalisation against torch's own layers.

A new backbone adds one line to BACKBONES.
"""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, replace_all_batch_norm_modules_, vmap
from torch.nn import functional as F
from torch.utils._pytree import tree_map
from torchvision.models import ResNet, resnet18

from lightning_meta.algorithms import MAML
from lightning_meta.backbones import (
    MLP,
    Backbone,
    Conv4,
    EpisodicBatchNorm2d,
    Learn2LearnBackbone,
    R2D2Net,
    ResNet12,
    WideResNet,
    norm_protocol,
    support_statistics,
)
from lightning_meta.backbones.base import fastest_layout
from lightning_meta.core import Episode
from lightning_meta.errors import ConfigError
from tests.conftest import SIZE, meta_gradient, needs_learn2learn, random_episodes

LR = 0.1
# Made by (in_channels, image_size, norm=...), without random layers.
BACKBONES: dict[str, Callable[..., Backbone]] = {
    "conv4": partial(Conv4, hidden=4),
    "conv4-strided": partial(Conv4, hidden=4, downsample="stride"),
    "conv4-strided-flat": partial(Conv4, hidden=4, downsample="stride", readout="flatten"),
    "conv4-averaged": partial(Conv4, hidden=4, readout="mean"),
    "conv4-two-halvings": partial(Conv4, hidden=4, halvings=2),
    "resnet12": partial(ResNet12, channels=(4, 5, 6, 7), drop_rate=0.0),
    "resnet12-flat": partial(ResNet12, channels=(4, 5, 6, 7), drop_rate=0.0, global_pool=False),
    "wrn": partial(WideResNet, depth=10, width=1),
    "r2d2": partial(R2D2Net, channels=(4, 5, 6, 7), dropout=0.0),
    "learn2learn-cnn4": pytest.param(
        partial(Learn2LearnBackbone, "CNN4Backbone", options={"hidden_size": 4}), marks=needs_learn2learn
    ),
}
# Those that draw random numbers in training.
RANDOM: dict[str, Callable[..., Backbone]] = {
    "resnet12-dropblock": partial(ResNet12, channels=(4, 5, 6, 7), drop_rate=0.1, block_size=2),
    "wrn-dropout": partial(WideResNet, depth=10, width=1, dropout=0.3),
    "r2d2-dropout": partial(R2D2Net, channels=(4, 5, 6, 7), dropout=0.3),
}
make_each = pytest.mark.parametrize("make", BACKBONES.values(), ids=BACKBONES.keys())
make_random = pytest.mark.parametrize("make", RANDOM.values(), ids=RANDOM.keys())


def maml(make: Callable[..., Backbone], mode: str) -> MAML:
    torch.manual_seed(0)
    return MAML(make(1, SIZE), n_way=3, inner_lr=LR, task_mode=mode).double()


def autograd_meta_gradient(module: MAML, tasks: Episode) -> dict[str, Tensor]:
    """Second order through one inner step by plain torch.autograd: no torch.func transform, no vmap."""
    theta, n_tasks = dict(module.learner.named_parameters()), len(tasks.support.x)
    adapted = []
    for t in range(n_tasks):
        loss = F.cross_entropy(module.learner(tasks.support.x[t]), tasks.support.y[t])
        grads = torch.autograd.grad(loss, list(theta.values()), create_graph=True)
        adapted.append({name: value - LR * g for (name, value), g in zip(theta.items(), grads, strict=True)})
    losses = [
        F.cross_entropy(functional_call(module.learner, adapted[t], tasks.query.x[t]), tasks.query.y[t])
        for t in range(n_tasks)
    ]
    grads = torch.autograd.grad(torch.stack(losses).mean(), list(theta.values()))
    return {f"learner.{name}": g for name, g in zip(theta, grads, strict=True)}


@make_each
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (3, 84, 84)], ids=str)
def test_the_input_shape_is_mapped_to_the_number_of_features(
    make: Callable[..., Backbone], shape: tuple[int, int, int]
) -> None:
    backbone = make(shape[0], shape[1])
    assert backbone.in_shape == shape
    assert backbone(torch.rand(2, *shape)).shape == (2, backbone.out_features)


@make_each
@pytest.mark.parametrize("mode", ["vmap", "loop"])
def test_second_order_meta_gradient_equals_plain_autograd(
    make: Callable[..., Backbone], mode: str, episodes: Episode
) -> None:
    """In float64, with the kinks of ReLU and max-pooling: both sides are on the same side of each."""
    module = maml(make, mode)
    expected = autograd_meta_gradient(module, episodes)
    torch.testing.assert_close(meta_gradient(module, episodes), expected, rtol=1e-9, atol=1e-13)


@make_random
@pytest.mark.parametrize("mode", ["vmap", "loop"])
def test_second_order_meta_gradient_with_random_layers_equals_plain_autograd(
    make: Callable[..., Backbone], mode: str
) -> None:
    """For one task, vmap, loop and autograd draw the same numbers from the same seed."""
    module, task = maml(make, mode), random_episodes(n_tasks=1)
    torch.manual_seed(1)
    expected = autograd_meta_gradient(module, task)
    torch.manual_seed(1)
    torch.testing.assert_close(meta_gradient(module, task), expected, rtol=1e-9, atol=1e-13)
    torch.manual_seed(2)
    other = meta_gradient(module, task)
    assert any(not torch.allclose(other[name], expected[name], rtol=1e-3) for name in expected)


@make_random
def test_tasks_draw_their_own_numbers_under_vmap_and_none_in_evaluation(make: Callable[..., Backbone]) -> None:
    module = maml(make, "vmap")
    twice = tree_map(lambda leaf: leaf.expand(2, *leaf.shape[1:]), random_episodes(n_tasks=1))
    first, second = module.play(twice).preds
    assert not torch.allclose(first, second, rtol=1e-3)
    first, second = module.eval().play(twice).preds
    torch.testing.assert_close(first, second, rtol=1e-10, atol=1e-12)


@make_each
@pytest.mark.parametrize("protocol", ["transductive", "inductive", "running"])
def test_every_layer_follows_the_norm_protocol(make: Callable[..., Backbone], protocol: str) -> None:
    """A query alone equals itself among others, unless the protocol is transductive."""
    torch.manual_seed(0)
    backbone = make(1, SIZE, norm=protocol).double().eval()
    assert norm_protocol(backbone) == protocol
    support, query = torch.rand(2, 6, 1, SIZE, SIZE, dtype=torch.float64)
    statistics = support_statistics(backbone, {}, support)
    torch.testing.assert_close(functional_call(backbone, statistics, (support,)), backbone(support))
    alone = functional_call(backbone, statistics, (query[:2],))
    together = functional_call(backbone, statistics, (query,))[:2]
    assert torch.allclose(alone, together, rtol=1e-9, atol=1e-12) == (protocol != "transductive")


def test_conv4_has_the_published_sizes() -> None:
    """Features per image: 64 on Omniglot, 800 on mini-ImageNet with 32 filters (MAML), 1600 with 64 (ProtoNet)."""
    assert Conv4(1, 28).out_features == 64
    assert Conv4(1, 28, downsample="stride").out_features == 64
    assert Conv4(1, 28, downsample="stride", readout="flatten").out_features == 256
    assert Conv4(3, 84, hidden=32).out_features == 800
    assert Conv4(3, 84, hidden=64).out_features == 1600
    weights = sum(p.numel() for p in Conv4(1, 28).parameters())
    assert weights == 9 * 64 + 3 * 9 * 64 * 64 + 4 * 2 * 64


@pytest.mark.parametrize(("downsample", "default"), [("max", "flatten"), ("stride", "mean")])
def test_conv4_reads_its_last_map_out_whole_or_averaged(downsample: str, default: str) -> None:
    torch.manual_seed(0)
    whole = Conv4(1, 28, hidden=4, downsample=downsample, halvings=3, readout="flatten")
    averaged = Conv4(1, 28, hidden=4, downsample=downsample, halvings=3, readout="mean")
    averaged.load_state_dict(whole.state_dict())
    images = torch.rand(5, 1, 28, 28)
    maps = whole.blocks(images)
    assert maps.shape[2] > 1
    assert (whole.map_shape, averaged.map_shape) == (tuple(maps.shape[1:]), (4, 1, 1))
    torch.testing.assert_close(whole(images), maps.reshape(5, -1))
    torch.testing.assert_close(averaged(images), maps.mean((2, 3)))
    expected = averaged if default == "mean" else whole
    assert Conv4(1, 28, hidden=4, downsample=downsample, halvings=3).map_shape == expected.map_shape


@pytest.mark.parametrize(
    ("backbone", "shape", "remedy"),
    [
        (lambda: Conv4(), (3, 28, 28), "set the backbone's in_channels and image_size to match."),
        (
            lambda: Conv4(),
            (20,),
            "no images: take a backbone for texts, such as EmbeddingAverage, or for numbers, such as MLP.",
        ),
        (lambda: MLP(4), (5,), "set the backbone's in_features (of texts, length) to match."),
    ],
)
def test_what_to_do_about_another_shape_is_told_by_the_shapes(
    backbone: Callable[[], Backbone], shape: tuple[int, ...], remedy: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        backbone().check_input_shape(shape, "Data")
    assert str(caught.value).endswith(f"but Data has {shape}; {remedy}")


def test_conv4_refuses_images_that_vanish() -> None:
    with pytest.raises(ValueError, match=r"image_size=8 .* 16"):
        Conv4(image_size=8)


@pytest.mark.parametrize("channels", [1, 3])
def test_images_are_laid_out_channels_last_outside_transforms_only(channels: int) -> None:
    images = torch.rand(3, channels, 8, 8)
    laid_out = fastest_layout(images)
    assert torch.equal(laid_out, images)
    assert laid_out.stride() == (64 * channels, 1, 8 * channels, channels)
    layouts: list[tuple[int, ...]] = []

    def loss(x: torch.Tensor) -> torch.Tensor:
        layouts.append(fastest_layout(x).stride())
        return x.sum()

    torch.func.grad(loss)(images)
    assert layouts == [images.stride()]


def test_conv4_gives_the_same_in_either_layout() -> None:
    backbone, images = Conv4(1, 28).double(), torch.rand(3, 1, 28, 28, dtype=torch.float64)
    torch.testing.assert_close(backbone(images), backbone.pool(backbone.blocks(images)).flatten(1))


def test_mlp_has_the_layers_of_mamls_sinusoid_network() -> None:
    assert [tuple(p.shape) for p in MLP().parameters()] == [(40, 1), (40,), (40, 40), (40,)]
    assert MLP(12, (5,))(torch.rand(2, 3, 4)).shape == (2, 5)


def random_layers(protocol: str) -> tuple[EpisodicBatchNorm2d, nn.BatchNorm2d, Tensor]:
    """Our layer and torch's with the same random affine parameters, and an input, in float64."""
    ours = EpisodicBatchNorm2d(3, protocol).double()
    theirs = nn.BatchNorm2d(3, track_running_stats=protocol == "running").double()
    nn.init.normal_(ours.weight)
    nn.init.normal_(ours.bias)
    theirs.load_state_dict({"weight": ours.weight, "bias": ours.bias}, strict=False)
    return ours, theirs, torch.randn(4, 3, 5, 5, dtype=torch.float64) * 3 + 1


def test_transductive_equals_torchs_batch_statistics() -> None:
    ours, theirs, x = random_layers("transductive")
    torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(ours.eval()(x), ours.train()(x))


def test_running_equals_torchs_batch_norm_in_training_and_evaluation() -> None:
    ours, theirs, x = random_layers("running")
    for batch in (x, x * 2 + 1):
        torch.testing.assert_close(ours(batch), theirs(batch))
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))


def test_running_averages_are_applied_to_tasks_under_vmap_without_the_native_operation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """cuDNN's refuses maps of one channel that vmap lays out."""
    ours, theirs, x = random_layers("running")
    ours(x), theirs(x)
    ours.eval(), theirs.eval()
    expected = theirs(x)
    monkeypatch.delattr("torch.nn.functional.batch_norm")
    torch.testing.assert_close(torch.vmap(ours)(x[:, None]), expected[:, None])


def test_inductive_uses_the_supports_statistics() -> None:
    ours, _, support = random_layers("inductive")
    query = torch.randn(7, 3, 5, 5, dtype=torch.float64)
    mean, var = support.mean((0, 2, 3)), support.var((0, 2, 3), correction=0)
    expected = (query - mean[:, None, None]) / (var[:, None, None] + 1e-5).sqrt()
    expected = expected * ours.weight[:, None, None] + ours.bias[:, None, None]
    network = nn.Sequential(ours)
    statistics = support_statistics(network, {}, support)
    torch.testing.assert_close(functional_call(network, statistics, (query,)), expected)
    assert support_statistics(nn.Sequential(EpisodicBatchNorm2d(3)), {}, support) == {}
    assert network[0].mean is None


def test_protocol_is_stated() -> None:
    assert norm_protocol(Conv4()) == "transductive"
    assert norm_protocol(nn.Sequential(Conv4(), Conv4(norm="inductive"))) == "inductive/transductive"
    assert norm_protocol(MLP()) == "no batch statistics"


@pytest.mark.parametrize(
    ("layer", "protocol"),
    [
        (nn.BatchNorm2d(4), "running"),
        (nn.SyncBatchNorm(4), "running"),
        (nn.BatchNorm1d(4, affine=False), "running"),
        (nn.BatchNorm2d(4, track_running_stats=False), "transductive"),
        (nn.InstanceNorm2d(4, affine=True, track_running_stats=True), "running"),
        (nn.InstanceNorm2d(4, affine=True), "no batch statistics"),
        (nn.GroupNorm(2, 4), "no batch statistics"),
        (replace_all_batch_norm_modules_(nn.Sequential(nn.BatchNorm2d(4))), "transductive"),
        (nn.Sequential(nn.BatchNorm2d(4), nn.BatchNorm2d(4, track_running_stats=False)), "running/transductive"),
        (resnet18(), "running"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else value,
)
def test_protocol_of_torchs_layers_is_what_they_do(layer: nn.Module, protocol: str) -> None:
    """Of each layer by itself: does a prediction depend on the others, and on what was seen in training?"""
    assert norm_protocol(nn.Sequential(MLP(), layer)) == protocol
    if isinstance(layer, nn.SyncBatchNorm | ResNet) or "/" in protocol:
        return
    shape = (3, 4, 5) if isinstance(layer, nn.BatchNorm1d) else (3, 4, 5, 5)
    seen, query = torch.randn(shape) + 5, torch.randn(shape)
    before = layer.eval()(query)
    layer.train()(seen)
    after = layer.eval()(query)
    assert torch.allclose(layer(query[:1]), after[:1], atol=1e-5) == (protocol != "transductive")
    assert torch.equal(before, after) == (protocol != "running")


@pytest.mark.parametrize("layer", [EpisodicBatchNorm2d, nn.BatchNorm2d], ids=["ours", "torch's"])
def test_second_derivatives_are_right_under_vmap_where_torchs_are_not(layer: type[nn.Module]) -> None:
    """The reason for a layer of our own. Should torch's become right, this test says so."""
    torch.manual_seed(0)
    norm = layer(3) if layer is EpisodicBatchNorm2d else layer(3, track_running_stats=False)
    network = nn.Sequential(nn.Conv2d(3, 3, 3, bias=False), norm).double()
    x, target = torch.randn(2, 4, 3, 7, 7).double(), torch.randn(2, 4, 3, 5, 5).double()

    def after_one_step(params: dict[str, Tensor], x: Tensor, target: Tensor) -> Tensor:
        def loss(params: dict[str, Tensor]) -> Tensor:
            return (functional_call(network, params, (x,)).tanh() - target).square().mean()

        grads = grad(loss)(params)
        return loss({name: value - grads[name] for name, value in params.items()})

    def meta_gradient(losses: Tensor) -> Tensor:
        grads = torch.autograd.grad(losses.mean(), list(network.parameters()))
        return torch.cat([g.flatten() for g in grads])

    params = dict(network.named_parameters())
    looped = meta_gradient(torch.stack([after_one_step(params, x[t], target[t]) for t in range(2)]))
    mapped = meta_gradient(vmap(after_one_step, in_dims=(None, 0, 0))(params, x, target))
    assert torch.allclose(mapped, looped, rtol=1e-10, atol=1e-14) == (layer is EpisodicBatchNorm2d)


@needs_learn2learn
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("CNN4Backbone", {"hidden_size": 8}),
        pytest.param("ResNet12Backbone", {"dropblock_dropout": 0.0, "wider": False}, marks=pytest.mark.slow),
        pytest.param("WRN28Backbone", {}, marks=pytest.mark.slow),
    ],
)
def test_networks_of_learn2learn_compute_what_they_do_there(name: str, options: dict) -> None:
    """Theirs in training mode, which normalises by the batch."""
    from learn2learn.vision import models

    ours = Learn2LearnBackbone(name, options=options).double()  # type: ignore[arg-type]
    theirs = getattr(models, name)(**options).double()
    theirs.load_state_dict(ours.network.state_dict(), strict=False)
    x = torch.rand(2, 3, 84, 84, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-9, atol=1e-12)
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in ours.modules())
    assert ours(x).shape == (2, ours.out_features)
    assert norm_protocol(ours) == "transductive"


@needs_learn2learn
def test_a_network_of_learn2learn_for_colour_refuses_grey() -> None:
    with pytest.raises(ConfigError, match="WRN28Backbone takes images of 3 channels, not in_channels=1"):
        Learn2LearnBackbone("WRN28Backbone", in_channels=1)
