"""MeLU: the decision layers move, attributes' vectors do not; against plain autograd and joint training."""

from typing import Any

import pytest
import torch
from torch.func import functional_call
from torch.nn import functional as F

from lightning_meta.algorithms import MeLU
from lightning_meta.backbones import MLP
from lightning_meta.core import Batch, Episode
from lightning_meta.core.episode import EpisodeShape
from lightning_meta.core.sampling import episode_keys
from lightning_meta.datamodules import RatingWorld
from tests.conftest import Make, meta_gradient

LR, STEPS = 0.05, 3
REGRESSORS: dict[str, Make] = {"melu": lambda: MeLU(MLP(hidden=(6,), activation="none"), hidden=(8,), inner_steps=2)}


def melu(**overrides: Any) -> MeLU:
    torch.manual_seed(0)
    settings = dict(backbone=MLP(67, (4,), "none"), hidden=(6, 5), inner_lr=LR, inner_steps=STEPS)
    return MeLU(**(settings | overrides)).double()


def users(count: int = 3) -> Episode:
    drawn = RatingWorld().load_source("train").sample(episode_keys(0, 0, range(count)), EpisodeShape(1, 5, 4))
    return Episode(*(Batch(part.x.double(), part.y.double()) for part in drawn))


def of_task(part: Batch, task: int) -> Batch:
    return Batch(part.x[task], part.y[task])


def test_the_decision_layers_move_and_the_vectors_stay() -> None:
    module, tasks = melu(), users()
    phi = module.adapt(of_task(tasks.support, 0))
    assert set(phi) == {name for name, _ in module.learner.named_parameters() if name.startswith("1.")}
    assert len(phi) == 6
    for name, value in phi.items():
        assert (value - module.learner.get_parameter(name)).abs().max() > 1e-5


@pytest.mark.parametrize("mode", ["vmap", "loop"])
def test_the_meta_gradient_is_that_of_the_textbooks_double_loop(mode: str) -> None:
    """The whole network in every step, by torch.autograd; the step on the decision layers alone."""
    module, tasks = melu(task_mode=mode), users()
    found = meta_gradient(module, tasks)
    theta = dict(module.learner.named_parameters())
    losses = []
    for t in range(3):
        phi = {name: value for name, value in theta.items() if name.startswith("1.")}
        for _ in range(STEPS):
            loss = F.mse_loss(functional_call(module.learner, phi, tasks.support.x[t]), tasks.support.y[t])
            slopes = torch.autograd.grad(loss, list(phi.values()), create_graph=True)
            phi = {name: value - LR * slope for (name, value), slope in zip(phi.items(), slopes, strict=True)}
        losses.append(F.mse_loss(functional_call(module.learner, phi, tasks.query.x[t]), tasks.query.y[t]))
    expected = torch.autograd.grad(torch.stack(losses).mean(), list(theta.values()))
    for name, slope in zip(theta, expected, strict=True):
        torch.testing.assert_close(found[f"learner.{name}"], slope, rtol=1e-9, atol=1e-13)
    assert found["learner.0.layers.0.weight"].abs().max() > 1e-4, "the vectors learn in the outer loop"


def test_without_inner_steps_it_is_one_model_of_all_users() -> None:
    module, tasks = melu(inner_steps=0), users()
    found = meta_gradient(module, tasks)
    x, y = (leaf.flatten(0, 1) for leaf in tasks.query)
    names, params = zip(*module.named_parameters(), strict=True)
    expected = torch.autograd.grad(F.mse_loss(module.learner(x), y), params)
    torch.testing.assert_close(found, dict(zip(names, expected, strict=True)), rtol=1e-9, atol=1e-12)


def test_it_learns_in_the_world_what_a_joint_model_cannot() -> None:
    """After short trainings of both, on users that neither has seen, in squared error on the same ratings."""
    source, shape = RatingWorld().load_source("train"), EpisodeShape(1, 10, 20)
    unseen = RatingWorld().load_source("test").sample(episode_keys(0, 2, range(300)), shape)
    errors = {}
    for steps in (0, 5):
        torch.manual_seed(0)
        module = MeLU(MLP(67, (32,), "none"), inner_steps=steps)
        optimizer = torch.optim.Adam(module.parameters(), lr=0.003)
        for step in range(150):
            optimizer.zero_grad()
            tasks = source.sample(episode_keys(0, 0, range(32 * step, 32 * step + 32)), shape)
            module.play(tasks).loss.mean().backward()
            optimizer.step()
        with torch.no_grad():
            errors[steps] = module.eval().play(unseen).loss
    gain = errors[0] - errors[5]
    assert gain.mean() > 4 * gain.std() / 300**0.5
