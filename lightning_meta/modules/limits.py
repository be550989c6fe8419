"""What `torch.func` cannot do with a network, in one line that names the layer and the remedy."""

import re
from types import TracebackType
from typing import NamedTuple

from torch import nn

from lightning_meta.errors import ConfigError


class Limit(NamedTuple):
    """How torch says it, and what there is to do. `{layer}` stands for the layer where it happened."""

    words: str
    remedy: str


# In this order: the first whose words are in torch's message.
LIMITS = (
    Limit(
        r"would mutate a captured Tensor|running_var, which will be updated in place",
        "{layer} changes its buffers in place, which cannot be done within an inner loop. Running statistics: take "
        "EpisodicBatchNorm2d, nn.GroupNorm, or track_running_stats=False",
    ),
    Limit(
        r"derivative for .* is not implemented|Double backwards? is not supported",
        "{layer} has no second derivative, which this algorithm takes. Take another layer, or first_order: true if the "
        "algorithm has it",
    ),
    Limit(
        r"torch\.func|functorch|grad, etc\)|vmap",
        "{layer} does what cannot be done within an inner loop by torch.func. Take another layer, or an algorithm that "
        "adapts no backbone, such as ProtoNet",
    ),
)


def explained(error: RuntimeError, module: nn.Module) -> ConfigError | None:
    """`error` in terms of a layer of `module`, where it is a limit of torch's and not a mistake in the network."""
    found = next((limit for limit in LIMITS if re.search(limit.words, str(error))), None)
    return ConfigError(f"{found.remedy.format(layer=layer_of(error, module))}. {quoted(error)}") if found else None


def layer_of(error: BaseException, module: nn.Module) -> str:
    """The innermost layer of `module` that was being called, as `learner.0.norm (BatchNorm2d)`."""
    names = {id(layer): name for name, layer in module.named_modules() if name}
    found = "a layer of the network"
    trace: TracebackType | None = error.__traceback__
    while trace is not None:
        layer = trace.tb_frame.f_locals.get("self")
        if id(layer) in names:
            found = f"{names[id(layer)]} ({type(layer).__name__})"
        trace = trace.tb_next
    return found


def quoted(error: BaseException) -> str:
    """The first sentence of what torch said."""
    said = str(error).strip().partition("\n")[0]
    return f"(torch: {said[:157]}...)" if len(said) > 160 else f"(torch: {said})"
