"""Operations on images: against rolls, quarter turns and finite differences."""

import pytest
import torch
from torch import Tensor
from torch.func import jacfwd
from torch.nn import functional as F

from lightning_meta.core.augment import COLOURS, LARGEST, MOVES, augment, check_ranges
from lightning_meta.errors import ConfigError


def images(count: int = 2, height: int = 8, width: int = 8, seed: int = 0) -> Tensor:
    """Smooth: bilinear sampling has kinks at the pixels, between which finite differences are taken."""
    generator = torch.Generator().manual_seed(seed)
    return F.avg_pool2d(torch.rand(count, 1, height + 2, width + 2, generator=generator).double(), 3, 1)


def strength(value: float, count: int = 2) -> Tensor:
    return torch.full((count,), value, dtype=torch.float64)


def test_the_table_has_every_operation() -> None:
    assert [*LARGEST] == [*MOVES, *COLOURS] and len(LARGEST) == 8


@pytest.mark.parametrize("name", LARGEST)
def test_of_strength_zero_it_is_the_identity(name: str) -> None:
    x = images(height=6, width=9)
    torch.testing.assert_close(augment(x, {name: strength(0.0)}), x, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", LARGEST)
def test_the_derivative_by_the_strength_is_that_of_finite_differences(name: str) -> None:
    x, start = images(), strength(0.37 * LARGEST[name])
    found = jacfwd(lambda m: augment(x, {name: m}))(start)
    step = 1e-6
    for image in range(2):
        up, down = start.clone(), start.clone()
        up[image] += step
        down[image] -= step
        expected = (augment(x, {name: up}) - augment(x, {name: down})) / (2 * step)
        torch.testing.assert_close(found[..., image], expected, rtol=1e-6, atol=1e-8)
        assert found[image, ..., image].abs().max() > 1e-3 / LARGEST[name]
    reverse = torch.autograd.functional.jacobian(lambda m: augment(x, {name: m}), start)
    torch.testing.assert_close(reverse, found, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_a_quarter_turn_is_that_of_the_pixels(quarters: int) -> None:
    x = images(height=7, width=7)
    turned = augment(x, {"rotate": strength(90.0 * quarters)})
    torch.testing.assert_close(turned, torch.rot90(x, quarters, (2, 3)), rtol=1e-9, atol=1e-9)


def test_shifts_by_whole_pixels_are_rolls() -> None:
    """To the right and down; zeros come in."""
    x = images(height=5, width=10)
    expected = torch.zeros_like(x)
    expected[..., 2:, 3:] = x[..., :-2, :-3]
    moved = augment(x, {"shift_x": strength(0.3), "shift_y": strength(0.4)})
    torch.testing.assert_close(moved, expected, rtol=1e-9, atol=1e-9)


def test_a_turn_of_a_wide_image_keeps_its_angles() -> None:
    """A half turn reverses both axes, and a quarter of the middle square is that of the square."""
    x = images(height=6, width=10)
    turned = augment(x, {"rotate": strength(180.0)})
    torch.testing.assert_close(turned, x.flip(2, 3), rtol=1e-9, atol=1e-9)
    quarter = augment(x, {"rotate": strength(90.0)})[..., 2:8]
    torch.testing.assert_close(quarter, torch.rot90(x[..., 2:8], 1, (2, 3)), rtol=1e-9, atol=1e-9)


def test_shears_move_rows_and_columns() -> None:
    """By a pixel for each pixel that they are away from the middle, where the strength is 1."""
    x = images(height=5, width=5)
    rows = augment(x, {"shear_x": strength(1.0)})
    columns = augment(x, {"shear_y": strength(1.0)})
    for away in range(-2, 3):
        place = 2 + away
        expected = torch.zeros_like(x[..., 0, :])
        into, of = (slice(max(away, 0), 5 + min(away, 0)), slice(max(-away, 0), 5 + min(-away, 0)))
        expected[..., into] = x[..., place, of]
        torch.testing.assert_close(rows[..., place, :], expected, rtol=1e-9, atol=1e-9)
        down = torch.zeros_like(x[..., 0])
        down[..., into] = x[..., of, place]
        torch.testing.assert_close(columns[..., place], down, rtol=1e-9, atol=1e-9)


def test_scaling_by_three_repeats_the_middle() -> None:
    x = images(height=9, width=9)
    middle = augment(x, {"scale": strength(1.0986122886681098)})[..., 1::3, 1::3]
    torch.testing.assert_close(middle, x[..., 3:6, 3:6], rtol=1e-9, atol=1e-9)


def test_colours_change_mean_and_spread() -> None:
    x = images()
    torch.testing.assert_close(augment(x, {"brightness": strength(0.2)}), x + 0.2)
    changed = augment(x, {"contrast": strength(0.5)})
    torch.testing.assert_close(changed.mean((1, 2, 3)), x.mean((1, 2, 3)))
    torch.testing.assert_close(changed.std((1, 2, 3)), x.std((1, 2, 3)) * strength(0.5).exp())


def test_a_chain_is_one_after_the_other() -> None:
    """In the order of the table, whatever that of the argument: a turn, and then a shift by whole pixels."""
    x = images(height=8, width=8)
    both = augment(x, {"shift_x": strength(0.25), "rotate": strength(90.0)})
    turned = augment(x, {"rotate": strength(90.0)})
    torch.testing.assert_close(both, augment(turned, {"shift_x": strength(0.25)}), rtol=1e-9, atol=1e-9)
    assert not torch.allclose(both, augment(augment(x, {"shift_x": strength(0.25)}), {"rotate": strength(90.0)}))


def test_it_is_mapped_with_its_derivatives() -> None:
    """vmap of the gradient of a loss of the images, and of what it depends on, against a loop."""
    x = torch.stack([images(seed=seed) for seed in range(3)])
    m = torch.rand(3, 8, 2, generator=torch.Generator().manual_seed(1)).double() - 0.5

    def loss(m_K2: Tensor, x: Tensor) -> Tensor:
        return augment(x, {name: m_K2[k] * LARGEST[name] for k, name in enumerate(LARGEST)}).square().sum()

    slopes = torch.func.grad(loss, argnums=(0, 1))
    mapped = torch.vmap(slopes)(m, x)
    for t in range(3):
        torch.testing.assert_close([part[t] for part in mapped], list(slopes(m[t], x[t])), rtol=1e-9, atol=1e-9)


def test_an_unknown_operation_is_told() -> None:
    with pytest.raises(ConfigError, match=r"data.moved has turn=3.*there are rotate to 180, shift_x to 0.9,"):
        check_ranges("data.moved", {"turn": 3.0})
    with pytest.raises(ConfigError, match="rotate=-1"):
        check_ranges("data.moved", {"rotate": -1.0})


def test_no_range_is_so_large_that_images_are_not_finite() -> None:
    x, corners = torch.rand(4, 1, 28, 28), torch.tensor([1.0, 1.0, -1.0, -1.0])
    for name, largest in LARGEST.items():
        check_ranges("ranges", {name: 3 * largest})
        assert augment(x, {name: 3 * largest * corners}).isfinite().all(), name
        with pytest.raises(ConfigError, match=f"ranges has {name}=.*{name} to {3 * largest:g}"):
            check_ranges("ranges", {name: 3.01 * largest})
    assert not augment(x, {"scale": 90.0 * corners}).isfinite().all(), "what is refused"
