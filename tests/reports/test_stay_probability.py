"""Choices that are repeated are counted one by one, and their regression is that of Newton's method."""

from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_meta.algorithms import ModelBased
from lightning_meta.reports import StayProbability
from lightning_meta.reports.stay_probability import EFFECTS, effects, stays
from lightning_meta.worlds import TwoStep
from tests.algorithms.rollout_cases import rollouts
from tests.reports.conftest import run_test


def two_step() -> object:
    return rollouts(TwoStep(20), rounds=0)


def test_every_trial_but_the_last_is_counted_in_its_cell() -> None:
    module, data = ModelBased(), two_step()
    module.world = data.world
    played = module.record(data.dataset("test").__getitems__(range(2)))[-1]
    expected = torch.zeros(2, 2, 2, 2)
    for task in range(2):
        for walk in range(3):
            for step in range(0, 38, 2):
                choice, later = (played.actions[task, at, walk].item() for at in (step, step + 2))
                place = played.told.seen[task, step + 1, walk].tolist().index(1) - 1
                paid = int(played.rewards[task, step + 1, walk].item())
                expected[task, int(choice != later), paid, int(place == choice)] += 1
    assert torch.equal(stays(played), expected.double())


def test_the_effects_are_those_of_logistic_regression_with_robust_errors() -> None:
    """By Newton's method on all choices, and the sandwich of its scores summed over tasks."""
    counts = torch.randint(1, 40, (30, 2, 2, 2), generator=torch.Generator().manual_seed(0)).double()
    weights = counts.numpy() + 0.5 / 30
    rows = np.array([
        (1, *(signs[paid][common] for signs in EFFECTS.values())) for paid in (0, 1) for common in (0, 1)
    ], dtype=float)  # fmt: skip
    assert (rows[:, 3] == rows[:, 1] * rows[:, 2]).all()
    stayed, left = weights[:, 0].reshape(30, 4), weights[:, 1].reshape(30, 4)
    slopes = np.zeros(4)
    for _ in range(30):
        chance = 1 / (1 + np.exp(-rows @ slopes))
        scores = (stayed - chance * (stayed + left)) @ rows
        bread = np.linalg.inv(rows.T @ np.diag((stayed + left).sum(0) * chance * (1 - chance)) @ rows)
        slopes += bread @ scores.sum(0)
    errors = np.sqrt(np.diag(bread @ scores.T @ scores @ bread))
    for place, (value, half) in enumerate(effects(counts).values(), start=1):
        assert value.item() == pytest.approx(slopes[place], abs=1e-10)
        assert half.item() == pytest.approx(1.96 * errors[place], rel=1e-9)


def test_what_is_logged_is_of_all_test_tasks(tmp_path: Path) -> None:
    data = two_step()
    logged = run_test(tmp_path, ModelBased(sharpness=1.0), data, StayProbability())
    module = ModelBased(sharpness=1.0)
    module.world = data.world
    played = module.record(data.dataset("test").__getitems__(range(5)))[-1]
    for name, (value, half) in effects(stays(played)).items():
        assert logged[f"test/stay_{name}"] == pytest.approx(value.item(), abs=1e-5)
        assert logged[f"test/stay_{name}_ci95"] == pytest.approx(half.item(), abs=1e-5)
