"""Any `torch.nn.Module` as a backbone: a network of torchvision, of timm, or of one's own."""

import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from copy import deepcopy
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from lightning_meta.backbones.base import Backbone
from lightning_meta.backbones.norm import NormProtocol, norm_protocol, replace_layer, with_episodic_norm
from lightning_meta.compat import TransformType
from lightning_meta.core.task_map import active_transforms
from lightning_meta.errors import ConfigError, reason
from lightning_meta.extras import need

log = logging.getLogger(__name__)
CLASSIFIERS = ("fc", "classifier", "head", "heads")  # what networks of torchvision call theirs
# Pixels of images that are tried where nobody said what a network takes; the first two tell whether its features grow.
SIZES = (28, 84, 32, 64, 96, 128, 224, 16, 48, 80, 105, 160, 192, 256, 299, 384)
FIRST = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear, nn.RNNBase, nn.MultiheadAttention, nn.Embedding, nn.EmbeddingBag)
TOO_SMALL = re.compile(r"too small|can't be greater than|non-empty|size of 0|smaller than")  # torch, of an input


class Wrapped(Backbone):
    """A copy of a network, whose features are right under vmap and second derivatives.

    What layers of torch need for that is done here: batch normalisation gets a stated protocol and keeps its scale,
    shift and running averages; layers that work in place no longer do; recurrent ones go without cuDNN within an inner
    loop, where it has no second derivative. (Layer normalisation, attention and others are repaired where the hooks
    run, see `core/repairs.py`.) Features of more than one axis are made flat. For a network that takes images of three
    channels, those of one channel are repeated, which adds up its first kernels over the channels.

    Args:
        network: the user's. It is not changed.
        in_shape: of a single input. None: what it takes is tried out; images of another size, if its features do not
            grow with them.
        cut: the layer to leave out, `fc` say, whose inputs are then the features. `auto`: the last linear layer of a
            network of torchvision, which names classes; networks of your own are taken as they are. None: no layer.
        norm: whose statistics normalise, see `EpisodicBatchNorm2d`. A layer without running averages, asked for
            `running`, takes those of the batch, as ever.
    """

    def __init__(
        self,
        network: nn.Module,
        in_shape: Sequence[int] | None = None,
        cut: str | None = "auto",
        norm: NormProtocol = "transductive",
    ) -> None:
        super().__init__()
        self.name = type(network).__name__
        self.network = self._copy(network)
        self.channels = getattr(_first_layer(self.network), "in_channels", None)
        done = [self._leave_out(_classifier(self.network) if cut == "auto" else cut)]
        if in_shape is not None:
            self.in_shape = tuple(in_shape)
        self._try_out(network)
        done += [
            _counted(with_episodic_norm(self, norm), f"normalised by batch (norm: {norm})"),
            _counted(_out_of_place(self), "that worked in place, no longer"),
            _counted(_without_cudnn(self), "recurrent, within an inner loop without cuDNN"),
        ]
        if any(done):
            log.info("%s as a backbone: %s.", self.name, "; ".join(filter(None, done)))

    @property
    def inner(self) -> nn.Module:
        return self.network

    def forward(self, x: Tensor) -> Tensor:
        return self._checked(self.network(self._as_taken(x)), len(x)).flatten(1)

    def check_input_shape(self, shape: Sequence[int], source: str) -> None:
        found = self._features_of(tuple(shape), f"which {source} has")
        if "out_features" in self.__dict__ and prod(found) != self.out_features:
            raise ConfigError(
                f"{self.name} gives {prod(found)} features of inputs of shape {tuple(shape)}, which {source} has, but "
                f"was taken to give {self.out_features}; say so: in_shape: {list(shape)}."
            )
        if self._repeats(shape):
            log.info("%s takes images of %s channels: those of 1 are repeated.", self.name, self.channels)

    def __getattr__(self, name: str) -> Any:
        """Of what is not there."""
        if name == "out_features":
            raise ConfigError(
                f"how many features {self.name} gives is not known without the shape of an input; say it: "
                "--model.backbone.in_shape [channels,height,width], Wrapped(network, in_shape=...) in Python. "
                f"({self.unknown or 'Nothing tells what it takes.'})"
            )
        return super().__getattr__(name)

    # ---- what goes in and what comes out ------------------------------------------------------------------------

    def _try_out(self, original: nn.Module) -> None:
        """Find `out_features` where the network tells, and `in_shape` where it takes one only."""
        self.unknown = ""
        if "in_shape" in self.__dict__:
            found = {self.in_shape: self._features_of(self.in_shape, "which is its in_shape")}
        else:
            found = self._tried(_shapes(self.network))
        widths = sorted({prod(features) for features in found.values()})
        declared = getattr(original, "out_features", None)
        if len(widths) == 1:
            self.out_features = widths[0]
        elif not widths and isinstance(declared, int):
            self.out_features = declared
        elif widths:
            self.unknown = "; ".join(f"{prod(features)} for {shape}" for shape, features in found.items()) + "."
        if found:
            self._check_rows(next(iter(found)))
        if len(found) == 1:
            self.in_shape = next(iter(found))
        if len(set(found.values())) == 1 and len(features := next(iter(found.values()))) == 3:
            self.map_shape = features

    def _tried(self, shapes: Iterable[tuple[int, ...]]) -> dict[tuple[int, ...], tuple[int, ...]]:
        """The shape of features for the first two of `shapes` that the network takes."""
        found: dict[tuple[int, ...], tuple[int, ...]] = {}
        for shape in shapes:
            try:
                features = self._features_of(shape, "which was tried")
            except ConfigError as error:
                if isinstance(error, NotFeatures):
                    raise
                self.unknown = str(error)
                continue
            found[shape] = features
            if len(found) == 2:
                break
        return found

    @torch.no_grad()
    def _features_of(self, shape: tuple[int, ...], says: str) -> tuple[int, ...]:
        """The shape of the features of one input, in evaluation mode."""
        try:
            features = self._evaluated(self._inputs(shape)[:2])
        except Exception as error:  # of whatever kind the user's code or torch raises
            raise ConfigError(self._refusal(shape, says, error)) from error
        return tuple(self._checked(features, 2).shape[1:])

    def _inputs(self, shape: tuple[int, ...]) -> Tensor:
        """Three inputs of this shape: the first word of a vocabulary throughout, or noise of its own."""
        weight = next((p for p in self.parameters() if p.is_floating_point()), torch.empty(0))
        if isinstance(_first_layer(self.network), nn.Embedding | nn.EmbeddingBag):
            return torch.zeros(3, *shape, dtype=torch.long, device=weight.device)
        return torch.rand(3, *shape, generator=torch.Generator().manual_seed(0)).to(weight)

    def _evaluated(self, x: Tensor) -> Any:
        """What the network returns in evaluation mode."""
        modes = [(layer, layer.training) for layer in self.modules()]
        try:
            return self.eval().network(self._as_taken(x))
        finally:
            for layer, mode in modes:
                layer.training = mode

    @torch.no_grad()
    def _check_rows(self, shape: tuple[int, ...]) -> None:
        """Say where the features of an input are not its own, apart from layers that normalise by batch.

        So it is where a recurrent layer or attention takes the batch for the sequence, as it does by default.
        """
        x = self._inputs(shape)
        if "transductive" in norm_protocol(self.network):
            return
        together, fewer = self._evaluated(x)[1:], self._evaluated(x[1:])
        if not torch.allclose(together, fewer, rtol=1e-3, atol=1e-3 * float(together.abs().max())):
            log.warning(
                "%s gives an input other features where other inputs are beside it. If it is not meant to: recurrent "
                "layers and attention want batch_first=True.",
                self.name,
            )

    def _refusal(self, shape: tuple[int, ...], says: str, error: Exception) -> str:
        if self.channels is not None and len(shape) == 3 and shape[0] not in (1, self.channels):
            remedy = f"it takes images of {self.channels} channels"
        elif TOO_SMALL.search(str(error)):
            remedy = "they are too small for its strides: take larger images, or a network that strides less"
        else:
            remedy = "take a network for such inputs, or one that brings them into its shape itself"
        return f"{self.name} cannot take inputs of shape {shape}, {says}; {remedy}. (torch: {_short(error)})"

    def _checked(self, features: Any, rows: int) -> Tensor:
        if not isinstance(features, Tensor):
            raise NotFeatures(
                f"{self.name} returns a {type(features).__name__}, not one tensor of features; give a network whose "
                "forward returns the features alone, `return out[0]` say."
            )
        if features.ndim < 2 or len(features) != rows:
            raise NotFeatures(
                f"{self.name} returns shape {tuple(features.shape)} for {rows} inputs, not a row of features for each; "
                "the first axis must be that of the batch (batch_first=True)."
            )
        return features

    def _repeats(self, shape: Sequence[int]) -> bool:
        return self.channels == 3 and len(shape) == 3 and shape[0] == 1

    def _as_taken(self, x: Tensor) -> Tensor:
        """Grey images in colour, and those for a network of vectors flat."""
        if self._repeats(x.shape[1:]):
            return x.expand(-1, 3, -1, -1)
        return x.flatten(1) if len(getattr(self, "in_shape", ())) == 1 else x

    # ---- what is made of the network ----------------------------------------------------------------------------

    def _copy(self, network: nn.Module) -> nn.Module:
        if isinstance(network, torch.jit.ScriptModule) or hasattr(network, "_orig_mod"):
            raise ConfigError(
                f"{self.name} is compiled, and its code cannot be seen; give the module that it was made of. (To "
                "compile a training: compile_training: true.)"
            )
        if any(isinstance(parameter, UninitializedParameter) for parameter in network.parameters()):
            raise ConfigError(
                f"{self.name} has lazy layers, whose sizes are not known yet; put an input through it first: "
                "network(torch.zeros(2, channels, height, width))."
            )
        try:
            return deepcopy(network)
        except Exception as error:
            raise ConfigError(f"{self.name} cannot be copied, as a backbone is: {reason(error)}") from error

    def _leave_out(self, name: str | None) -> str:
        if name is None:
            return ""
        try:
            layer = self.network.get_submodule(name)
        except AttributeError:
            there = ", ".join(name for name, _ in self.network.named_children())
            raise ConfigError(f"cut={name}: {self.name} has no such layer; it has {there} and theirs.") from None
        replace_layer(self.network, name, nn.Identity())
        return f"without {name} ({type(layer).__name__})"


class NotFeatures(ConfigError):
    """What a network returns, whatever it is given."""


class Timm(Wrapped):
    """A network of timm, by its name there.

    Args:
        name: such as `vit_tiny_patch16_224`.
        pretrained: with its weights, which are downloaded once.
        in_shape, norm: of `Wrapped`.
        options: other arguments of `timm.create_model`, such as `img_size` or `in_chans`.
    """

    def __init__(
        self,
        name: str,
        pretrained: bool = False,
        in_shape: Sequence[int] | None = None,
        norm: NormProtocol = "transductive",
        options: dict[str, Any] | None = None,
    ) -> None:
        timm = need("timm", "Timm")
        if not timm.is_model(name):
            near = timm.list_models(f"*{name.partition('_')[0]}*")[:3]
            raise ConfigError(f"timm has no network {name}; near: {', '.join(near) or 'none'}. All: timm.list_models()")
        network = timm.create_model(name, pretrained=pretrained, num_classes=0, **(options or {}))
        super().__init__(network, in_shape, None, norm)


def as_backbone(network: nn.Module, norm: NormProtocol) -> Backbone:
    """A backbone as it is; any other network `Wrapped`, normalised by `norm`."""
    if isinstance(network, Backbone):
        return network
    if not isinstance(network, nn.Module):
        remedy = f"give {network.__name__}(), not the class" if isinstance(network, type) else "give a network"
        raise ConfigError(f"a backbone is a torch.nn.Module, not {type(network).__name__}; {remedy}.")
    return Wrapped(network, norm=norm)


def _first_layer(network: nn.Module) -> nn.Module | None:
    """In the order in which layers were made, the first that says what it takes."""
    return next((layer for layer in network.modules() if isinstance(layer, FIRST)), None)


def _shapes(network: nn.Module) -> Iterator[tuple[int, ...]]:
    """Of inputs that a network may take, by its first layer."""
    first = _first_layer(network)
    if isinstance(first, nn.Conv2d):
        size = getattr(network, "image_size", None)  # of those that take one only
        yield from ((first.in_channels, size, size) for size in ((size,) if isinstance(size, int) else SIZES))
    elif isinstance(first, nn.Linear):
        yield (first.in_features,)
    elif isinstance(first, nn.RNNBase):  # images row by row
        yield from ((*channels, first.input_size, first.input_size) for channels in ((1,), (3,), ()))


def _classifier(network: nn.Module) -> str | None:
    """The last linear layer (or convolution) of the head, in a network of torchvision."""
    if not any(cls.__module__.startswith("torchvision.models.") for cls in type(network).__mro__):
        return None
    heads = [name for name in CLASSIFIERS if isinstance(getattr(network, name, None), nn.Module)]
    layers = [
        ".".join(filter(None, (head, name)))
        for head in heads
        for name, layer in network.get_submodule(head).named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d)
    ]
    return layers[-1] if layers else None


def _out_of_place(network: nn.Module) -> int:
    layers = [layer for layer in network.modules() if getattr(layer, "inplace", False) is True]
    for layer in layers:
        layer.inplace = False  # type: ignore[assignment]
    return len(layers)


class WithoutCuDNN:
    """Within an inner loop, a recurrent layer without cuDNN."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        inner = TransformType.Grad in active_transforms()
        with torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled and not inner):
            return super().forward(*args, **kwargs)  # type: ignore[misc]


class PlainRNN(WithoutCuDNN, nn.RNN): ...


class PlainLSTM(WithoutCuDNN, nn.LSTM): ...


class PlainGRU(WithoutCuDNN, nn.GRU): ...


PLAIN: dict[type, type] = {nn.RNN: PlainRNN, nn.LSTM: PlainLSTM, nn.GRU: PlainGRU}


def _without_cudnn(network: nn.Module) -> int:
    layers = [layer for layer in network.modules() if type(layer) in PLAIN]
    for layer in layers:
        layer.__class__ = PLAIN[type(layer)]
    return len(layers)


def _counted(layers: int, what: str) -> str:
    return f"{layers} layer{'s' if layers > 1 else ''} {what}" if layers else ""


def _short(error: Exception) -> str:
    said = reason(error)
    return f"{said[:157]}..." if len(said) > 160 else said
