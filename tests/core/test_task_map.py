import pytest
import torch

from lightning_meta.core import Batch, choose_mode, map_tasks


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
