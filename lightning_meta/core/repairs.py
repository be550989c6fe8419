"""Operations of torch that cannot be differentiated twice as torch does them, and what is done in their place.

`REPAIRS` is the one place that knows. Everything else in torch was found right, or is refused by torch in words; each
row has a test that fails when torch has mended the operation and the row can go.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from lightning_meta.compat import NormBase, TransformType
from lightning_meta.core.task_map import active_transforms

OURS = __name__.partition(".")[0]


class Repair(NamedTuple):
    """`instead` computes the same, to rounding, where one of the transforms `under` is active."""

    fault: str
    under: set[TransformType]
    instead: Callable[..., Any]


def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    return _scaled(F.layer_norm(input, normalized_shape, None, None, eps), weight, bias)


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    normalised = F.batch_norm(input, running_mean, running_var, None, None, training, momentum, eps)
    return _scaled(normalised, *_per_channel(input, weight, bias))


def instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    normalised = F.instance_norm(input, running_mean, running_var, None, None, use_input_stats, momentum, eps)
    return _scaled(normalised, *_per_channel(input, weight, bias))


def native_layer_norm(*args: Any, cudnn_enable: bool = True, **kwargs: Any) -> Tensor:
    return layer_norm(*args[:5], **kwargs)


def native(of_functional: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Of `torch.batch_norm` and its like, which `torch.nn.functional` calls: other places for the same arguments."""

    def of_torch(
        input: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        training: bool,
        momentum: float,
        eps: float,
        cudnn_enabled: bool,
    ) -> Tensor:
        return of_functional(input, running_mean, running_var, weight, bias, training, momentum, eps)

    return of_torch


def unfused(attention: Callable[..., Any]) -> Callable[..., Any]:
    def by_matrix_products(*args: Any, **kwargs: Any) -> Any:
        with sdpa_kernel(SDPBackend.MATH):
            return attention(*args, **kwargs)

    return by_matrix_products


def hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:
    return F.relu6(input + 3) / 6


def _per_channel(x: Tensor, *affine: Tensor | None) -> list[Tensor | None]:
    """For `x` of shape (B, C, ...)."""
    return [value if value is None else value.reshape(-1, *(1 for _ in x.shape[2:])) for value in affine]


def _scaled(normalised: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """In the precision of the input, as the fused operations."""
    scaled = normalised if weight is None else normalised * weight
    return (scaled if bias is None else scaled + bias).to(normalised.dtype)


# Second derivatives of the scale and shift take the saved statistics for constants. Relative errors of a meta-gradient
# in float64 on torch 2.11 and 2.15: up to 5e-2; right with the affine part outside, where the operation has none.
AFFINE = "under vmap, second derivatives are wrong without a word"
ONCE = "it can be differentiated once"
FUSED = "the fused kernels have no second derivative, and vmap takes them one by one"
REPAIRS: dict[Callable[..., Any], Repair] = {
    F.layer_norm: Repair(AFFINE, {TransformType.Vmap}, layer_norm),
    F.batch_norm: Repair(AFFINE, {TransformType.Vmap}, batch_norm),
    F.instance_norm: Repair(AFFINE, {TransformType.Vmap}, instance_norm),
    torch.layer_norm: Repair(AFFINE, {TransformType.Vmap}, native_layer_norm),
    torch.batch_norm: Repair(AFFINE, {TransformType.Vmap}, native(batch_norm)),
    torch.instance_norm: Repair(AFFINE, {TransformType.Vmap}, native(instance_norm)),
    F.scaled_dot_product_attention: Repair(
        FUSED, {TransformType.Vmap, TransformType.Grad}, unfused(F.scaled_dot_product_attention)
    ),
    F.multi_head_attention_forward: Repair(
        FUSED, {TransformType.Vmap, TransformType.Grad}, unfused(F.multi_head_attention_forward)
    ),
    F.hardsigmoid: Repair(ONCE, {TransformType.Grad}, hardsigmoid),
}
LAYERS = (nn.LayerNorm, NormBase, nn.MultiheadAttention, nn.Hardsigmoid)  # of `torch.nn`, which call them


class Repaired(TorchFunctionMode):
    """Within the block, operations of `REPAIRS` are replaced wherever they are called from."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        repair = REPAIRS.get(func)
        if repair is not None and repair.under & active_transforms():
            func = repair.instead
        return func(*args, **(kwargs or {}))


def repaired(module: nn.Module) -> AbstractContextManager:
    """Where the hooks of `module` run: `Repaired`, unless no code in it could call one of the operations.

    Being there costs a tenth of a step of the smallest networks, so it is left out for layers of our own, which mind
    the affine part themselves, and for those of `torch.nn` that are known.
    """
    if torch.compiler.is_compiling() or any(map(_may_call, module.modules())):
        return Repaired()
    return nullcontext()


def _may_call(layer: nn.Module) -> bool:
    home = type(layer).__module__
    return isinstance(layer, LAYERS) or not home.startswith((f"{OURS}.", "torch.nn.modules."))
