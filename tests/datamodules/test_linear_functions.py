"""Linear functions: their values by least squares, their scale over many episodes."""

import pytest
import torch

from lightning_meta.core.episode import EpisodeShape
from lightning_meta.core.sampling import episode_keys
from lightning_meta.datamodules import LinearFunctions
from lightning_meta.datamodules.functions.linear_functions import KINDS, Kind
from lightning_meta.errors import ConfigError

SHAPE = EpisodeShape(n_way=1, k_shot=8, n_query=40)


def drawn(kind: Kind, episodes: int = 3, **options: float) -> tuple[torch.Tensor, torch.Tensor]:
    """All points and values."""
    source = LinearFunctions(kind=kind, **options).load_source("test")
    tasks = source.sample(episode_keys(0, 2, range(episodes)), SHAPE)
    return tuple(torch.cat(leaves, 1).double() for leaves in zip(*tasks, strict=True))


def residual(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Mean square `(T,)` of what no linear function explains."""
    return (y - x @ torch.linalg.lstsq(x, y).solution).square().mean((1, 2))


@pytest.mark.parametrize("kind", KINDS)
def test_predicting_zero_has_error_one(kind: Kind) -> None:
    x, y = drawn(kind, 3000)
    assert y.square().mean().item() == pytest.approx(1, abs=0.06)
    assert x.mean().item() == pytest.approx(0, abs=0.01)
    assert x.std().item() == pytest.approx(1, abs=0.01)


def test_least_squares_finds_the_weights() -> None:
    x, y = drawn("sparse", non_zero=2)
    weights = torch.linalg.lstsq(x, y).solution.squeeze(-1)
    assert residual(x, y).max() < 1e-12
    assert ((weights.abs() > 1e-5).sum(1) == 2).all()
    assert residual(*drawn("linear")).max() < 1e-12
    _, pinned = drawn("linear", dims=3)
    torch.testing.assert_close(drawn("linear", 7, dims=3)[1][:3], pinned)  # an episode is a function of its key


def test_noise_and_rectified_units_leave_what_no_line_explains() -> None:
    """Noise of standard deviation 2 is 4 / (5 + 4) of the values' variance, less what a fit of 5 weights takes up.

    A rectified unit is half linear: E[relu(u)^2] = 1/2, of which its mean explains nothing here and u / 2 explains 1/4.
    Over all of many units, with weights of both signs, half of the variance is left.
    """
    noisy = residual(*drawn("noisy", 2000, noise=2.0)).mean().item()
    assert noisy == pytest.approx(4 / 9 * (48 - 5) / 48, abs=0.01)
    assert residual(*drawn("relu", 2000)).mean().item() == pytest.approx(0.5 * (48 - 5) / 48, abs=0.03)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "cubic"}, "kind=cubic must be one of linear, sparse, noisy, relu"),
        ({"kind": "sparse", "non_zero": 6}, "non_zero=6 weights are more than dims=5"),
        ({"noise": -1.0}, "noise=-1.0 must not be negative"),
        ({"dims": 0}, "dims=0 must be at least 1"),
    ],
)
def test_what_is_no_function_is_refused(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LinearFunctions(**options)
