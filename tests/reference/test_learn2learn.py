"""Parity with learn2learn's MAML: same weights, same episodes, same meta-gradient."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_meta.algorithms import MAML
from lightning_meta.backbones import MLP
from lightning_meta.core import Episode
from tests.conftest import SIZE, meta_gradient


@pytest.mark.parametrize("first_order", [False, True])
def test_meta_gradient_equals_learn2learns(first_order: bool, episodes: Episode) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        l2l = pytest.importorskip("learn2learn")
    ours = MAML(
        MLP(SIZE * SIZE, (12,)), n_way=3, inner_lr=0.1, inner_steps=3, first_order=first_order, task_mode="vmap"
    ).double()
    theirs = nn.Sequential(nn.Flatten(), nn.Linear(SIZE * SIZE, 12), nn.ReLU(), nn.Linear(12, 3)).double()
    theirs.load_state_dict(dict(zip(theirs.state_dict(), ours.learner.state_dict().values(), strict=True)))
    learner = l2l.algorithms.MAML(theirs, lr=0.1, first_order=first_order)
    losses = []
    for t in range(len(episodes.support.x)):
        clone = learner.clone()
        for _ in range(3):
            clone.adapt(F.cross_entropy(clone(episodes.support.x[t]), episodes.support.y[t]))
        losses.append(F.cross_entropy(clone(episodes.query.x[t]), episodes.query.y[t]))
    torch.stack(losses).mean().backward()
    gradient = list(meta_gradient(ours, episodes).values())
    for mine, param in zip(gradient, theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, param.grad, rtol=1e-10, atol=1e-14)
