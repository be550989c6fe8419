import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch

from lightning_meta.core import Batch, TaskOutput, choose_mode, loop_with_gradients, map_tasks, with_gradient
from lightning_meta.core.task_map import active_transforms


@pytest.mark.parametrize("chunk_size", [None, 2])
def test_vmap_chunks_and_loop_agree_on_nested_results(chunk_size: int | None) -> None:
    batch = Batch(torch.randn(5, 3, 2), torch.randn(5, 3))

    def fn(task: Batch) -> dict[str, torch.Tensor]:
        return {"sum": task.x.sum(), "product": task.x.T @ task.y}

    mapped = map_tasks(fn, batch, mode="vmap", chunk_size=chunk_size)
    looped = map_tasks(fn, batch, mode="loop")
    assert mapped["product"].shape == (5, 2)
    for name in mapped:
        torch.testing.assert_close(mapped[name], looped[name])


def test_random_operations_differ_between_tasks() -> None:
    noise = map_tasks(lambda x: x + torch.rand(()), torch.zeros(4), mode="vmap")
    assert noise.unique().numel() == 4


@pytest.mark.parametrize(
    ("mode", "shape", "expected"),
    [
        ("auto", (1, 5, 1, 28, 28), "loop"),
        ("auto", (32, 5, 1, 28, 28), "vmap"),
        ("auto", (32, 75, 1, 28, 28), "loop"),
        ("vmap", (1, 75, 1, 28, 28), "vmap"),
        ("loop", (32, 5, 1, 28, 28), "loop"),
    ],
)
def test_auto_mode_follows_the_size_of_a_task(mode: str, shape: tuple[int, ...], expected: str) -> None:
    assert choose_mode(mode, torch.empty(shape)) == expected


def weighted(weight: torch.Tensor) -> Callable[[torch.Tensor, torch.Tensor], TaskOutput]:
    """A loss that depends on the tasks and on a weight beside them."""

    def fn(x: torch.Tensor, y: torch.Tensor) -> TaskOutput:
        preds = (weight * x).tanh()
        return TaskOutput((preds - y).square().sum(), preds, {"size": preds.abs().sum()})

    return fn


def test_gradients_taken_at_once_are_those_of_one_graph() -> None:
    torch.manual_seed(0)
    source = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    y, importance = torch.randn(4, 3, dtype=torch.float64), torch.tensor([1.0, 2.0, 3.0, -4.0]).double()
    weight, frozen = (torch.randn(3, dtype=torch.float64, requires_grad=on) for on in (True, False))
    tasks = (source.sinh(), y)  # x is not a leaf, y wants no gradient
    expected = map_tasks(weighted(weight), *tasks, mode="loop")
    out = loop_with_gradients(weighted(weight), [weight, frozen], *tasks)
    torch.testing.assert_close(out, expected)
    by_graph, at_once = (
        torch.autograd.grad((importance * result.loss).sum(), (source, weight), retain_graph=True)
        for result in (expected, out)
    )
    torch.testing.assert_close(at_once, by_graph, rtol=1e-12, atol=1e-14)
    assert not out.preds.requires_grad
    assert not out.logs["size"].requires_grad


class Marker:
    """Lives as long as the graph that it is part of."""


class Marked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, marker: Marker) -> torch.Tensor:
        ctx.marker = marker
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradient, None


@pytest.mark.parametrize("at_once", [True, False])
def test_only_one_graph_is_alive_at_a_time(at_once: bool) -> None:
    weight, graphs, alive = torch.ones(3, requires_grad=True), weakref.WeakSet(), []

    def fn(x: torch.Tensor) -> TaskOutput:
        marker = Marker()
        graphs.add(marker)
        alive.append(len(graphs))
        product = Marked.apply(weight * x, marker)
        return TaskOutput(product.sum(), product)

    x = torch.ones(3, 3)
    loop_with_gradients(fn, [weight], x) if at_once else map_tasks(fn, x, mode="loop")
    assert alive == ([1, 1, 1] if at_once else [1, 2, 3])


def test_a_gradient_taken_at_once_can_be_nested_but_not_differentiated_twice() -> None:
    weight = torch.tensor(3.0, requires_grad=True)

    def inner(w: torch.Tensor) -> TaskOutput:
        return TaskOutput(w**2, w)

    def outer() -> TaskOutput:
        return with_gradient(inner, [], weight.exp())

    out = with_gradient(outer, [weight])
    (slope,) = torch.autograd.grad(out.loss, weight, create_graph=True)
    torch.testing.assert_close(slope, 2 * torch.tensor(6.0).exp())
    with pytest.raises(RuntimeError, match="does not require grad"):
        torch.autograd.grad(slope, weight)


def test_a_constant_loss_has_no_gradient() -> None:
    weight = torch.tensor(3.0, requires_grad=True)
    out = with_gradient(lambda x: TaskOutput(x**2, x), [weight], torch.tensor(2.0))
    assert out.loss == 4
    assert torch.autograd.grad(out.loss + weight, weight) == (1,)


def test_transforms_are_seen_from_within() -> None:
    seen = []

    def fn(x: torch.Tensor) -> torch.Tensor:
        seen.append({str(transform).split(".")[1] for transform in active_transforms()})
        return x.sum()

    fn(torch.ones(2))
    torch.func.grad(fn)(torch.ones(2))
    torch.vmap(torch.func.grad(fn))(torch.ones(2, 2))
    assert seen == [set(), {"Grad"}, {"Vmap", "Grad"}]
