"""BOIL adapts the body alone."""

import pytest
import torch

from lightning_meta.algorithms import BOIL
from lightning_meta.core import Batch, Episode
from tests.conftest import Make, autograd_meta_gradient, conv4, meta_gradient

CASES: dict[str, Make] = {"boil": lambda: BOIL(conv4(), n_way=3, inner_lr=0.1, inner_steps=2)}
LR, STEPS = 0.3, 3


def boil(**overrides) -> BOIL:
    torch.manual_seed(0)
    return BOIL(conv4(), **(dict(n_way=3, inner_lr=LR, inner_steps=STEPS) | overrides)).double()


def test_only_the_body_moves(episodes: Episode) -> None:
    module = boil()
    phi = module.adapt(Batch(episodes.support.x[0], episodes.support.y[0]))
    body = dict(module.backbone.named_parameters())
    assert set(phi) == {f"0.{name}" for name in body}
    assert all((phi[f"0.{name}"] - theta).abs().max() > 1e-5 for name, theta in body.items())


@pytest.mark.parametrize("mode", ["vmap", "loop"])
@pytest.mark.parametrize("first_order", [False, True], ids=["second-order", "first-order"])
def test_meta_gradient_is_that_of_maml_with_a_frozen_head(mode: str, first_order: bool, episodes: Episode) -> None:
    module = boil(task_mode=mode, first_order=first_order)
    expected = autograd_meta_gradient(module, episodes, STEPS, lambda name, step: LR, not first_order, prefix="0.")
    torch.testing.assert_close(meta_gradient(module, episodes), expected, rtol=1e-9, atol=1e-13)


def test_the_head_is_still_meta_learned(episodes: Episode) -> None:
    gradient = meta_gradient(boil(), episodes)
    assert gradient["learner.1.weight"].abs().max() > 1e-3
