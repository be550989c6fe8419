"""DropBlock against its definition: how much is dropped, in which shape, and how the rest is scaled."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_meta.backbones import DropBlock
from lightning_meta.errors import ConfigError


def expected_share_kept(drop_rate: float, block_size: int, side: int) -> float:
    """Closed form with overlaps: a cell stays if none of the squares that would cover it is drawn."""
    corners = side - block_size + 1
    gamma = drop_rate / block_size**2 * side**2 / corners**2
    covering = [sum(c <= cell < c + block_size for c in range(corners)) for cell in range(side)]
    return sum((1 - gamma) ** (rows * columns) for rows in covering for columns in covering) / side**2


@pytest.mark.parametrize(("drop_rate", "block_size", "side"), [(0.1, 5, 10), (0.1, 5, 5), (0.2, 2, 8), (0.3, 1, 6)])
def test_share_kept_is_close_to_one_minus_the_drop_rate(drop_rate: float, block_size: int, side: int) -> None:
    kept = (DropBlock(drop_rate, block_size)(torch.ones(128, 128, side, side)) != 0).float().mean().item()
    assert kept == pytest.approx(expected_share_kept(drop_rate, block_size, side), abs=0.01)
    assert kept == pytest.approx(1 - drop_rate, abs=0.02)


@pytest.mark.parametrize("block_size", [2, 3, 5])
def test_dropped_cells_form_whole_squares(block_size: int) -> None:
    """Morphological opening by the square leaves their union as it is; it would erase single cells."""
    dropped = (DropBlock(0.2, block_size)(torch.ones(64, 8, 11, 9)) == 0).float().flatten(0, 1).unsqueeze(1)
    squares = (F.avg_pool2d(dropped, block_size, stride=1) == 1).float()
    opened = F.conv_transpose2d(squares, torch.ones(1, 1, block_size, block_size)) > 0
    assert torch.equal(opened, dropped > 0)
    assert 0.1 < dropped.mean() < 0.3


def test_the_rest_is_scaled_to_keep_the_mean() -> None:
    y = DropBlock(0.3, 3)(torch.ones(2, 4, 8, 8, dtype=torch.float64))
    assert len(y.unique()) == 2
    assert y.mean().item() == pytest.approx(1, abs=1e-6)


def test_identity_in_evaluation_and_at_rate_zero() -> None:
    x = torch.rand(2, 4, 8, 8)
    assert torch.equal(DropBlock(0.5).eval()(x), x)
    assert torch.equal(DropBlock(0.0)(x), x)
    assert not torch.equal(DropBlock(0.5)(x), x)


@pytest.mark.parametrize("what", ["x", "weight"])
def test_each_task_draws_its_own_mask_under_vmap(what: str) -> None:
    """Also where the tasks share the input, and only the weights are their own."""
    drop, ones = DropBlock(0.3, 2), torch.ones(2, 3, 6, 6)

    def one_task(task: Tensor) -> Tensor:
        return drop(task) if what == "x" else drop(ones) * task

    tasks = ones.expand(4, *ones.shape) if what == "x" else torch.ones(4)
    masks = torch.vmap(one_task, randomness="different")(tasks)
    assert masks.shape == (4, *ones.shape)
    assert len({tuple(mask.flatten().tolist()) for mask in masks}) == 4
    torch.testing.assert_close(masks.mean((1, 2, 3, 4)), torch.ones(4))  # each task is scaled by its own share


def test_a_block_shrinks_to_a_small_map() -> None:
    """A 2x2 map is dropped whole or not at all."""
    kept = (DropBlock(0.25, 5)(torch.ones(64, 64, 2, 2)) != 0).float().mean((2, 3))
    assert set(kept.unique().tolist()) == {0.0, 1.0}
    assert kept.mean().item() == pytest.approx(0.75, abs=0.03)


def test_dropping_everything_gives_zeros_and_not_nan() -> None:
    drop = DropBlock(0.5)
    sums = torch.stack([drop(torch.ones(1, 1, 2, 2)).sum() for _ in range(30)])
    assert set(sums.tolist()) == {0.0, 4.0}


def test_bfloat16_is_dropped_at_the_same_rate() -> None:
    """Random bfloat16 numbers have steps of 1/256, as large as gamma here."""
    y = DropBlock(0.05, 5)(torch.ones(64, 64, 10, 10, dtype=torch.bfloat16))
    assert y.dtype == torch.bfloat16
    assert (y != 0).float().mean().item() == pytest.approx(expected_share_kept(0.05, 5, 10), abs=0.01)


@pytest.mark.parametrize(("settings", "message"), [((1.0, 5), r"drop_rate=1\.0"), ((0.1, 0), "block_size=0")])
def test_impossible_settings_are_refused(settings: tuple[float, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DropBlock(*settings)
