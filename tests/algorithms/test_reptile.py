"""Reptile against ordinary training loops by torch.optim, one network for each task."""

from collections.abc import Callable
from copy import deepcopy
from functools import partial

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lightning_meta.algorithms import Reptile
from lightning_meta.core import SGD, Batch, Episode
from lightning_meta.errors import ConfigError
from tests.conftest import Make, conv4, meta_gradient

CASES: dict[str, Make] = {"reptile": lambda: Reptile(conv4(), n_way=3, inner_lr=0.01, inner_steps=2)}
VARIANTS: dict[str, Make] = {
    "reptile-carrying": lambda: Reptile(conv4(), n_way=3, inner_lr=0.01, inner_steps=2, carry_inner_state=True),
}
LR, STEPS, SEED = 0.02, 4, 5
Training = Callable[[torch.nn.Module], torch.optim.Optimizer]


def adam(network: torch.nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(network.parameters(), lr=LR, betas=(0.0, 0.999))


def sgd(network: torch.nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(network.parameters(), lr=LR)


def reptile(**overrides) -> Reptile:
    torch.manual_seed(0)
    return Reptile(conv4(), **(dict(n_way=3, inner_lr=LR, inner_steps=STEPS) | overrides)).double()


def trained(module: Reptile, support: Batch, orders: list[Tensor], optimizer_of: Training = adam) -> torch.nn.Module:
    """A copy of the learner after a step on each mini-batch, given by positions."""
    network = deepcopy(module.learner)
    optimizer = optimizer_of(network)
    for order in orders:
        optimizer.zero_grad()
        F.cross_entropy(network(support.x[order]), support.y[order]).backward()
        optimizer.step()
    return network


class CarriedAdam:
    """Makes one Adam of torch after the other, each in the mean of the states in which those of a meta-batch ended."""

    def __init__(self) -> None:
        self.state: list[dict[str, Tensor]] = []  # of each parameter; at first there is none
        self.made: list[torch.optim.Optimizer] = []

    def __call__(self, network: torch.nn.Module) -> torch.optim.Optimizer:
        self.made.append(adam(network))
        for param, entry in zip(network.parameters(), self.state, strict=bool(self.state)):
            self.made[-1].state[param] = {key: value.clone() for key, value in entry.items()}
        return self.made[-1]

    def end_meta_batch(self) -> None:
        entries = zip(*(optimizer.state.values() for optimizer in self.made), strict=True)
        self.state = [
            {key: torch.stack([e[key] for e in of_tasks]).mean(0) for key in of_tasks[0]} for of_tasks in entries
        ]
        self.made = []

    def leaves(self) -> list[Tensor]:
        """In the order of our state: the number of steps, then mean gradients, then mean squares."""
        averages = [entry[key] for key in ("exp_avg", "exp_avg_sq") for entry in self.state]
        return [self.state[0]["step"].double(), *averages]


def mean_phi(networks: list[torch.nn.Module]) -> dict[str, Tensor]:
    every = [dict(network.named_parameters()) for network in networks]
    return {f"learner.{name}": torch.stack([phi[name].detach() for phi in every]).mean(0) for name in every[0]}


def supports(tasks: Episode) -> list[Batch]:
    return [Batch(x, y) for x, y in zip(*tasks.support, strict=True)]


@pytest.mark.parametrize("mode", ["vmap", "loop"])
@pytest.mark.parametrize("optimizer_of", [adam, sgd])
def test_gradient_is_theta_minus_mean_phi(mode: str, optimizer_of: Training, episodes: Episode) -> None:
    module = reptile(task_mode=mode, inner_optimizer=None if optimizer_of is adam else SGD)
    everything = [torch.arange(6)] * STEPS
    phi = mean_phi([trained(module, support, everything, optimizer_of) for support in supports(episodes)])
    expected = {name: theta.detach() - phi[name] for name, theta in module.named_parameters()}
    assert max(value.abs().max() for value in expected.values()) > 1e-3
    torch.testing.assert_close(meta_gradient(module, episodes), expected, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("mode", ["vmap", "loop"])
def test_gradient_is_theta_minus_mean_phi_on_shuffled_mini_batches(mode: str, episodes: Episode) -> None:
    """4 examples of 6 in each of 4 steps: two batches cross from one pass into the next."""
    module = reptile(task_mode=mode, inner_batch_size=4)
    torch.manual_seed(SEED)
    orders = [torch.rand(3, 6).argsort(1).flatten()[:16].split(4) for _ in range(3)]
    phi = mean_phi([trained(module, support, order) for support, order in zip(supports(episodes), orders, strict=True)])
    torch.manual_seed(SEED)
    expected = {name: theta.detach() - phi[name] for name, theta in module.named_parameters()}
    torch.testing.assert_close(meta_gradient(module, episodes), expected, rtol=1e-9, atol=1e-13)


def test_a_step_of_sgd_interpolates(episodes: Episode) -> None:
    """theta + epsilon (mean phi - theta): half way, and at epsilon = 1 all the way."""
    for epsilon in (0.5, 1.0):
        module = reptile()
        phi = mean_phi([trained(module, support, [torch.arange(6)] * STEPS) for support in supports(episodes)])
        theta = {name: value.detach().clone() for name, value in module.named_parameters()}
        optimizer = torch.optim.SGD(module.parameters(), lr=epsilon)
        module.play(episodes).loss.mean().backward()
        optimizer.step()
        for name, value in module.named_parameters():
            torch.testing.assert_close(value.detach(), torch.lerp(theta[name], phi[name], epsilon), rtol=1e-9, atol=0)


@pytest.mark.parametrize("training", [True, False])
def test_every_pass_visits_every_example_once_in_a_new_order(training: bool) -> None:
    """7 examples, 3 in a batch: full batches, of which some cross from one pass into the next."""
    module = reptile(inner_batch_size=3, inner_steps=14).train(training)
    tasks = Batch(torch.arange(14).view(2, 7), torch.arange(14).view(2, 7) + 100)
    batches = torch.vmap(lambda *support: module.mini_batches(Batch(*support)), randomness="different")(*tasks)
    assert len(batches) == 14
    assert all(batch.x.shape == (2, 3) for batch in batches)
    assert all(torch.equal(batch.y, batch.x + 100) for batch in batches)
    for t in range(2):
        passes = torch.cat([batch.x[t] for batch in batches]).view(6, 7)
        torch.testing.assert_close(passes.sort(1).values, tasks.x[t].expand(6, 7), rtol=0, atol=0)
        assert len({tuple(order.tolist()) for order in passes}) == 6


def test_the_order_is_drawn_in_training_and_fixed_in_evaluation() -> None:
    module, support = reptile(inner_batch_size=3), Batch(torch.arange(7), torch.arange(7))
    draw = [torch.stack([batch.x for batch in module.mini_batches(support)]) for _ in range(2)]
    assert not torch.equal(*draw)
    module.eval()
    draw = [torch.stack([batch.x for batch in module.mini_batches(support)]) for _ in range(2)]
    assert torch.equal(*draw)


@pytest.mark.parametrize("mode", ["vmap", "loop"])
def test_evaluation_is_the_loss_of_the_trained_network_on_the_query_set(mode: str, episodes: Episode) -> None:
    module = reptile(task_mode=mode, inner_batch_size=4, eval_inner_batch_size=6, eval_inner_steps=3).eval()
    with torch.no_grad():
        out = module.play(episodes)
    for t, support in enumerate(supports(episodes)):
        logits = trained(module, support, [torch.arange(6)] * 3)(episodes.query.x[t])
        torch.testing.assert_close(out.preds[t], logits, rtol=1e-8, atol=1e-11)
        torch.testing.assert_close(out.loss[t], F.cross_entropy(logits, episodes.query.y[t]), rtol=1e-9, atol=0)


def test_training_does_not_depend_on_the_query_set_but_reports_its_loss(episodes: Episode) -> None:
    module = reptile()
    other = Episode(episodes.support, Batch(episodes.query.x.flip(0), episodes.query.y))
    out, other_out = module.play(episodes), module.play(other)
    torch.testing.assert_close(out.loss, other_out.loss, rtol=0, atol=0)
    assert not torch.allclose(out.logs["query_loss"], other_out.logs["query_loss"])
    torch.testing.assert_close(out.logs["query_loss"], module.eval().play(episodes).loss)


def test_with_no_steps_nothing_moves(episodes: Episode) -> None:
    module = reptile(inner_steps=0, inner_batch_size=4)
    assert torch.equal(module.play(episodes).loss, torch.zeros(3).double())


@pytest.mark.parametrize("mode", ["vmap", "loop"])
def test_the_inner_optimizer_goes_on_from_meta_batch_to_meta_batch(mode: str, episodes: Episode) -> None:
    """Two outer updates by the Trainer against torch's Adam, whose state is handed on, and evaluation from there."""
    module, theirs = reptile(task_mode=mode, carry_inner_state=True, eval_inner_steps=3), CarriedAdam()
    module.optimizer = partial(torch.optim.SGD, lr=1.0)
    for _ in range(2):
        networks = [trained(module, support, [torch.arange(6)] * STEPS, theirs) for support in supports(episodes)]
        theirs.end_meta_batch()
        fit(module, episodes)
        torch.testing.assert_close(dict(module.named_parameters()), mean_phi(networks), rtol=1e-8, atol=1e-11)
        torch.testing.assert_close(list(module.inner_state.buffers()), theirs.leaves(), rtol=1e-8, atol=1e-16)
    assert module.inner_state.tree.step == 2 * STEPS
    module.eval()
    for _ in range(2):  # what evaluation does to the state is forgotten
        with torch.no_grad():
            out = module.play(episodes)
        for t, support in enumerate(supports(episodes)):
            logits = trained(module, support, [torch.arange(6)] * 3, theirs)(episodes.query.x[t])
            torch.testing.assert_close(out.preds[t], logits, rtol=1e-8, atol=1e-11)
        assert not out.buffers
        torch.testing.assert_close(list(module.inner_state.buffers()), theirs.leaves(), rtol=1e-8, atol=1e-16)


def fit(module: Reptile, tasks: Episode) -> None:
    """One outer update by the Trainer."""
    trainer = pl.Trainer(
        max_steps=1, accelerator="cpu", precision="64-true", inference_mode=False, logger=False, barebones=True
    )
    trainer.fit(module, DataLoader([tasks], batch_size=None))


def test_a_state_that_is_no_tensor_cannot_be_carried() -> None:
    class Counts(SGD):
        def init(self, params: dict[str, Tensor]) -> int:
            return 0

    with pytest.raises(ConfigError, match="0 is no tensor"):
        reptile(inner_optimizer=Counts, carry_inner_state=True)


def test_impossible_batch_sizes_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"eval_inner_batch_size=0.*at least 1"):
        reptile(eval_inner_batch_size=0)
