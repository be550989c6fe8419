"""Anybody's networks as backbones: what they become, and that their meta-gradient is right.

The truth is plain torch.autograd on the user's own network, task by task, in float64: no torch.func, no vmap, and none
of the layers that are put in place.
"""

import logging
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from inspect import signature
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torchvision import models

from lightning_meta import algorithms
from lightning_meta.algorithms import MAML, ProtoNet
from lightning_meta.backbones import Backbone, EpisodicBatchNorm2d, Timm, Wrapped, as_backbone, norm_protocol, wrap
from lightning_meta.backbones.norm import MetaBatch, embedding_pass
from lightning_meta.core import Batch, Episode, repairs
from lightning_meta.errors import ConfigError
from lightning_meta.metrics import EpisodicAccuracy
from lightning_meta.modules import EmbeddingModule, EpisodicModule, FixedWayModule
from tests.conftest import SIZE, blobs, conv4, meta_gradient
from tests.modules.test_episodic import trainer

LR, STEPS = 0.1, 2


class Rows(nn.Module):
    """An image read row by row."""

    def __init__(self, reader: nn.Module) -> None:
        super().__init__()
        self.reader = reader

    def forward(self, x: Tensor) -> Tensor:
        read = self.reader(x.flatten(1, 2))
        return (read[0] if isinstance(read, tuple) else read)[:, -1]


class Tied(nn.Module):
    """Two layers of the same weights."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(SIZE * SIZE, SIZE * SIZE), nn.Linear(SIZE * SIZE, SIZE * SIZE)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x.flatten(1)).tanh())


def small(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 4, 3, stride=4), *layers, nn.Flatten())


def partly_frozen() -> nn.Module:
    network = small(nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 3))
    network[0].requires_grad_(False)
    return network


# A user's networks, and the names of the classifiers that they come with.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], str | None]] = {
    "resnet": (lambda: models.ResNet(models.resnet.BasicBlock, [1, 1, 1, 1]), "fc"),
    "mobilenet_v3_small": (lambda: models.mobilenet_v3_small(width_mult=0.1, dropout=0.0), "classifier.3"),
    "convnext": (
        lambda: models.ConvNeXt(
            [models.convnext.CNBlockConfig(8, 12, 1), models.convnext.CNBlockConfig(12, None, 1)], layer_scale=1.0
        ),
        "classifier.2",
    ),
    "vit": (lambda: models.VisionTransformer(SIZE, 8, 2, 2, 8, 16), "heads.head"),
    "lstm": (lambda: Rows(nn.LSTM(SIZE, 5, batch_first=True)), None),
    "gru": (lambda: Rows(nn.GRU(SIZE, 5, batch_first=True)), None),
    "transformer encoder": (
        lambda: Rows(nn.TransformerEncoder(nn.TransformerEncoderLayer(SIZE, 2, 8, 0.0, batch_first=True), 2)),
        None,
    ),
    "dropout": (lambda: small(nn.Dropout(0.5)), None),
    "tied weights": (Tied, None),
    "frozen parts": (partly_frozen, None),
    "BatchNorm1d": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(SIZE**2, 6), nn.BatchNorm1d(6), nn.Tanh()), None),
    "BatchNorm2d without averages": (lambda: small(nn.BatchNorm2d(4, track_running_stats=False), nn.Tanh()), None),
    "InstanceNorm2d": (lambda: small(nn.InstanceNorm2d(4, affine=True), nn.Tanh()), None),
}
RECURRENT = ("lstm", "gru")  # which vmap cannot take
each_network = pytest.mark.parametrize("name", NETWORKS)


def episodes() -> Episode:
    """Two 2-way tasks of images."""
    generator = torch.Generator().manual_seed(0)
    parts = [torch.rand(2, n, 1, SIZE, SIZE, generator=generator, dtype=torch.float64) for n in (4, 6)]
    return Episode(*(Batch(x, torch.arange(x.shape[1]).remainder(2).expand(2, -1)) for x in parts))


def dropout(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """Which examples lose what is a function of their values, the same however tasks are mapped."""
    return x * (torch.cos(10 * x.detach()) > 0) / (1 - p) if training and p else x


@pytest.fixture(autouse=True)
def _deterministic_dropout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(F, "dropout", dropout)


def network(name: str) -> nn.Module:
    torch.manual_seed(1)
    made = NETWORKS[name][0]().double()
    for parameter in made.parameters():
        if parameter.ndim == 1:  # scales and shifts that are not all alike
            nn.init.normal_(parameter, 1.0, 0.3)
    return made


def maml(name: str, mode: str) -> MAML:
    made = Wrapped(network(name), (1, SIZE, SIZE))
    torch.manual_seed(2)
    return MAML(made, n_way=2, inner_lr=LR, inner_steps=STEPS, task_mode=mode).double()


def truth_of(name: str, tasks: Episode) -> list[Tensor | None]:
    """The meta-gradient by the textbook's double loop, in the order of the parameters; None of frozen ones."""
    head = maml(name, "loop").learner[1]
    learner = nn.ModuleDict({"network": network(name), "head": head})
    cut = NETWORKS[name][1]
    if cut:
        parent, _, last = cut.rpartition(".")
        setattr(learner.network.get_submodule(parent), last, nn.Identity())
    colour = next((layer.in_channels for layer in learner.modules() if isinstance(layer, nn.Conv2d)), 1)

    def loss(weights: dict[str, Tensor], batch: Batch) -> Tensor:
        own = {key.removeprefix("network."): value for key, value in weights.items() if key.startswith("network.")}
        features = functional_call(learner["network"], own, batch.x.repeat(1, colour, 1, 1)).flatten(1)
        return F.cross_entropy(F.linear(features, weights["head.weight"], weights["head.bias"]), batch.y)

    theta = {key: value for key, value in learner.named_parameters() if value.requires_grad}
    losses = []
    for t in range(len(tasks.support.x)):
        support, query = (Batch(part.x[t], part.y[t]) for part in tasks)
        phi = theta
        for _ in range(STEPS):
            gradients = torch.autograd.grad(loss(phi, support), list(phi.values()), create_graph=True)
            phi = {key: value - LR * g for (key, value), g in zip(phi.items(), gradients, strict=True)}
        losses.append(loss(phi, query))
    torch.stack(losses).mean().backward()
    return [parameter.grad for parameter in learner.parameters()]


def relative_error(found: list[Tensor], truth: list[Tensor]) -> float:
    apart = sum((one - other).square().sum() for one, other in zip(found, truth, strict=True))
    return (apart / sum(value.square().sum() for value in truth)).sqrt().item()


# ---- second derivatives ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def truths() -> Iterator[dict[str, list[Tensor | None]]]:
    """Made once for all modes."""
    yield {}


@pytest.mark.parametrize("mode", ["vmap", "loop"])
@each_network
def test_the_meta_gradient_is_that_of_plain_autograd_on_the_users_network(
    name: str, mode: str, truths: dict[str, list[Tensor | None]]
) -> None:
    tasks = episodes()
    if name not in truths:
        plain = patch.object(F, "hardsigmoid", lambda x, inplace=False: (x / 6 + 0.5).clamp(0, 1))
        with sdpa_kernel(SDPBackend.MATH), plain:
            truths[name] = truth_of(name, tasks)
    module = maml(name, "auto" if name in RECURRENT else mode)
    module.play_as_it_can(tasks).loss.mean().backward()
    assert module.task_mode == ("loop" if name in RECURRENT else mode)
    found = [parameter.grad for parameter in module.learner.parameters()]
    assert [g is None for g in found] == [g is None for g in truths[name]], "what is frozen"
    # Torch's first derivative of the hard sigmoid has a sixth in fp32. The gradient of the ResNet is in the thousands.
    tolerance = {"mobilenet_v3_small": 1e-6, "resnet": 1e-9}.get(name, 1e-11)
    kept = [[g for g in side if g is not None] for side in (found, truths[name])]
    assert relative_error(*kept) < tolerance


@pytest.mark.parametrize("name", ["vit", "transformer encoder", *RECURRENT])
def test_it_adapts_in_evaluation_as_in_training(name: str) -> None:
    """Where no gradient is kept, these layers take short cuts of their own."""
    tasks, module = episodes(), maml(name, "auto" if name in RECURRENT else "vmap")
    trained = module.play_as_it_can(tasks)
    with torch.no_grad():
        evaluated = module.eval().play_as_it_can(tasks)
    torch.testing.assert_close(evaluated.preds, trained.preds.detach(), rtol=1e-7, atol=1e-9)
    module.eval_inner_steps = 0
    assert not torch.allclose(module.play_as_it_can(tasks).preds, evaluated.preds, rtol=1e-3), "it does adapt"


class AsItIs(Backbone):
    """Neither converted nor repaired."""

    out_features = 8

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)


class Normalised(nn.Module):
    """Smooth, from points `(B, 6)` to features by way of a normalisation of torch's."""

    def __init__(self, norm: nn.Module, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.first, self.norm, self.shape = nn.Linear(6, 8), norm, shape
        nn.init.normal_(norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.first(x).tanh().unflatten(1, self.shape)).flatten(1).tanh()


@pytest.mark.parametrize(
    "make",
    [
        lambda: Normalised(nn.LayerNorm(8), (8,)),
        lambda: Normalised(nn.BatchNorm2d(2, track_running_stats=False), (2, 2, 2)),
    ],
    ids=["LayerNorm", "BatchNorm2d"],
)
def test_unconverted_the_meta_gradient_under_vmap_would_be_wrong(make: Callable[[], nn.Module]) -> None:
    """Why this is done at all: without a word, torch's own layers give another gradient under vmap."""
    x, y = torch.randn(3, 10, 6).double(), torch.randint(3, (3, 10))
    tasks = Episode(Batch(x[:, :5], y[:, :5]), Batch(x[:, 5:], y[:, 5:]))

    def error(backbone: Backbone) -> float:
        """Of vmap against the loop."""
        torch.manual_seed(0)
        module = MAML(backbone, n_way=3, inner_lr=0.5, inner_steps=2, task_mode="vmap").double()
        mapped, module.task_mode = meta_gradient(module, tasks), "loop"
        return relative_error([*mapped.values()], [*meta_gradient(module, tasks).values()])

    network = make()
    with patch.object(repairs, "REPAIRS", {}):
        assert error(AsItIs(network)) > 1e-4
    assert error(Wrapped(network)) < 1e-12


# ---- what becomes of a network --------------------------------------------------------------------------------------


def test_the_users_network_is_copied_and_left_as_it_was() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(inplace=True), nn.Flatten())
    network.append(nn.Linear(2 * 14 * 14, 5)).eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    module = MAML(network, n_way=3, inner_lr=0.1)
    trainer(max_steps=2).fit(module, datamodule=blobs())
    assert isinstance(module.backbone, Wrapped)
    assert type(network[1]) is nn.BatchNorm2d and network[2].inplace and not network.training
    torch.testing.assert_close(dict(network.state_dict()), before, rtol=0, atol=0)
    weights = dict(module.backbone.network.named_parameters())
    assert not torch.equal(weights["0.weight"], before["0.weight"]), "the copy was trained"


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_running_averages_are_kept_and_go_on_as_torchs(training: bool) -> None:
    network = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3, momentum=0.3), nn.Flatten(), nn.Linear(3 * 14 * 14, 5), nn.BatchNorm1d(5)
    )
    network(torch.randn(9, 1, SIZE, SIZE))  # averages of something
    wrapped, x = Wrapped(network, norm="running"), torch.randn(4, 1, SIZE, SIZE)
    network.train(training)
    wrapped.train(training)
    torch.testing.assert_close(wrapped(x), network(x))
    for name in ("1.running_mean", "1.running_var", "4.running_mean", "4.running_var"):
        torch.testing.assert_close(wrapped.network.get_buffer(name), network.get_buffer(name))
    assert norm_protocol(wrapped) == "running"


@pytest.mark.parametrize("places", [(), (5,), (2, 4), (2, 2, 2)], ids=["0d", "1d", "2d", "3d"])
@pytest.mark.parametrize("protocol", ["transductive", "inductive"])
def test_normalisation_knows_tasks_whatever_the_axes(places: tuple[int, ...], protocol: str) -> None:
    """By hand, of two tasks in one pass."""
    layer = EpisodicBatchNorm2d(3, protocol).double()
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    x = torch.randn(10, 3, *places).double()
    with embedding_pass(layer, MetaBatch(2, 4)):
        found = layer(x)
    axes = [0, *range(2, x.ndim)]
    for support, query in (([0, 1], [4, 5, 6]), ([2, 3], [7, 8, 9])):
        for own in (support, query):
            of = x[support if protocol == "inductive" else own]
            mean, var = of.mean(axes, keepdim=True), of.var(axes, correction=0, keepdim=True)
            scale, shift = (p.view(-1, *[1] * (x.ndim - 2)) for p in (layer.weight, layer.bias))
            torch.testing.assert_close(found[own], (x[own] - mean) / (var + layer.eps).sqrt() * scale + shift)


def test_normalisation_without_averages_or_scale_and_in_two_places() -> None:
    shared = nn.BatchNorm1d(4)
    network = nn.Sequential(nn.Linear(6, 4), shared, nn.BatchNorm1d(4, track_running_stats=False), shared)
    network.append(nn.BatchNorm1d(4, affine=False))
    wrapped = Wrapped(network, norm="running")
    layers = [wrapped.network[place] for place in (1, 2, 3, 4)]
    assert [layer.protocol for layer in layers] == ["running", "transductive", "running", "running"]
    assert layers[0] is layers[2]
    assert not layers[3].weight.requires_grad and not layers[3].bias.requires_grad
    x = torch.randn(7, 6)
    torch.testing.assert_close(wrapped(x), network(x))


def test_normalisation_with_an_activation_as_timm_has_it() -> None:
    class BatchNormAct2d(nn.BatchNorm2d):
        def __init__(self, channels: int) -> None:
            super().__init__(channels)
            self.drop, self.act = nn.Identity(), nn.ReLU(inplace=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.act(self.drop(super().forward(x)))

    network = nn.Sequential(nn.Conv2d(1, 2, 3), BatchNormAct2d(2), nn.Flatten())
    wrapped, x = Wrapped(network), torch.randn(4, 1, SIZE, SIZE)
    assert isinstance(wrapped.network[1], EpisodicBatchNorm2d)
    torch.testing.assert_close(wrapped(x), network(x))
    assert dict(wrapped.network.named_parameters()).keys() == dict(network.named_parameters()).keys()


def test_recurrent_layers_go_without_cudnn_within_an_inner_loop_only(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    lstm = torch.lstm

    def spy(*args: Any) -> Any:
        seen.append(torch.backends.cudnn.enabled)
        return lstm(*args)

    monkeypatch.setattr(nn.modules.rnn._VF, "lstm", spy)
    wrapped = Wrapped(Rows(nn.LSTM(SIZE, 5, batch_first=True)))
    x = torch.randn(2, 1, SIZE, SIZE)
    seen.clear()
    wrapped(x)
    assert seen == [True]
    seen.clear()
    theta = {name: p.detach() for name, p in wrapped.named_parameters()}
    grad(lambda theta: functional_call(wrapped, theta, (x,)).sum())(theta)
    assert seen and not any(seen)
    assert torch.backends.cudnn.enabled


def test_a_note_says_what_was_converted(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "lightning_meta"):
        Wrapped(models.ResNet(models.resnet.BasicBlock, [1, 1, 1, 1]))
    (note,) = caplog.messages
    assert note == (
        "ResNet as a backbone: without fc (Linear); 12 layers normalised by batch (norm: transductive); 5 layers that "
        "worked in place, no longer."
    )
    caplog.clear()
    with caplog.at_level(logging.INFO, "lightning_meta"):
        Wrapped(nn.Sequential(nn.Linear(4, 3), nn.Tanh()))
    assert not caplog.messages, "nothing was done"


# ---- shapes ---------------------------------------------------------------------------------------------------------


class Own(nn.Module):
    """With a classifier by the name of torchvision's, which is part of the features here."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.fc = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()), nn.Linear(4, 7)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.body(x))


FOUND: dict[str, tuple[Callable[[], nn.Module], dict[str, Any], int, tuple[int, ...] | None]] = {
    "mean over the image": (lambda: models.ResNet(models.resnet.BasicBlock, [1, 1, 1, 1]), {}, 512, None),
    "one size of image": (lambda: models.VisionTransformer(32, 8, 1, 2, 8, 16), {}, 8, (3, 32, 32)),
    "vectors": (lambda: nn.Sequential(nn.Linear(6, 4), nn.Tanh()), {}, 4, (6,)),
    "a linear layer after convolutions": (
        lambda: nn.Sequential(nn.Conv2d(1, 2, 3, 2), nn.Flatten(), nn.Linear(2 * 15 * 15, 9)),
        {},
        9,
        (1, 32, 32),
    ),
    "rows": (lambda: Rows(nn.GRU(28, 5, batch_first=True)), {}, 5, None),
    "own are taken whole": (Own, {}, 7, None),
    "or cut": (Own, {"cut": "fc"}, 4, None),
    "torchvision's whole": (lambda: models.squeezenet1_1(num_classes=6), {"cut": None}, 6, None),
    "words": (lambda: nn.Sequential(nn.Embedding(9, 3), nn.Flatten()), {"in_shape": [4]}, 12, (4,)),
}  # fmt: skip


@pytest.mark.parametrize(("make", "options", "features", "in_shape"), FOUND.values(), ids=FOUND)
def test_what_goes_in_and_comes_out_is_found(
    make: Callable[[], nn.Module], options: dict[str, Any], features: int, in_shape: tuple[int, ...] | None
) -> None:
    wrapped = Wrapped(make(), **options)
    assert wrapped.out_features == features
    assert getattr(wrapped, "in_shape", None) == in_shape
    assert wrapped.training


def test_maps_are_made_flat_and_keep_their_shape_for_those_who_read_it() -> None:
    wrapped = Wrapped(nn.Conv2d(1, 4, 3, stride=5), in_shape=[1, SIZE, SIZE])
    assert wrapped.out_features == 4 * 3 * 3 and wrapped.map_shape == (4, 3, 3)
    assert wrapped(torch.zeros(2, 1, SIZE, SIZE)).shape == (2, 36)


def test_grey_images_for_three_channels_are_the_sum_of_the_kernels() -> None:
    conv = nn.Conv2d(3, 4, 3)
    x = torch.rand(2, 1, SIZE, SIZE)
    expected = F.conv2d(x, conv.weight.sum(1, keepdim=True), conv.bias).flatten(1)
    torch.testing.assert_close(Wrapped(conv, [1, SIZE, SIZE])(x), expected)


def densenet() -> nn.Module:
    return models.DenseNet(growth_rate=4, block_config=(1, 1, 1, 1), num_init_features=4)


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "class": (lambda: MAML(Rows, n_way=3), r"torch.nn.Module, not type; give Rows\(\), not the class"),
    "something else": (lambda: ProtoNet("resnet18"), "torch.nn.Module, not str"),
    "tuple": (lambda: MAML(nn.LSTM(4, 3), n_way=3), "LSTM returns a tuple, not one tensor of features.*return out"),
    "not batch first": (
        lambda: Wrapped(nn.Sequential(nn.Flatten(0), nn.Unflatten(0, (16, 32))), [1, 16, 16]),
        r"returns shape \(16, 32\) for 2 inputs.*batch_first",
    ),
    "other channels": (
        lambda: Wrapped(Own(), [2, 16, 16]), r"Own cannot take inputs of shape \(2, 16, 16\).*images of 3 channels"
    ),
    "small images": (
        lambda: Wrapped(densenet(), [1, 16, 16]), r"DenseNet cannot take.*\(1, 16, 16\).*too small for its strides"
    ),
    "features that grow": (
        lambda: MAML(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten()), n_way=3),
        r"how many features Sequential gives.*in_shape.*1352 for \(1, 28, 28\); 13448 for \(1, 84, 84\)",
    ),
    "nothing known": (
        lambda: MAML(nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2), 1), n_way=3),
        "how many features TransformerEncoder gives.*in_shape",
    ),
    "lazy": (lambda: Wrapped(nn.Sequential(nn.LazyLinear(4))), "lazy layers.*put an input through it first"),
    "cut": (lambda: Wrapped(Own(), cut="head"), "cut=head: Own has no such layer; it has body, fc"),
    "script": (lambda: Wrapped(torch.jit.script(nn.Linear(2, 2))), "is compiled.*give the module"),
}  # fmt: skip


@pytest.mark.parametrize(("make", "words"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_is_one_line_with_the_remedy(make: Callable[[], Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as refusal:
        make()
    assert len(str(refusal.value).splitlines()) == 1


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize(
    "make",
    [
        lambda batch_first: nn.LSTM(SIZE, 3, batch_first=batch_first),
        lambda batch_first: nn.TransformerEncoderLayer(SIZE, 2, batch_first=batch_first),
    ],
    ids=["recurrent", "attention"],
)
def test_a_network_that_takes_the_batch_for_the_sequence_is_told(
    make: Callable[[bool], nn.Module], batch_first: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Torch does by default, and everything seems to work."""
    Wrapped(Rows(make(batch_first)), [1, SIZE, SIZE])
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert bool(warnings) != batch_first
    assert all("other inputs are beside it" in text and "batch_first=True" in text for text in warnings)


def test_data_that_the_network_cannot_take_are_known_before_training() -> None:
    """Blobs are 16 pixels wide."""
    with pytest.raises(ConfigError, match=r"DenseNet cannot take.*\(1, 16, 16\), which Blobs has; they are too small"):
        trainer().fit(MAML(densenet(), n_way=3), datamodule=blobs())

    class First(nn.Module):
        """Three hundred values, if there are so many."""

        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 1, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x).flatten(1)[:, :300]

    with pytest.raises(ConfigError, match=r"256 features.*which Blobs has, but.*300; say so: in_shape: \[1, 16, 16\]"):
        trainer().fit(MAML(First(), n_way=3), datamodule=blobs())
    trainer().fit(MAML(Wrapped(First(), [1, 16, 16]), n_way=3), datamodule=blobs())


# ---- who takes them -------------------------------------------------------------------------------------------------

MAPS = (
    "CAN",
    "CPEA",
    "CovaMNet",
    "DeepEMD",
    "ProtoDetection",
    "ProtoSegmentation",
    "RENet",
)  # which need maps, not features
TAKING = [
    name
    for name in algorithms.__all__
    if "backbone" in signature(getattr(algorithms, name)).parameters
    and name not in (*MAPS, "MetaNMT", "MetaASR", "TokenProtoNet", "GMatching")  # sentences, speech, graphs
    and issubclass(getattr(algorithms, name), EpisodicModule)
]


@pytest.mark.parametrize("name", TAKING)
def test_every_algorithm_takes_any_network(name: str) -> None:
    algorithm = getattr(algorithms, name)
    if package := {"MetaOptNet": "qpth", "KFO": "learn2learn", "MetaCurvature": "learn2learn"}.get(name):
        pytest.importorskip(package)
    network = small(nn.BatchNorm2d(4), nn.ReLU(inplace=True)).append(nn.Linear(4 * 4 * 4, 8))
    second = small(nn.BatchNorm2d(4), nn.ReLU()).append(nn.Linear(4 * 4 * 4, 8))
    settings: dict[str, dict[str, Any]] = {
        "SNAIL": {"k_shot": 2}, "CAVIA": {"layer": "network.0"}, "CNAPs": {"encoder": second},
        "ANML": {"modulator": second},
    }  # fmt: skip
    own = settings.get(name, {})
    own |= {"steps": 5} if "TIM" in name else {}  # of a thousand
    shape = {"n_way": 3} if issubclass(algorithm, FixedWayModule) and name != "ProtoMAML" else {}
    module = algorithm(network, **shape, **own)
    if isinstance(module.metric, EpisodicAccuracy):  # it plays images
        trainer().fit(module, datamodule=blobs())
    found = module.backbone.backbone if name == "ANML" else module.backbone  # of its two networks, the first
    assert isinstance(found, Wrapped) and found.in_shape == (1, SIZE, SIZE)
    usual = "running" if issubclass(algorithm, EmbeddingModule) else "transductive"
    assert norm_protocol(module.backbone) == {"TADAM": "inductive"}.get(name, usual)


def test_a_backbone_is_taken_as_it_is() -> None:
    backbone = conv4()
    assert as_backbone(backbone, "running") is backbone
    assert ProtoNet(backbone).backbone is backbone


def test_networks_of_timm_come_by_their_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """As timm has them, of which only the interface is needed here."""

    def create_model(name: str, pretrained: bool, num_classes: int, in_chans: int = 3) -> nn.Module:
        assert (name, pretrained, num_classes) == ("tiny", False, 0)
        return nn.Sequential(nn.Conv2d(in_chans, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())

    fake = SimpleNamespace(
        is_model=lambda name: name == "tiny", list_models=lambda pattern: ["tiny"], create_model=create_model
    )
    monkeypatch.setattr(wrap, "need", lambda package, what: fake)
    backbone = Timm("tiny", options={"in_chans": 1})
    assert backbone.out_features == 4
    with pytest.raises(ConfigError, match="timm has no network tinny; near: tiny"):
        Timm("tinny")


@pytest.mark.skipif(find_spec("timm") is not None, reason="timm is installed")
def test_without_timm_its_extra_is_named() -> None:
    with pytest.raises(
        ConfigError, match=r"Timm needs timm>=1.0.*lightning_meta\[networks\].*requirements-networks.txt"
    ):
        Timm("vit_tiny_patch16_224")
