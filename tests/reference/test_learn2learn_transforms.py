"""Parity with learn2learn's GBML: same weights, same transforms of the gradient, same episodes, same meta-gradient."""

import builtins
import sys
import warnings
from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_meta.algorithms import KFO, MAML, MetaCurvature
from lightning_meta.core import Episode
from lightning_meta.errors import ConfigError
from lightning_meta.interop.learn2learn import TransformedSGD, import_learn2learn
from tests.conftest import conv4, meta_gradient

LR, STEPS = 0.1, 3


@pytest.fixture
def l2l() -> ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("learn2learn")


def meta_curvature(l2l: ModuleType, first_order: bool) -> tuple[MAML, Callable]:
    ours = MetaCurvature(conv4(), n_way=3, inner_lr=LR, inner_steps=STEPS, first_order=first_order)
    return ours, l2l.optim.MetaCurvatureTransform


def kfo(l2l: ModuleType, first_order: bool) -> tuple[MAML, Callable]:
    ours = KFO(conv4(), n_way=3, inner_lr=LR, inner_steps=STEPS, first_order=first_order)
    return ours, l2l.optim.KroneckerTransform(l2l.nn.KroneckerLinear)


def other_transforms(l2l: ModuleType, first_order: bool) -> tuple[MAML, Callable]:
    """Not an algorithm of ours: a linear map of all elements of a bias, and weights with untransformed gradients."""

    def transform(parameter: nn.Parameter) -> nn.Module | None:
        return l2l.optim.ModuleTransform(nn.Linear)(parameter) if parameter.ndim == 1 else None

    ours = MAML(conv4(), n_way=3, inner_steps=STEPS, first_order=first_order)
    ours.inner_optimizer = TransformedSGD(ours.theta(), LR, transform)
    return ours, transform


@pytest.mark.parametrize("mode", ["vmap", "loop"])
@pytest.mark.parametrize("first_order", [False, True], ids=["second-order", "first-order"])
@pytest.mark.parametrize("make", [meta_curvature, kfo, other_transforms])
def test_loss_and_meta_gradient_equal_learn2learns(
    make: Callable, first_order: bool, mode: str, episodes: Episode, l2l: ModuleType
) -> None:
    ours, transform = make(l2l, first_order)
    ours, ours.task_mode = ours.double(), mode
    transforms = list(ours.inner_optimizer.transforms.values())
    for parameter in ours.inner_optimizer.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)  # away from the identity
    out, gradient = ours.play(episodes), list(meta_gradient(ours, episodes).values())
    assert len(gradient) == len(list(ours.parameters()))

    theirs = l2l.algorithms.GBML(ours.learner, transform, lr=LR, first_order=first_order).double()
    updates = theirs.compute_update.transforms_modules
    for mine, copy in zip(transforms, updates, strict=True):
        copy.load_state_dict(mine.state_dict())
    losses = []
    for t in range(len(episodes.support.x)):
        learner = theirs.clone()
        for _ in range(STEPS):
            learner.adapt(F.cross_entropy(learner(episodes.support.x[t]), episodes.support.y[t]))
        losses.append(F.cross_entropy(learner(episodes.query.x[t]), episodes.query.y[t]))
    theirs.zero_grad()
    torch.stack(losses).mean().backward()
    torch.testing.assert_close(out.loss, torch.stack(losses), rtol=1e-10, atol=1e-14)
    expected = [parameter.grad for parameter in (*theirs.module.parameters(), *updates.parameters())]
    torch.testing.assert_close(gradient, expected, rtol=1e-8, atol=1e-13)


@pytest.mark.usefixtures("l2l")
@pytest.mark.parametrize("algorithm", [MetaCurvature, KFO])
def test_before_training_it_is_maml(algorithm: type[MAML], episodes: Episode) -> None:
    """The transforms start as the identity."""
    ours = algorithm(conv4(), n_way=3, inner_lr=LR, inner_steps=STEPS).double()
    maml = MAML(conv4(), n_way=3, inner_lr=LR, inner_steps=STEPS).double()
    maml.learner.load_state_dict(ours.learner.state_dict())
    torch.testing.assert_close(ours.play(episodes), maml.play(episodes), rtol=1e-12, atol=1e-14)


@pytest.mark.usefixtures("l2l")
def test_a_convolution_has_the_curvatures_of_the_paper() -> None:
    """Of 6 filters on 6 channels with 3 x 3 places, in place of one 324 x 324 matrix."""
    ours = MetaCurvature(conv4(), n_way=3)
    shapes = [tuple(p.shape) for p in ours.inner_optimizer.transforms["0/blocks/1/0/weight"].parameters()]
    assert sorted(shapes) == [(6, 6), (6, 6), (9, 9)]


def test_a_gradient_may_have_any_memory_layout(l2l: ModuleType) -> None:
    grad = torch.randn(6, 6, 3, 3)
    optimizer = TransformedSGD({"weight": grad}, LR, l2l.optim.ModuleTransform(lambda size, _: nn.Identity(size)))
    laid_out = grad.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(optimizer.direction("weight", laid_out), grad, rtol=0, atol=0)


def test_without_learn2learn_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "learn2learn", None)  # makes its import fail
    with pytest.raises(ConfigError, match=r"requirements\.txt.*3\.13"):
        MetaCurvature(conv4(), n_way=3)


@pytest.mark.usefixtures("l2l")
def test_the_import_is_silent(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def noisy(name: str, *args: object, **kwargs: object) -> object:
        if name == "learn2learn":
            print("a notice", file=sys.stderr)
            warnings.warn("a warning", stacklevel=1)
        return original(name, *args, **kwargs)

    original = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", noisy)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        import_learn2learn()
    assert not caught
    assert not capsys.readouterr().err
