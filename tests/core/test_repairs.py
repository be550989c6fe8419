"""Operations that torch gets wrong: each row of the table is needed, and right.

The truth is plain torch.autograd, task by task, in float64: no torch.func, no vmap.
"""

from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from lightning_meta.algorithms import MAML
from lightning_meta.backbones import MLP, Conv4
from lightning_meta.core import Batch, Episode, repairs
from lightning_meta.core.repairs import REPAIRS, Repaired, repaired
from tests.conftest import autograd_meta_gradient, meta_gradient

LR, STEPS, WIDTH = 0.5, 2, 8


class Through(nn.Module):
    """A function of features `(B, 8)` and of a scale and a shift of its own, given them in whatever shape it takes."""

    def __init__(self, function: Callable[[Tensor, Tensor, Tensor], Tensor], affine: int = WIDTH) -> None:
        super().__init__()
        self.function = function
        self.weight, self.bias = (nn.Parameter(torch.randn(affine)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.weight, self.bias)


class Network(nn.Module):
    """Smooth, from points `(B, 6)` to four features by way of the layer under test."""

    out_features = 4

    def __init__(self, layer: nn.Module, shape: tuple[int, ...] = (WIDTH,)) -> None:
        super().__init__()
        self.first, self.layer, self.last = nn.Linear(6, WIDTH), layer, nn.Linear(WIDTH, 4)
        self.shape = shape
        for p in layer.parameters():
            nn.init.normal_(p)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x).tanh().unflatten(1, self.shape)
        return self.last(self.layer(hidden).flatten(1)).tanh()


def attend(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """With an axis of heads, without which older torch has no fused kernel."""
    return F.scaled_dot_product_attention(*(part[:, None] for part in (x * weight, x + bias, x)))


class SelfAttention(nn.MultiheadAttention):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x, x, x, need_weights=False)[0]


# One network for each row, which calls that operation and no other of the table; and how it is called by users.
NETWORKS: dict[Callable[..., Any], Callable[[], Network]] = {
    F.layer_norm: lambda: Network(Through(lambda x, w, b: F.layer_norm(x, (WIDTH,), w, b))),
    F.batch_norm: lambda: Network(Through(lambda x, w, b: F.batch_norm(x, None, None, w, b, training=True))),
    F.instance_norm: lambda: Network(Through(lambda x, w, b: F.instance_norm(x, weight=w, bias=b), 2), (2, 4)),
    torch.layer_norm: lambda: Network(Through(lambda x, w, b: torch.layer_norm(x, (WIDTH,), w, b))),
    torch.batch_norm: lambda: Network(
        Through(lambda x, w, b: torch.batch_norm(x, w, b, None, None, True, 0.1, 1e-5, False))
    ),
    torch.instance_norm: lambda: Network(
        Through(lambda x, w, b: torch.instance_norm(x, w, b, None, None, True, 0.1, 1e-5, False), 2), (2, 4)
    ),
    F.scaled_dot_product_attention: lambda: Network(Through(attend, 4), (2, 4)),
    F.multi_head_attention_forward: lambda: Network(SelfAttention(4, 2, batch_first=True), (2, 4)),
    F.hardsigmoid: lambda: Network(Through(lambda x, w, b: F.hardsigmoid(x * w + b))),
}
LAYERS: dict[str, Callable[[], Network]] = {
    "LayerNorm": lambda: Network(nn.LayerNorm(WIDTH)),
    "LayerNorm without bias": lambda: Network(nn.LayerNorm(WIDTH, bias=False)),
    "LayerNorm without affine": lambda: Network(nn.LayerNorm(WIDTH, elementwise_affine=False)),
    "RMSNorm": lambda: Network(nn.RMSNorm(WIDTH)),
    "GroupNorm": lambda: Network(nn.GroupNorm(2, WIDTH)),
    "BatchNorm1d": lambda: Network(nn.BatchNorm1d(WIDTH, track_running_stats=False)),
    "BatchNorm2d": lambda: Network(nn.BatchNorm2d(2, track_running_stats=False), (2, 2, 2)),
    "BatchNorm3d": lambda: Network(nn.BatchNorm3d(2, track_running_stats=False), (2, 2, 2, 1)),
    "BatchNorm2d in evaluation": lambda: Network(nn.BatchNorm2d(2).eval(), (2, 2, 2)),
    "InstanceNorm1d": lambda: Network(nn.InstanceNorm1d(2, affine=True), (2, 4)),
    "InstanceNorm2d": lambda: Network(nn.InstanceNorm2d(2, affine=True), (2, 2, 2)),
    "InstanceNorm3d": lambda: Network(nn.InstanceNorm3d(2, affine=True), (2, 2, 2, 1)),
    "MultiheadAttention": NETWORKS[F.multi_head_attention_forward],
    "TransformerEncoderLayer": lambda: Network(
        nn.TransformerEncoderLayer(4, 2, 8, 0.0, "gelu", batch_first=True), (2, 4)
    ),
    "Hardsigmoid": lambda: Network(nn.Hardsigmoid()),
    "Hardswish": lambda: Network(nn.Hardswish()),
    "Dropout": lambda: Network(nn.Dropout(0.0)),
    "PReLU": lambda: Network(nn.PReLU(WIDTH)),
    "Conv1d": lambda: Network(nn.Conv1d(2, 2, 3, padding=1), (2, 4)),
    "weight norm": lambda: Network(nn.utils.parametrizations.weight_norm(nn.Linear(WIDTH, WIDTH))),
}
each_row = pytest.mark.parametrize("operation", NETWORKS, ids=lambda f: f"{f.__module__}.{f.__name__}")
each_mode = pytest.mark.parametrize("mode", ["vmap", "loop"])


def points() -> Episode:
    """Three 3-way tasks."""
    support, query = (Batch(torch.randn(3, n, 6).double(), torch.randint(3, (3, n))) for n in (5, 7))
    return Episode(support, query)


def maml(make: Callable[[], Network], mode: str) -> MAML:
    torch.manual_seed(1)
    module = MAML(make(), n_way=3, inner_lr=LR, inner_steps=STEPS, task_mode=mode).double()
    return module


def relative_error(found: dict[str, Tensor], truth: dict[str, Tensor]) -> float:
    assert found.keys() == truth.keys()
    apart = sum((found[name] - truth[name]).square().sum() for name in truth)
    return (apart / sum(value.square().sum() for value in truth.values())).sqrt().item()


def truth_of(make: Callable[[], Network], tasks: Episode) -> dict[str, Tensor]:
    plain = patch.object(F, "hardsigmoid", lambda x, inplace=False: (x / 6 + 0.5).clamp(0, 1))
    with sdpa_kernel(SDPBackend.MATH), plain:
        return autograd_meta_gradient(maml(make, "loop"), tasks, STEPS, lambda name, step: LR)


def tolerance(name: str) -> float:
    """Torch's first derivative of the hard sigmoid has a sixth in fp32."""
    return 1e-8 if name == "hardsigmoid" else 1e-12


def test_every_row_is_tested() -> None:
    assert NETWORKS.keys() == REPAIRS.keys()


@each_row
def test_torch_still_needs_the_row(operation: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = points()
    truth = truth_of(NETWORKS[operation], tasks)
    monkeypatch.delitem(repairs.REPAIRS, operation)
    mended = f"torch {torch.__version__} differentiates {operation.__name__} rightly: delete its row in core/repairs.py"
    try:
        found = meta_gradient(maml(NETWORKS[operation], "vmap"), tasks)
    except RuntimeError as error:
        assert "is not implemented" in str(error)
    else:
        assert relative_error(found, truth) > 1e-4, mended


@each_mode
@each_row
def test_what_a_row_puts_in_place_has_the_right_second_derivatives(operation: Callable[..., Any], mode: str) -> None:
    tasks = points()
    found = meta_gradient(maml(NETWORKS[operation], mode), tasks)
    assert relative_error(found, truth_of(NETWORKS[operation], tasks)) < tolerance(operation.__name__)


@each_mode
@pytest.mark.parametrize("name", LAYERS)
def test_networks_of_torchs_layers_have_the_meta_gradient_of_plain_autograd(name: str, mode: str) -> None:
    tasks, make = points(), LAYERS[name]
    assert relative_error(meta_gradient(maml(make, mode), tasks), truth_of(make, tasks)) < tolerance(name.lower())


def test_a_deep_network_with_layer_norm_over_five_large_steps() -> None:
    """As a user's own: 16-32-32 with an inner rate of 1, which was 3 % off."""

    def make() -> nn.Module:
        layers = [nn.Linear(6, 16), nn.LayerNorm(16), nn.Tanh(), nn.Linear(16, 32), nn.LayerNorm(32), nn.Tanh()]
        network = nn.Sequential(*layers, nn.Linear(32, 32), nn.LayerNorm(32), nn.Tanh())
        network.out_features = 32
        return network

    tasks, results = points(), []
    for compute in (
        meta_gradient,
        lambda module, tasks: autograd_meta_gradient(module, tasks, 5, lambda name, step: 1.0),
    ):
        torch.manual_seed(1)
        results.append(compute(MAML(make(), n_way=3, inner_lr=1.0, inner_steps=5).double(), tasks))
    assert relative_error(*results) < 1e-12


def test_values_and_the_precision_of_values_are_those_of_torch() -> None:
    x, w, b = torch.randn(4, 3, 6), torch.randn(3), torch.randn(3)
    mean, var = torch.randn(3), torch.rand(3)
    calls: list[Callable[[Tensor], Tensor]] = [
        lambda x: F.layer_norm(x, normalized_shape=(3, 6), weight=w[:, None] * x[0], bias=b[:, None] * x[0]),
        lambda x: F.batch_norm(x, running_mean=mean, running_var=var, weight=w, bias=b),
        lambda x: F.batch_norm(x, None, None, w, training=True, eps=0.1),
        lambda x: F.instance_norm(x, weight=w, bias=b, eps=0.1),
        lambda x: torch.layer_norm(x, (3, 6), w[:, None] * x[0], b[:, None] * x[0], 0.1, False),
    ]
    for call in calls:
        with Repaired():
            mapped = torch.vmap(call)(torch.stack([x, 2 * x]))
        torch.testing.assert_close(mapped, torch.stack([call(x), call(2 * x)]))
    with Repaired():
        assert torch.vmap(lambda x: F.batch_norm(x, None, None, w, b, training=True))(x.bfloat16()[None]).dtype == (
            torch.bfloat16
        )


def test_own_networks_do_without() -> None:
    for own in (MLP(), MAML(Conv4(1, 28), n_way=2), nn.Sequential(nn.Linear(2, 2), nn.GroupNorm(1, 2))):
        assert not isinstance(repaired(own), Repaired)
    for foreign in (nn.Sequential(nn.LayerNorm(2)), Through(attend), nn.BatchNorm1d(2), nn.MultiheadAttention(2, 1)):
        assert isinstance(repaired(foreign), Repaired)
