"""The regulariser that keeps the adapted weights of different tasks apart."""

import pytest
import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from lightning_meta.algorithms import MAML, MutualExclusivenessMAML
from lightning_meta.core import Batch, Episode
from tests.conftest import Make, conv4, meta_gradient, random_episodes, smooth

CASES: dict[str, Make] = {
    "mutual_exclusiveness": lambda: MutualExclusivenessMAML(
        conv4(), n_way=3, ratio=0.1, weight=0.1, inner_lr=0.1, inner_steps=2
    ),
}
LR, STEPS, RATIO, WEIGHT = 0.1, 2, 0.03, 0.7
SETTINGS = dict(n_way=3, inner_lr=LR, inner_steps=STEPS)


def charged(norm: str = "transductive", **overrides) -> MutualExclusivenessMAML:
    torch.manual_seed(0)
    module = MutualExclusivenessMAML(conv4(norm), **(SETTINGS | dict(ratio=RATIO, weight=WEIGHT) | overrides))
    return smooth(module).double()


def maml_like(module: MutualExclusivenessMAML) -> MAML:
    other = smooth(MAML(conv4(), **SETTINGS)).double()
    other.load_state_dict(module.state_dict())
    return other


def autograd_loss(module: MutualExclusivenessMAML, tasks: Episode) -> Tensor:
    """Query loss and regulariser by torch.autograd and a double loop over pairs of tasks."""
    theta = dict(module.learner.named_parameters())
    losses, weights = [], []
    for (sx, sy), (qx, qy) in zip(zip(*tasks.support, strict=True), zip(*tasks.query, strict=True), strict=True):
        phi = theta
        for _ in range(STEPS):
            loss = F.cross_entropy(functional_call(module.learner, phi, sx), sy)
            gradients = torch.autograd.grad(loss, list(phi.values()), create_graph=True)
            phi = {name: p - LR * g for (name, p), g in zip(phi.items(), gradients, strict=True)}
        losses.append(F.cross_entropy(functional_call(module.learner, phi, qx), qy))
        weights.append(torch.cat([p.flatten() for p in phi.values()]))
    terms = []
    for i in range(len(weights)):
        for j in range(len(weights)):
            if i < j:
                apart = (weights[i] - weights[j]).norm() / (tasks.support.x[i] - tasks.support.x[j]).norm()
                terms.append((RATIO - apart).abs())
    return torch.stack(losses).mean() + WEIGHT * torch.stack(terms).mean()


@pytest.mark.parametrize("mode", ["vmap", "loop"])
def test_loss_and_meta_gradient_equal_plain_autograd_over_all_pairs(mode: str) -> None:
    module, tasks = charged(task_mode=mode), random_episodes(n_tasks=4)
    gradient = meta_gradient(module, tasks)
    module.zero_grad()
    expected = autograd_loss(module, tasks)
    expected.backward()
    torch.testing.assert_close(module.play(tasks).loss.mean(), expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(gradient, {n: p.grad for n, p in module.named_parameters()}, rtol=1e-8, atol=1e-12)


def test_the_regulariser_has_a_gradient_of_its_own(episodes: Episode) -> None:
    with_it, without = meta_gradient(charged(), episodes), meta_gradient(charged(weight=0.0), episodes)
    difference = torch.cat([(with_it[name] - without[name]).flatten() for name in without]).norm()
    assert difference > 1e-2 * torch.cat([g.flatten() for g in without.values()]).norm()


def test_with_no_weight_it_is_maml(episodes: Episode) -> None:
    module = charged(weight=0.0)
    maml = maml_like(module)
    torch.testing.assert_close(module.play(episodes)[:2], maml.play(episodes)[:2], rtol=0, atol=0)
    torch.testing.assert_close(meta_gradient(module, episodes), meta_gradient(maml, episodes), rtol=0, atol=0)


def test_evaluation_is_that_of_maml(episodes: Episode) -> None:
    module = charged().eval()
    torch.testing.assert_close(module.play(episodes), maml_like(module).eval().play(episodes), rtol=0, atol=0)


def test_one_task_has_no_pairs_and_is_charged_nothing() -> None:
    module, tasks = charged(), random_episodes(n_tasks=1)
    maml = maml_like(module)
    torch.testing.assert_close(module.play(tasks)[:2], maml.play(tasks)[:2], rtol=0, atol=0)
    # A single task is looped over, in which MAML adds up the parts of the gradient in another order.
    torch.testing.assert_close(meta_gradient(module, tasks), meta_gradient(maml, tasks), rtol=1e-12, atol=1e-15)


def test_a_task_drawn_twice_is_not_charged_for_being_like_itself() -> None:
    tasks = random_episodes(n_tasks=2)
    twice = Episode(*(Batch(*(leaf[[0, 1, 0]] for leaf in part)) for part in tasks))
    module = charged()
    expected, out = module.play(tasks), module.play(twice)
    torch.testing.assert_close(out.logs["regulariser"], expected.logs["regulariser"][:1].expand(3))
    assert all(gradient.isfinite().all() for gradient in meta_gradient(module, twice).values())


def test_training_on_the_regulariser_alone_brings_the_distances_to_the_ratio(episodes: Episode) -> None:
    module = charged(ratio=0.1, weight=1.0)
    optimizer = torch.optim.Adam(module.parameters(), lr=3e-3)
    ratios = []
    for _ in range(40):
        logs = module.play(episodes).logs
        optimizer.zero_grad()
        logs["regulariser"].mean().backward()
        optimizer.step()
        ratios.append(logs["distance_ratio"][0].item())
    assert abs(ratios[0] - 0.1) > 0.05
    assert abs(ratios[-1] - 0.1) < 0.01


def test_statistics_of_an_inductive_network_are_no_weights(episodes: Episode) -> None:
    """The distances count parameters alone, not what `adapt` returns beside them."""
    module = charged("inductive")
    phis = [module.adapt(Batch(x, y)) for x, y in zip(*episodes.support, strict=True)]
    assert len(phis[0]) > len(module.theta())
    flat = [torch.cat([phi[name].flatten() for name in module.theta()]) for phi in phis]
    x = episodes.support.x
    expected = [(flat[i] - flat[j]).norm() / (x[i] - x[j]).norm() for i, j in ((0, 1), (0, 2), (1, 2))]
    torch.testing.assert_close(module.play(episodes).logs["distance_ratio"][0], torch.stack(expected).mean())
