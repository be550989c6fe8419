"""Batch normalisation for episodes: right under `vmap` and second derivatives, with a stated protocol."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce
from torch.func import functional_call
from torch.nn import functional as F

from lightning_meta.compat import BatchNormBase, InstanceNormBase, TransformType
from lightning_meta.core.task_map import active_transforms
from lightning_meta.errors import ConfigError

NormProtocol = Literal["transductive", "inductive", "running", "per-step running"]


class MetaBatch(NamedTuple):
    """The rows of a batch that holds the images of `tasks` tasks: first all support sets, `support` rows in all."""

    tasks: int
    support: int


class EpisodicBatchNorm2d(nn.Module):
    """Normalise the channels of `(B, C, H, W)`, or of other `(B, C, ...)`; the protocol says whose statistics are used.

    - `transductive`: those of the batch at hand, in training and evaluation (MAML's paper). Query predictions then
      depend on the other query examples: more queries per class, other numbers.
    - `inductive`: the support's, for the query set too. See `support_statistics`.
    - `running`: the batch's in training and their moving average in evaluation, as `nn.BatchNorm2d` (Prototypical
      Networks' paper). Inductive as well. Only for algorithms that take no gradient within a task, not under vmap.
    - `per-step running`: moving averages for each inner step, which MAML++ keeps and puts here. Inductive as well.

    The batch is one support or query set, unless `embedding_pass` says that it holds a whole meta-batch. Then the first
    two protocols keep the tasks apart, and `running` takes all of them together.

    Attributes:
        synchronised: in training under `running`, take the statistics of the batches of all ranks (`Trainer(
            sync_batchnorm=True)`). Otherwise each rank normalises its own share of the meta-batch, as is usual, so that
            two ranks do not train exactly as one.
        per_step: its scale and shift belong to MAML++, which learns them for each inner step; its own have no part.

    Under vmap the affine part is applied outside the native operation: with it inside, vmap computes silently wrong
    second derivatives (relative error up to 5e-2 in float64 on torch 2.13-2.15) and fails under bf16 autocast. Under
    bf16-mixed inputs of bfloat16 are taken as they are in embedding passes, where statistics are accumulated in fp32;
    elsewhere all is computed in fp32, which brings the meta-gradient of inner loops closer to that of fp32.
    """

    mean: Tensor | None
    var: Tensor | None
    running_mean: Tensor
    running_var: Tensor

    def __init__(
        self, channels: int, protocol: NormProtocol = "transductive", eps: float = 1e-5, momentum: float = 0.1
    ) -> None:
        super().__init__()
        self.protocol, self.eps, self.momentum, self.synchronised = protocol, eps, momentum, False
        self.per_step = False
        self.meta_batch: MetaBatch | None = None
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        # Filled for one call by functional_call(network, params | support_statistics(...), query.x).
        self.register_buffer("mean", None)
        self.register_buffer("var", None)
        if protocol == "running":
            self.register_buffer("running_mean", torch.zeros(channels))
            self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        if self.meta_batch is None:
            x = x.to(torch.promote_types(x.dtype, self.weight.dtype))  # under bf16-mixed, convolutions give bfloat16
        if self.protocol == "running":
            return self._normalise_running(x)
        if self.mean is not None and self.var is not None:
            return self._normalise_by(self.mean[None], self.var[None], x)
        if self.meta_batch is None:
            return self._normalise_set(x)
        return self._normalise_tasks(x, *self.meta_batch)

    def _normalise_tasks(self, x: Tensor, tasks: int, support: int) -> Tensor:
        """Each task by itself, the rows being those of a meta-batch."""
        sets = [x[:support], x[support:]]
        if x.device.type == "cpu":  # one after another is faster there
            return torch.cat(self._one_after_another(*(rows.chunk(tasks) for rows in sets)))
        sets = [rows.unflatten(0, (tasks, -1)) for rows in sets]
        sources = sets if self.protocol == "transductive" else sets[:1]
        statistics = [set_statistics(rows, (1, *range(3, rows.ndim))) for rows in sources]
        return torch.cat(
            [
                self._normalise_by(mean_TC[:, None], var_TC[:, None], rows).flatten(0, 1)
                for rows, (var_TC, mean_TC) in zip(sets, statistics * (2 // len(statistics)), strict=True)
            ]
        )

    def _one_after_another(self, supports: Sequence[Tensor], queries: Sequence[Tensor]) -> list[Tensor]:
        if self.protocol == "transductive":
            return [self._normalise_set(rows) for rows in (*supports, *queries)]
        statistics = [set_statistics(rows, (0, *range(2, rows.ndim))) for rows in supports]
        return [
            self._normalise_by(mean_C[None], var_C[None], rows)
            for rows, (var_C, mean_C) in zip((*supports, *queries), statistics * 2, strict=True)
        ]

    def _normalise_set(self, x: Tensor) -> Tensor:
        """By the statistics of the batch."""
        if TransformType.Vmap in active_transforms():
            normalised = F.batch_norm(x, None, None, training=True, eps=self.eps)
            return torch.addcmul(_as_channels(self.bias, x.ndim - 2), normalised, _as_channels(self.weight, x.ndim - 2))
        return F.batch_norm(x, None, None, self.weight, self.bias, training=True, eps=self.eps)

    def _normalise_by(self, mean: Tensor, var: Tensor, x: Tensor) -> Tensor:
        """By given statistics, which have the axes of `x` up to that of the channels, or 1 in their place."""
        scale = self.weight * (var + self.eps).rsqrt()
        shift = self.bias - mean * scale
        if mean.ndim == 2 and not active_transforms():  # in one pass over x
            zeros, ones = torch.zeros_like(self.weight), torch.ones_like(self.weight)
            return F.batch_norm(x, zeros, ones, scale.flatten(), shift.flatten(), training=False, eps=0.0)
        places = x.ndim - mean.ndim
        return torch.addcmul(_as_channels(shift, places), x, _as_channels(scale, places)).to(x.dtype)

    def _normalise_running(self, x: Tensor) -> Tensor:
        if self.training and self.synchronised and torch.distributed.is_initialized():
            return self._normalise_over_ranks(x)
        if not self.training and TransformType.Vmap in active_transforms():
            # cuDNN refuses maps of one channel that vmap lays out (torch 2.11)
            return self._normalise_by(self.running_mean[None], self.running_var[None], x)
        try:
            return F.batch_norm(
                x,
                self.running_mean,
                self.running_var,
                self.weight,
                self.bias,
                training=self.training,
                momentum=self.momentum,
                eps=self.eps,
            )
        except RuntimeError as error:
            raise ConfigError(
                "norm protocol 'running' updates statistics in place, which torch.func cannot do inside an inner loop "
                "or vmap; take 'transductive' or 'inductive', or set task_mode: loop for an algorithm without an inner "
                f"loop. (torch: {str(error).splitlines()[0]})"
            ) from error

    def _normalise_over_ranks(self, x: Tensor) -> Tensor:
        """As `nn.SyncBatchNorm`, which is for GPUs only."""
        values = at_least_fp32(x)
        count = values.new_tensor([x.numel() / x.shape[1]])
        axes = (0, *range(2, x.ndim))
        sums = torch.cat([values.sum(axes), values.square().sum(axes), count])
        total, squares, count = all_reduce(sums).split([x.shape[1], x.shape[1], 1])
        mean, var = total / count, squares / count - (total / count).square()
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * count / (count - 1), self.momentum)
        return self._normalise_by(mean[None], var[None], x)

    def extra_repr(self) -> str:
        return f"{len(self.weight)}, protocol={self.protocol}"


def _as_channels(values: Tensor, places: int) -> Tensor:
    """`(..., C)` for so many axes of places after the channels."""
    return values[(..., *[None] * places)]


def set_statistics(x: Tensor, axes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Biased variance and mean over axes, in fp32 or better."""
    return torch.var_mean(at_least_fp32(x), axes, correction=0)


def at_least_fp32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


@contextmanager
def embedding_pass(network: nn.Module, meta_batch: MetaBatch) -> Iterator[None]:
    """Within the block, a batch that `network` gets holds the images of a whole meta-batch."""
    layers = batch_norm_layers(network).values()
    for layer in layers:
        layer.meta_batch = meta_batch
    try:
        yield
    finally:
        for layer in layers:
            layer.meta_batch = None


def batch_norm_layers(network: nn.Module) -> dict[str, EpisodicBatchNorm2d]:
    return {name: layer for name, layer in network.named_modules() if isinstance(layer, EpisodicBatchNorm2d)}


class WithActivation(EpisodicBatchNorm2d):
    """Followed by a dropout and an activation, as in `timm.layers.BatchNormAct2d`."""

    def __init__(self, channels: int, protocol: NormProtocol, eps: float, momentum: float, *after: nn.Module) -> None:
        super().__init__(channels, protocol, eps, momentum)
        self.drop, self.act = after

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(x)))


def with_episodic_norm(network: nn.Module, protocol: NormProtocol) -> int:
    """Replace batch normalisation of torch's within a network, keeping scales, shifts and running averages.

    A layer without running averages cannot have the protocol `running` and gets `transductive`. One without scale and
    shift gets them, frozen at 1 and 0; one that averages over all batches (`momentum=None`), the usual momentum.

    Returns:
        how many layers there were.
    """
    made: dict[nn.Module, EpisodicBatchNorm2d] = {}  # a layer may stand in several places
    for name, layer in [*network.named_modules(remove_duplicate=False)]:
        if type(layer) in TORCH_BATCH_NORM or type(layer).__name__ == "BatchNormAct2d":
            if layer not in made:
                made[layer] = _episodic(layer, protocol)
            replace_layer(network, name, made[layer])
    return len(made)


TORCH_BATCH_NORM = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def _episodic(layer: Any, protocol: NormProtocol) -> EpisodicBatchNorm2d:
    if protocol == "running" and layer.running_mean is None:
        protocol = "transductive"
    arguments = layer.num_features, protocol, layer.eps, 0.1 if layer.momentum is None else layer.momentum
    after = (layer.drop, layer.act) if hasattr(layer, "act") else None
    episodic = WithActivation(*arguments, *after) if after else EpisodicBatchNorm2d(*arguments)
    if layer.running_mean is not None:
        episodic.to(layer.running_mean)
    if layer.affine:
        episodic.weight, episodic.bias = layer.weight, layer.bias
    else:
        episodic.weight.requires_grad_(False)
        episodic.bias.requires_grad_(False)
    if protocol == "running":
        episodic.running_mean.copy_(layer.running_mean)
        episodic.running_var.copy_(layer.running_var)
    return episodic.train(layer.training)


def replace_layer(network: nn.Module, name: str, layer: nn.Module) -> None:
    """Put `layer` where the layer `name` is, `features.0.norm` say."""
    parent, _, last = name.rpartition(".")
    setattr(network.get_submodule(parent), last, layer)


def norm_protocol(network: nn.Module) -> str:
    """The protocol(s) of a network's normalisation layers, ours and torch's, as stated beside every result."""
    found = {protocol for layer in network.modules() if (protocol := _protocol_of(layer))}
    return "/".join(sorted(found)) or "no batch statistics"


def _protocol_of(layer: nn.Module) -> str | None:
    """None: its output for an example does not depend on others."""
    if isinstance(layer, EpisodicBatchNorm2d):
        return layer.protocol
    if isinstance(layer, BatchNormBase):  # goes by its buffers in evaluation, whatever its option says
        return "transductive" if layer.running_mean is None else "running"
    return "running" if isinstance(layer, InstanceNormBase) and layer.track_running_stats else None


def support_statistics(network: nn.Module, params: dict[str, Tensor], support_x: Tensor) -> dict[str, Tensor]:
    """Mean and variance that each `inductive` layer of `network` sees on the support set, keyed as its buffers.

    `functional_call(network, params | statistics, query_x)` then normalises the query set with the support's
    statistics. Empty, at no cost, when no layer is inductive, so an algorithm calls it whatever the protocol.

    Args:
        network: holds `EpisodicBatchNorm2d` layers.
        params: the (adapted) parameters by name; {} uses the network's own.
        support_x: support inputs.
    """
    layers = {name: layer for name, layer in batch_norm_layers(network).items() if layer.protocol == "inductive"}
    return batch_statistics(network, params, support_x, layers) if layers else {}


def batch_statistics(
    network: nn.Module, params: dict[str, Tensor], x: Tensor, layers: dict[str, EpisodicBatchNorm2d]
) -> dict[str, Tensor]:
    """Mean and (biased) variance `(C,)` of what each of the `layers` of `network` gets to see for the inputs `x`."""
    statistics: dict[str, Tensor] = {}
    with ExitStack() as hooks:
        for name, layer in layers.items():

            def keep(_: nn.Module, inputs: tuple[Tensor], name: str = name) -> None:
                var, mean = set_statistics(inputs[0], (0, *range(2, inputs[0].ndim)))
                statistics[f"{name}.mean"], statistics[f"{name}.var"] = mean, var

            hooks.enter_context(layer.register_forward_pre_hook(keep))
        functional_call(network, params, (x,))
    return statistics
