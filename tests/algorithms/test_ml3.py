"""ML3: with the true loss in the place of the learned one it is MAML, and its gradient is that of plain autograd."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from lightning_meta.algorithms import MAML, ML3
from lightning_meta.backbones import MLP
from lightning_meta.core import Episode
from lightning_meta.errors import ConfigError
from lightning_meta.metrics import EpisodicMSE
from tests.conftest import Make, conv4, meta_gradient, random_episodes, random_functions, smooth

LR, STEPS = 0.1, 3
SINE: dict[str, Any] = {
    "n_way": 1, "loss_fn": partial(F.mse_loss), "metric": EpisodicMSE(), "inner_lr": LR, "inner_steps": STEPS,
}  # fmt: skip

BILEVEL: dict[str, Any] = {}  # it plays episodes: nothing is carried
REGRESSORS: dict[str, Make] = {"ml3": lambda: ML3(MLP(1, [8], "tanh"), **(SINE | {"inner_lr": 0.5}))}
VARIANTS: dict[str, Make] = {"ml3-classes": lambda: ML3(conv4(), 3, inner_lr=1.0, inner_steps=2)}


class SquaredError(nn.Module):
    def forward(self, examples: Tensor) -> Tensor:
        preds, y = examples.chunk(2, dim=1)
        return (preds - y) ** 2


class CrossEntropy(nn.Module):
    def forward(self, examples: Tensor) -> Tensor:
        probabilities, labels = examples.chunk(2, dim=1)
        return -(labels * probabilities.log()).sum(1)


@pytest.fixture(params=["functions", "classes"])
def pair(request: pytest.FixtureRequest) -> tuple[ML3, MAML, Episode]:
    """ML3 with the true loss as its loss network, MAML from the same weights, and tasks for them."""
    torch.manual_seed(0)
    if request.param == "functions":
        modules = [cls(MLP(1, [8], "tanh"), **SINE).double() for cls in (ML3, MAML)]
        loss, tasks = SquaredError(), random_functions()
    else:
        modules = [cls(smooth(conv4()), 3, inner_lr=LR, inner_steps=STEPS).double() for cls in (ML3, MAML)]
        loss, tasks = CrossEntropy(), random_episodes()
    ml3, maml = modules
    ml3.loss_network = loss
    maml.learner.load_state_dict(ml3.learner.state_dict())
    return ml3.eval(), maml.eval(), tasks


@pytest.mark.parametrize("mode", ["vmap", "loop"])
def test_with_the_true_loss_it_is_maml(pair: tuple[ML3, MAML, Episode], mode: str) -> None:
    ml3, maml, tasks = pair
    ml3.task_mode = maml.task_mode = mode
    torch.testing.assert_close(ml3.play(tasks), maml.play(tasks), rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(ml3.adapt_tasks(tasks.support), maml.adapt_tasks(tasks.support), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("mode", ["vmap", "loop"])
def test_the_gradient_of_the_learned_loss_is_that_of_plain_autograd(mode: str) -> None:
    torch.manual_seed(0)
    module = ML3(MLP(1, [8], "tanh"), **SINE, task_mode=mode).double().eval()
    tasks, losses = random_functions(), []
    for t in range(len(tasks.support.x)):
        phi = {name: p.detach().requires_grad_() for name, p in module.learner.named_parameters()}
        for _ in range(STEPS):
            preds = functional_call(module.learner, phi, (tasks.support.x[t],))
            loss = torch.stack([
                module.loss_network(torch.stack([a, b])).squeeze()
                for a, b in zip(preds[:, 0], tasks.support.y[t, :, 0], strict=True)
            ]).mean()  # fmt: skip
            slopes = torch.autograd.grad(loss, list(phi.values()), create_graph=True)
            phi = {name: p - LR * slope for (name, p), slope in zip(phi.items(), slopes, strict=True)}
        preds = functional_call(module.learner, phi, (tasks.query.x[t],))
        losses.append((preds - tasks.query.y[t]).square().mean())
    expected = torch.autograd.grad(torch.stack(losses).mean(), list(module.loss_network.parameters()))
    found = meta_gradient(module, tasks)
    assert {*found} == {name for name, _ in module.named_parameters() if name.startswith("loss_network")}
    torch.testing.assert_close([*found.values()], [*expected], rtol=1e-8, atol=1e-12)
    assert max(slope.abs().max() for slope in expected) > 1e-4


def test_a_training_task_starts_anew_and_evaluation_from_the_same_weights() -> None:
    torch.manual_seed(0)
    module = ML3(MLP(100, [400]), 3)
    given = dict(module.learner.named_parameters())
    for drawn in (module.train().theta() for _ in range(2)):
        assert drawn.keys() == given.keys()
        for name, value in drawn.items():
            assert not torch.equal(value, given[name])
            assert value.std().item() == pytest.approx(given[name].std().item(), rel=0.15 if value.ndim == 2 else 0.9)
    torch.testing.assert_close(module.eval().theta(), given, rtol=0, atol=0)


def test_first_order_is_refused() -> None:
    with pytest.raises(ConfigError, match="first_order=True makes constants"):
        ML3(MLP(1, [8]), 1, first_order=True)
