"""A recorded step is the same step. Here the recording is played by calling the function again, on the CPU."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lightning_meta.core.cuda_graph import MOST_RECORDINGS, CannotRecord, RecordedStep, Schedule, with_known_gradient


def by_calling(run: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
    """As a CUDA graph: what is computed is written to where it was at first, and autograd does not see it."""
    results = run()

    def replay() -> None:
        with torch.no_grad():
            for place, value in zip(tree_leaves(results), tree_leaves(run_again()), strict=True):
                if place is not None:
                    place.data.copy_(value)

    def run_again() -> Any:
        with torch.enable_grad():
            return run()

    return results, replay


class Noisy(nn.Module):
    """All that a step may do: draw noise, keep an average, leave a parameter out, follow a schedule."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.unused = nn.Linear(3, 3), nn.Parameter(torch.ones(2))
        self.register_buffer("average", torch.zeros(3))
        self.calls = 0

    def means(self, tasks: tuple[Tensor, Tensor], schedule: Schedule) -> dict[str, Tensor]:
        self.calls += 1
        x, y = tasks
        out = self.linear(x + 0.1 * torch.randn_like(x)).tanh()
        self.average.lerp_(out.detach().mean(0), 0.1)
        loss = (out - y).square().mean() * schedule["weight"]
        return {"loss": loss if schedule["plain"] else loss + out.sum(), "size": out.abs().mean()}


def batches(count: int, size: int = 4) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(size, 3, generator=generator).double(), torch.randn(size, 3, generator=generator).double())
        for _ in range(count)
    ]


def schedules(count: int) -> list[Schedule]:
    return [{"weight": 1.0 / (step + 1), "plain": step < 4} for step in range(count)]


def trained(recorded: bool, steps: int = 6) -> tuple[Noisy, list[dict[str, Tensor]]]:
    torch.manual_seed(0)
    module = Noisy().double()
    step = RecordedStep(module, module.means, by_calling) if recorded else module.means
    optimizer, logs = torch.optim.Adam(module.parameters(), lr=0.01), []
    for number, (tasks, schedule) in enumerate(zip(batches(steps), schedules(steps), strict=True)):
        torch.manual_seed(number)
        means = step(tasks, schedule)
        logs.append({name: value.detach().clone() for name, value in means.items()})
        optimizer.zero_grad()
        means["loss"].backward()
        optimizer.step()
    return module, logs


def test_weights_buffers_noise_and_logs_are_those_of_plain_steps() -> None:
    module, logs = trained(recorded=True)
    expected, expected_logs = trained(recorded=False)
    torch.testing.assert_close(module.state_dict(), expected.state_dict(), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(logs, expected_logs, rtol=1e-12, atol=1e-14)
    assert module.unused.grad is None


def test_it_is_recorded_again_for_other_shapes_and_constants_but_not_for_other_numbers() -> None:
    module = Noisy().double()
    records = []

    def record(run: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
        records.append(run)
        return by_calling(run)

    step = RecordedStep(module, module.means, record)
    for schedule in schedules(6):
        step(batches(1)[0], schedule)
    assert len(records) == 2  # `plain` changed once, `weight` always
    step(batches(1, size=5)[0], schedules(1)[0])
    assert len(records) == 3
    module.linear.bias.requires_grad_(False)
    loss = step(batches(1, size=5)[0], schedules(1)[0])["loss"]
    assert len(records) == 4
    loss.backward()
    assert module.linear.bias.grad is None


def test_recording_leaves_gradients_buffers_and_generators_alone() -> None:
    module, heard = Noisy().double(), []
    module.linear.weight.register_hook(heard.append)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    state = torch.get_rng_state()

    def record(run: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
        return run(), lambda: None

    step = RecordedStep(module, module.means, record)
    loss = step(batches(1)[0], schedules(1)[0])["loss"]
    torch.testing.assert_close(module.state_dict(), before, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), state)
    assert module.linear.weight.grad is None and not heard
    loss.backward()
    assert len(heard) == 1


def test_a_known_gradient_goes_on_and_is_read_in_the_backward_pass() -> None:
    value, gradient = torch.tensor(2.0), torch.tensor([1.0, 2.0])
    source = torch.tensor([1.0, 1.0], requires_grad=True)
    loss = with_known_gradient(value, [source.exp()], [gradient])
    value.fill_(7)  # by the next replay
    assert loss == 2
    (3 * loss).backward()
    torch.testing.assert_close(source.grad, 3 * gradient * torch.e)


def test_a_buffer_that_is_replaced_is_refused() -> None:
    class Replaces(Noisy):
        def means(self, tasks: Any, schedule: Schedule) -> dict[str, Tensor]:
            self.average = self.average + 1
            return super().means(tasks, schedule)

    module = Replaces().double()
    with pytest.raises(CannotRecord, match="a new tensor to the buffer average"):
        RecordedStep(module, module.means, by_calling)(batches(1)[0], schedules(1)[0])


def test_the_number_of_recordings_is_bounded() -> None:
    module = Noisy().double()
    step = RecordedStep(module, module.means, by_calling)
    with pytest.raises(CannotRecord, match=f"more than {MOST_RECORDINGS} shapes"):
        for size in range(1, MOST_RECORDINGS + 2):
            step(batches(1, size)[0], schedules(1)[0])
