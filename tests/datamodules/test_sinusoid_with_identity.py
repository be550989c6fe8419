"""In training the input tells which wave it is; in validation and test it says nothing about it."""

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_meta.core import Batch, Episode
from lightning_meta.core.episode import Split
from lightning_meta.datamodules import SinusoidWithIdentity
from lightning_meta.errors import ConfigError

AMPLITUDES = torch.linspace(0.1, 4.0, 20)
TASKS = 400


def draw(split: Split, **overrides: int) -> Episode:
    module = SinusoidWithIdentity(**overrides)
    module.setup("fit")
    module.setup("test")
    return module.dataset(split).__getitems__(range(TASKS))


def points(tasks: Episode) -> Batch:
    return Batch(torch.cat([tasks.support.x, tasks.query.x], 1), torch.cat([tasks.support.y, tasks.query.y], 1))


def fitted_amplitudes(tasks: Episode) -> Tensor:
    """Least squares of y on sin(x), `(T,)`."""
    x, y = points(tasks)
    sine = x[..., 0].sin()
    return (sine * y[..., 0]).sum(1) / sine.square().sum(1)


def codes(tasks: Episode) -> Tensor:
    return tasks.support.x[..., 1:].argmax(-1)[:, 0]


def test_shapes_and_ranges() -> None:
    tasks = draw("train", k_shot=3, n_query=7)
    assert tasks.support.x.shape == (TASKS, 3, 21)
    assert tasks.support.y.shape == (TASKS, 3, 1)
    assert tasks.query.x.shape == (TASKS, 7, 21)
    assert tasks.query.y.shape == (TASKS, 7, 1)
    x = points(tasks).x[..., 0]
    assert x.min() >= -5
    assert x.max() < 5
    assert x.std() == pytest.approx(10 / 12**0.5, rel=0.05)


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_every_point_of_a_task_carries_the_same_one_hot_code_and_all_codes_occur(split: Split) -> None:
    tasks = draw(split)
    code_TMC = points(tasks).x[..., 1:]
    assert torch.equal(code_TMC, code_TMC[:, :1].expand_as(code_TMC))
    assert torch.equal(code_TMC.sort(-1).values[..., -2:], torch.tensor([0.0, 1.0]).expand(*code_TMC.shape[:2], 2))
    assert set(codes(tasks).tolist()) == set(range(20))


def test_in_training_the_code_is_that_of_the_amplitude() -> None:
    tasks = draw("train", k_shot=50, n_query=50)
    torch.testing.assert_close(fitted_amplitudes(tasks), AMPLITUDES[codes(tasks)], rtol=0, atol=0.06)


@pytest.mark.parametrize("split", ["val", "test"])
def test_in_evaluation_amplitudes_are_new_and_the_code_says_nothing_about_them(split: Split) -> None:
    tasks = draw(split, k_shot=50, n_query=50)
    amplitude = fitted_amplitudes(tasks)
    assert amplitude.mean() == pytest.approx(2.05, abs=0.2)
    assert amplitude.std() == pytest.approx(3.9 / 12**0.5, rel=0.1)
    assert np.corrcoef(amplitude, AMPLITUDES[codes(tasks)])[0, 1] == pytest.approx(0, abs=0.15)
    to_nearest = (amplitude[:, None] - AMPLITUDES).abs().min(1).values
    assert (to_nearest > 0.05).float().mean() > 0.3  # spacing 0.205: half of all amplitudes lie so far from the list


@pytest.mark.parametrize("split", ["train", "test"])
def test_values_are_the_sine_under_noise_of_standard_deviation_one_tenth(split: Split) -> None:
    tasks = draw(split, k_shot=50, n_query=50)
    x, y = points(tasks)
    residual = y[..., 0] - fitted_amplitudes(tasks)[:, None] * x[..., 0].sin()
    assert residual.std() == pytest.approx(0.1, rel=0.02)
    assert residual.mean() == pytest.approx(0, abs=0.002)


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_an_episode_is_the_same_alone_and_in_a_meta_batch(split: Split) -> None:
    module = SinusoidWithIdentity()
    module.setup("fit")
    module.setup("test")
    dataset = module.dataset(split)
    together = dataset.__getitems__([3, 100, 7])
    alone = dataset[100]
    assert torch.equal(together.support.x[1], alone.support.x)
    assert torch.equal(together.query.y[1], alone.query.y)


def test_another_way_is_refused() -> None:
    with pytest.raises(ConfigError, match="n_way must be 1, not 5"):
        draw("train", n_way=5)
