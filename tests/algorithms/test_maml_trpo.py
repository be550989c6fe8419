"""MAML with TRPO: its step is the natural gradient's, within the limit, and the same on any number of processes."""

from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.func import functional_call

from lightning_meta.algorithms import MAMLTRPO
from lightning_meta.compat import tree_map
from lightning_meta.core import trainable
from lightning_meta.core.trust_region import trust_region_step
from lightning_meta.datamodules import Rollouts
from lightning_meta.errors import ConfigError
from lightning_meta.worlds import Continuous, Discrete, Navigation, TabularMDP, World
from tests.algorithms.rollout_cases import rollouts

SMALL: dict[str, Any] = dict(hidden=[4], activation="tanh")


def once() -> Rollouts:
    return rollouts(Navigation(3), rounds=1)


def processes() -> Rollouts:
    return rollouts(TabularMDP(4, 3, 2), rounds=1)


ROLLOUTS = {
    "maml-trpo": (lambda **kw: MAMLTRPO(2, Continuous(2), **SMALL, cg_steps=2, **kw), once),
    "maml-trpo-discrete": (lambda **kw: MAMLTRPO(4, Discrete(3), **SMALL, cg_steps=2, **kw), processes),
}


def made(world: World | None = None, **settings: Any) -> MAMLTRPO:
    torch.manual_seed(0)
    module = MAMLTRPO(2, Continuous(2), **SMALL, inner_lr=0.3, **settings).double().train()
    module.world = world or Navigation(3)
    return module


def trials() -> Any:
    drawn = once().dataset("train").__getitems__([0, 1, 2])
    return tree_map(lambda leaf: leaf.double() if leaf.is_floating_point() else leaf, drawn)


def fit(module: pl.LightningModule, **settings: Any) -> None:
    quiet = dict(enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0, logger=False)
    kept: dict[str, Any] = dict(
        accelerator="cpu", enable_checkpointing=False, max_steps=1, precision="64-true", inference_mode=False
    )
    pl.Trainer(**(kept | quiet | settings)).fit(module, datamodule=once())


def written_out(module: MAMLTRPO, tasks: Any) -> Any:
    """The surrogate and the divergence of any weights `(P,)`, task by task, with torch's distributions."""
    theta = {name: value.detach() for name, value in trainable(module).items()}
    sizes = [value.numel() for value in theta.values()]
    played = [module.play_rounds(*tree_map(lambda leaf, t=t: leaf[t], tasks))[1] for t in range(3)]

    def policy(params: dict[str, Tensor], seen: Tensor) -> torch.distributions.Distribution:
        own = {name.removeprefix("policy."): value for name, value in params.items()}
        mean, log_std = functional_call(module.policy, own, (seen,)).chunk(2, -1)
        return torch.distributions.Independent(torch.distributions.Normal(mean, log_std.exp()), 1)

    def adapted(params: dict[str, Tensor], rounds: Any) -> dict[str, Tensor]:
        for support in rounds[:-1]:
            log_probs = policy(params, support.told.seen).log_prob(support.actions)
            loss = -((log_probs - log_probs.detach()).exp() * module.advantages(support)).mean()
            slopes = torch.autograd.grad(loss, list(params.values()), create_graph=True)
            params = {name: p - 0.3 * slope for (name, p), slope in zip(params.items(), slopes, strict=True)}
        return params

    def both(flat: Tensor) -> tuple[Tensor, Tensor]:
        parts = zip(theta.items(), flat.split(sizes), strict=True)
        params = {name: part.view_as(value) for (name, value), part in parts}
        losses, divergences = [], []
        for rounds in played:
            query = rounds[-1]
            start = {name: value.clone().requires_grad_() for name, value in theta.items()}
            old = tree_map(Tensor.detach, adapted(start, rounds))
            before, now = policy(old, query.told.seen), policy(adapted(params, rounds), query.told.seen)
            ratios = (now.log_prob(query.actions) - before.log_prob(query.actions)).exp()
            losses.append(-(ratios * module.advantages(query)).mean())
            divergences.append(torch.distributions.kl_divergence(before, now).mean())
        return torch.stack(losses).mean(), torch.stack(divergences).mean()

    return both, torch.cat([value.flatten() for value in theta.values()])


def test_the_step_is_the_natural_gradients() -> None:
    """`F^-1 g` by a dense Hessian, as long as the limit allows; the surrogate falls and the divergence stays within."""
    module, tasks = made(max_divergence=1e-4, cg_steps=30, damping=1e-3), trials()
    both, flat = written_out(module, tasks)
    flat.requires_grad_()
    slope = torch.autograd.grad(both(flat)[0], flat)[0]
    hessian = torch.autograd.functional.hessian(lambda at: both(at)[1], flat.detach())
    hessian = hessian + 1e-3 * torch.eye(len(flat), dtype=torch.float64)
    natural = torch.linalg.solve(hessian, slope)
    longest = (2 * 1e-4 / (natural @ hessian @ natural)).sqrt()

    values, _ = module.measure(tasks)
    grads = torch.autograd.grad(values["loss"].mean(), list(trainable(module).values()))
    step = torch.cat([grad.flatten() for grad in grads])
    length = values["length"][0]
    assert 0 < length <= 1
    torch.testing.assert_close(step, length * longest * natural, rtol=1e-6, atol=1e-10)
    before, after = both(flat), both((flat.detach() - step).requires_grad_())
    assert after[0] < before[0] and abs(before[1]) < 1e-12 and 0 < after[1] <= 1e-4
    torch.testing.assert_close(after[1].detach(), values["divergence"][0], rtol=1e-6, atol=1e-10)


def test_the_trainer_takes_that_step() -> None:
    module = made()
    before = {name: value.detach().clone() for name, value in trainable(module).items()}
    taken: dict[str, Tensor] = {}

    class Watched(pl.Callback):
        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            taken.update({name: value.grad.clone() for name, value in trainable(pl_module).items()})

    fit(module, callbacks=[Watched()])
    assert max(step.abs().max() for step in taken.values()) > 1e-3
    for name, value in trainable(module).items():
        torch.testing.assert_close(value.detach(), before[name] - taken[name])


def test_a_step_that_helps_nothing_is_not_taken() -> None:
    """A loss with a spike at its start: it falls along no line, so the weights stay."""
    theta = {"x": torch.tensor([1.0, 2.0], dtype=torch.float64)}

    def spike(at: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        moved = at["x"] - theta["x"]
        higher = (moved.detach() != 0).any() * 1.0
        return moved.sum() + higher * (1 - moved.detach().sum()), moved.square().sum()

    step = trust_region_step(spike, theta)
    assert step.length == 0 and step.divergence == 0 and torch.equal(step.theta["x"], theta["x"])


def test_the_step_of_a_quadratic_is_known() -> None:
    """A linear loss under half the squared distance by a matrix: the step ends on the limit."""
    matrix = torch.tensor([[2.0, 0.3], [0.3, 0.5]], dtype=torch.float64)
    slope, theta = torch.tensor([1.0, -2.0], dtype=torch.float64), {"x": torch.zeros(2, dtype=torch.float64)}
    step = trust_region_step(
        lambda at: (slope @ at["x"], 0.5 * at["x"] @ matrix @ at["x"]), theta, max_divergence=0.1, damping=0.0
    )
    natural = torch.linalg.solve(matrix, slope)
    expected = -natural * (0.2 / (natural @ matrix @ natural)).sqrt()
    torch.testing.assert_close(step.theta["x"], expected * step.length)
    assert step.length in (1.0, 0.8)  # on the limit itself, rounding decides


def test_what_cannot_be_is_told() -> None:
    with pytest.raises(ConfigError, match=r"max_divergence=0 must be above 0"):
        made(max_divergence=0)
    with pytest.raises(ConfigError, match=r"damping=-1 must be at least 0"):
        made(damping=-1)
    with pytest.raises(
        ConfigError,
        match=r"takes its outer step itself, which Adam would change; set model.optimizer to torch.optim.SGD",
    ):
        fit(made(optimizer=torch.optim.Adam))
    with pytest.raises(ConfigError, match=r"gradient_clip_val=0.5 and accumulate_grad_batches=1 would change it"):
        fit(made(), gradient_clip_val=0.5)
