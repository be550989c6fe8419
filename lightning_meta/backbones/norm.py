"""Batch normalisation for episodes: right under `vmap` and second derivatives, with a stated protocol."""

from contextlib import ExitStack
from typing import Literal

import torch
from torch import Tensor, nn
from torch._C._functorch import TransformType
from torch.func import functional_call
from torch.nn import functional as F

from lightning_meta.core.task_map import active_transforms
from lightning_meta.errors import ConfigError

NormProtocol = Literal["transductive", "inductive", "running", "per-step running"]


class EpisodicBatchNorm2d(nn.Module):
    """Normalise the channels of `(B, C, H, W)`; the protocol says whose statistics are used.

    - `transductive`: those of the batch at hand, in training and evaluation (MAML's paper). Query predictions then
      depend on the other query examples: more queries per class, other numbers.
    - `inductive`: the support's, for the query set too. See `support_statistics`.
    - `running`: the batch's in training and their moving average in evaluation, as `nn.BatchNorm2d` (Prototypical
      Networks' paper). Inductive as well. Only for algorithms that take no gradient within a task, mapped by `loop`.
    - `per-step running`: moving averages for each inner step, which MAML++ keeps and puts here. Inductive as well.

    Under vmap the affine part is applied outside the native operation: with it inside, vmap computes silently wrong
    second derivatives (relative error up to 5e-2 in float64 on torch 2.13-2.15) and fails under bf16 autocast. Under
    bf16-mixed all of it is computed in fp32, which brings the meta-gradient closer to that of fp32.
    """

    mean: Tensor | None
    var: Tensor | None
    running_mean: Tensor
    running_var: Tensor

    def __init__(
        self, channels: int, protocol: NormProtocol = "transductive", eps: float = 1e-5, momentum: float = 0.1
    ) -> None:
        super().__init__()
        self.protocol, self.eps, self.momentum = protocol, eps, momentum
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        # Filled for one call by functional_call(network, params | support_statistics(...), query.x).
        self.register_buffer("mean", None)
        self.register_buffer("var", None)
        if protocol == "running":
            self.register_buffer("running_mean", torch.zeros(channels))
            self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(torch.promote_types(x.dtype, self.weight.dtype))  # under bf16-mixed, convolutions give bfloat16
        if self.protocol == "running":
            normalised = self._normalise_running(x)
        elif self.mean is not None and self.var is not None:
            normalised = (x - self.mean[:, None, None]) * (self.var + self.eps).rsqrt()[:, None, None]
        else:
            if TransformType.Vmap not in active_transforms():
                return F.batch_norm(x, None, None, self.weight, self.bias, training=True, eps=self.eps)
            normalised = F.batch_norm(x, None, None, training=True, eps=self.eps)
        return torch.addcmul(self.bias[:, None, None], normalised, self.weight[:, None, None])

    def _normalise_running(self, x: Tensor) -> Tensor:
        try:
            return F.batch_norm(
                x, self.running_mean, self.running_var, training=self.training, momentum=self.momentum, eps=self.eps
            )
        except RuntimeError as error:
            raise ConfigError(
                "norm protocol 'running' updates statistics in place, which torch.func cannot do inside an inner loop "
                "or vmap; take 'transductive' or 'inductive', or set task_mode: loop for an algorithm without an inner "
                f"loop. (torch: {str(error).splitlines()[0]})"
            ) from error

    def extra_repr(self) -> str:
        return f"{len(self.weight)}, protocol={self.protocol}"


def batch_norm_layers(network: nn.Module) -> dict[str, EpisodicBatchNorm2d]:
    return {name: layer for name, layer in network.named_modules() if isinstance(layer, EpisodicBatchNorm2d)}


def norm_protocol(network: nn.Module) -> str:
    """The protocol(s) of a network's normalisation layers, as stated beside every result."""
    return "/".join(sorted({layer.protocol for layer in batch_norm_layers(network).values()})) or "no batch statistics"


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
                var, mean = torch.var_mean(inputs[0], dim=(0, 2, 3), correction=0)
                statistics[f"{name}.mean"], statistics[f"{name}.var"] = mean, var

            hooks.enter_context(layer.register_forward_pre_hook(keep))
        functional_call(network, params, (x,))
    return statistics
