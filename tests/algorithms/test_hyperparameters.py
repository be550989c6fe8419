"""Learned decays: against ridge regression in closed form, and against the best single decay of a grid."""

from collections.abc import Callable
from functools import partial
from math import log
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_meta.algorithms import Hyperparameters
from lightning_meta.backbones import MLP
from lightning_meta.core import Batch, Implicit, Momentum, Params, Progress, TaskOutput, Unrolled
from lightning_meta.core.episode import Split, Step
from lightning_meta.datamodules import ClassificationDataModule, HeldOutImages
from lightning_meta.datamodules.class_bank import ClassBank
from lightning_meta.errors import ConfigError
from tests.algorithms.bilevel_cases import network
from tests.modules.test_episodic import trainer

BILEVEL: dict[str, Callable[..., Hyperparameters]] = {
    "hyperparameters": lambda **kw: Hyperparameters(network(), 4, **kw),
    "hyperparameters-network": lambda **kw: Hyperparameters(network(), 4, per="network", **kw),
}


class Ridge(Hyperparameters):
    """Squared error in place of cross-entropy: the minimum has a closed form."""

    def losses(self, weights: Params, batch: Batch) -> Tensor:
        return 0.5 * (self.logits(weights, batch.x) - batch.y).square().sum(1)

    def query_loss(self, weights: Params, query: Batch) -> TaskOutput:
        return TaskOutput(self.losses(weights, query).mean(), query.y)


def minimum(x: Tensor, y: Tensor, decay_CD: Tensor) -> Params:
    """Of ridge regression with a decay for each weight, and none for the bias: a linear system for each output."""
    design = torch.cat([x, torch.ones(len(x), 1).to(x)], 1)
    decays = torch.cat([decay_CD, torch.zeros(len(decay_CD), 1).to(x)], 1)
    gram, moment = design.T @ design / len(x), design.T @ y / len(x)
    solved = torch.stack([torch.linalg.solve(gram + d.diag(), moment[:, c]) for c, d in enumerate(decays)])
    return {"head.weight": solved[:, :-1], "head.bias": solved[:, -1]}


@pytest.mark.parametrize("per", ["weight", "input", "layer", "network"])
@pytest.mark.parametrize("rule", [Implicit("cg", 20), Implicit("neumann", 300, rate=0.5)], ids=repr)
def test_the_gradient_is_that_of_ridge_regression(per: Any, rule: Implicit) -> None:
    """Through the linear system, by autograd. Each way in which decays are shared sums over what shares them."""
    generator = torch.Generator().manual_seed(0)
    x, y, query_x, query_y = (
        torch.randn(*shape, generator=generator).double() for shape in ((30, 5), (30, 3), (20, 5), (20, 3))
    )
    module = Ridge(MLP(5, []), 3, per=per, hypergradient=rule, inner_lr=1e-12).double()
    with torch.no_grad():
        for p in module.log_decay.values():
            p.copy_(torch.randn(p.shape, generator=generator) - 1)
    (name,) = (name for name in module.outer())
    log_decay = module.outer()[name].detach().requires_grad_()
    best = minimum(x, y, log_decay.exp().expand(3, 5))
    truth = torch.autograd.grad(module.query_loss(best, Batch(query_x, query_y)).loss, log_decay)[0]

    start = Progress({key: value.detach() for key, value in best.items()}, ())
    step = Step(x[None], y[None], torch.zeros(1, dtype=torch.long))
    loss = module.query_loss(module.adapt(start, step), Batch(query_x, query_y)).loss
    (found,) = torch.autograd.grad(loss, module.outer()[name])
    torch.testing.assert_close(found, truth, rtol=1e-7, atol=1e-9)


class Half(ClassificationDataModule):
    """Images of 4 x 4 pixels, of which the upper half tells the class, faintly, and the lower is loud noise."""

    def load_source(self, split: Split) -> ClassBank:
        generator = torch.Generator().manual_seed(0)
        tells = 0.35 * torch.rand(3, 1, 1, 2, 4, generator=generator) + 0.35
        upper = tells + 0.15 * torch.rand(3, 150, 1, 2, 4, generator=generator)
        images = torch.cat([upper, torch.rand(3, 150, 1, 2, 4, generator=generator)], 3)
        return ClassBank.from_classes((images * 255).to(torch.uint8))


@pytest.mark.slow
@pytest.mark.parametrize("rule", [Implicit("cg", 10), Unrolled()], ids=repr)
def test_a_decay_per_pixel_beats_the_best_of_a_grid(rule: Any) -> None:
    """And it holds back what is noise, more than what tells the class."""

    def trained(steps: int, **settings: Any) -> tuple[Hyperparameters, float]:
        torch.manual_seed(0)
        data = HeldOutImages(
            Half(), support_per_class=6, held_out_per_class=40, val_per_class=2, test_per_class=100, batch_size=40,
            truncation=20, steps_per_epoch=steps, val_episodes=1, test_episodes=1,
        )  # fmt: skip
        module = Hyperparameters(
            MLP(16, []), 3, inner_optimizer=Momentum, inner_lr=0.2, hypergradient=rule,
            optimizer=partial(torch.optim.Adam, lr=0.1), **settings,
        )  # fmt: skip
        run = trainer(max_steps=steps, limit_val_batches=0)
        run.fit(module, datamodule=data)
        return module, run.test(module, datamodule=data, verbose=False)[0]["test/loss"]

    grid = [trained(30, per="network", decay=decay, learn=False)[1] for decay in (1e-4, 1e-3, 1e-2, 1e-1)]
    module, learned = trained(60, decay=1e-3)
    assert learned < 0.95 * min(grid)
    tells, noise = module.log_decay["head/weight"].detach().view(2, 8).mean(1)
    assert noise > tells + log(3)


def test_without_learning_there_are_no_outer_variables() -> None:
    module = Hyperparameters(network(), 4, decay=0.25, learn=False)
    assert not module.outer()
    weights = {name: p.detach() for name, p in module.network.named_parameters()}
    batch = Batch(torch.rand(6, 256), torch.arange(6) % 4)
    matrices = [value for name, value in weights.items() if name.endswith("weight")]
    expected = module.losses(weights, batch).mean() + 0.125 * sum(w.square().sum() for w in matrices)
    torch.testing.assert_close(module.inner_loss(weights, batch), expected)


def test_what_cannot_be_is_told() -> None:
    with pytest.raises(ConfigError, match="per='pixel' must be one of weight, input, layer, network"):
        Hyperparameters(network(), 4, per="pixel")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="decay=0 positive"):
        Hyperparameters(network(), 4, decay=0)
