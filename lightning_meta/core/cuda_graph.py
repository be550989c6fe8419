"""A training step as a CUDA graph: its kernels are recorded once and from then on launched all together.

A step of a small network is thousands of kernels of microseconds each, and launching them one by one takes longer than
running them. What a graph repeats is fixed: kernels, shapes and addresses in memory. So tasks are copied to where the
recording read them, and whatever else changes from step to step has to be named (`Schedule`).
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call

from lightning_meta.compat import tree_flatten, tree_unflatten

# What a step depends on beside parameters, buffers, tasks and noise, by name. A float may be another one in every
# step: a recording gets it as a tensor. Anything else is part of what is recorded.
Schedule = dict[str, Any]
Means = dict[str, Tensor]  # `loss`, a scalar, among them
# Records a function: what it returned, and a function that computes those tensors anew in place.
Record = Callable[[Callable[[], Any]], tuple[Any, Callable[[], None]]]

WARM_UPS = 3  # runs before the recording, in which libraries choose algorithms and allocate what they keep
MOST_RECORDINGS = 32  # each holds the memory of a whole step


class CannotRecord(RuntimeError):
    """The step does what a CUDA graph cannot repeat."""


class Recording(NamedTuple):
    """One recorded step.

    Attributes:
        tasks: leaves of the meta-batch that it reads.
        numbers: the floats of the schedule that it reads.
        means: what it computes.
        trained: the parameters that the loss depends on.
        gradients: theirs.
        replay: computes means and gradients anew.
    """

    tasks: list[Tensor]
    numbers: dict[str, Tensor]
    means: Means
    trained: list[Tensor]
    gradients: list[Tensor]
    replay: Callable[[], None]


class RecordedStep:
    """A function of tasks, whose `loss` carries its gradient; recorded at the first call with tasks of a new shape.

    Recording leaves the module's parameters and buffers and the state of random number generators as they are. What
    `means` draws is drawn anew in every call, from the state that the generator has then.

    Args:
        module: holds the parameters.
        means: of tasks and schedule; calls the module. Of the tensors that it computes, `loss` is differentiated.
        record: how a function is recorded; tests do without a GPU.
    """

    def __init__(
        self, module: nn.Module, means: Callable[[Any, Schedule], Means], record: Record | None = None
    ) -> None:
        self.module, self.means, self.record = module, means, record or record_cuda_graph
        self.params = dict(module.named_parameters())
        self.recordings: dict[Any, Recording] = {}

    def __call__(self, tasks: Any, schedule: Schedule) -> Means:
        """The means. Those beside `loss` are overwritten by the next call."""
        leaves, _ = tree_flatten(tasks)
        numbers = {name: value for name, value in schedule.items() if isinstance(value, float)}
        constants = {name: value for name, value in schedule.items() if name not in numbers}
        shapes = tuple((leaf.shape, leaf.dtype) for leaf in leaves)
        key = (shapes, *constants.items(), *(param.requires_grad for param in self.params.values()))
        if key not in self.recordings:
            if len(self.recordings) == MOST_RECORDINGS:
                raise CannotRecord(f"meta-batches have more than {MOST_RECORDINGS} shapes, each with its own graph")
            self.recordings[key] = self._record(tasks, numbers, constants)
        recording = self.recordings[key]
        for place, leaf in zip(recording.tasks, leaves, strict=True):
            place.copy_(leaf)
        for name, value in numbers.items():
            recording.numbers[name].fill_(value)
        recording.replay()
        loss = with_known_gradient(recording.means["loss"], recording.trained, recording.gradients)
        return recording.means | {"loss": loss}

    def _record(self, tasks: Any, numbers: dict[str, float], constants: Schedule) -> Recording:
        leaves, structure = tree_flatten(tasks)
        leaves = [leaf.clone() for leaf in leaves]
        like = next(param for param in self.params.values() if param.is_floating_point())
        places = {name: torch.full((), value, dtype=like.dtype, device=like.device) for name, value in numbers.items()}
        step = _Step(self.module, self.means)

        def run() -> tuple[Means, tuple[Tensor | None, ...]]:
            # The parameters' memory under leaves of their own: the gradient is taken here, and nobody who listens to
            # the parameters themselves, as DDP does, hears of it.
            own = {
                f"module.{name}": param.detach().requires_grad_(param.requires_grad)
                for name, param in self.params.items()
            }
            with _autocast_without_cache(like.device.type):
                means = functional_call(step, own, (tree_unflatten(leaves, structure), places | constants))
            wanted = [param for param in own.values() if param.requires_grad]
            gradients = torch.autograd.grad(means["loss"], wanted, allow_unused=True)
            return {name: value.detach() for name, value in means.items()}, gradients

        buffers = dict(self.module.named_buffers())
        before = {name: buffer.clone() for name, buffer in buffers.items()}
        with torch.random.fork_rng(devices=[like.device.index] if like.is_cuda else []):
            (means, gradients), replay = self.record(run)
        for name, buffer in self.module.named_buffers():
            if buffer is not buffers[name]:
                raise CannotRecord(f"it assigns a new tensor to the buffer {name} in place of changing it")
            buffer.copy_(before[name])
        wanted = [param for param in self.params.values() if param.requires_grad]
        found = {param: gradient for param, gradient in zip(wanted, gradients, strict=True) if gradient is not None}
        return Recording(leaves, places, means, [*found], [*found.values()], replay)


class _Step(nn.Module):
    """A module and a function that calls it, for `functional_call`."""

    def __init__(self, module: nn.Module, means: Callable[[Any, Schedule], Means]) -> None:
        super().__init__()
        self.module, self.means = module, means

    def forward(self, tasks: Any, schedule: Schedule) -> Means:
        return self.means(tasks, schedule)


def _autocast_without_cache(device: str) -> torch.autocast:
    """The precision that holds already, but rounded weights are not kept: a recording must round them each time."""
    dtype, enabled = torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)
    return torch.autocast(device, dtype, enabled, cache_enabled=False)


def record_cuda_graph(run: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
    """Record what `run` launches on the current device.

    Raises:
        CannotRecord: it waits for the GPU, or copies from the CPU.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UPS):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    try:
        # Other threads, which draw tasks or watch over the GPU, go on meanwhile.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            results = run()
    except torch.cuda.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise CannotRecord(str(error).partition("\n")[0]) from error
    return results, graph.replay


def with_known_gradient(value: Tensor, params: Sequence[Tensor], gradients: Sequence[Tensor]) -> Tensor:
    """A copy of the scalar `value` as a function of `params` that has these gradients, to be asked for once.

    They are read in the backward pass, and copied: `value` and `gradients` may be overwritten after it.
    """
    return _KnownGradient.apply(value, gradients, *params)


class _KnownGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: Sequence[Tensor], *params: Tensor) -> Tensor:
        ctx.gradients = gradients
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_value: Tensor) -> tuple[Tensor | None, ...]:
        # All in one kernel, or two.
        return None, None, *torch._foreach_mul(list(ctx.gradients), grad_value)
