"""iMAML against closed forms, dense linear algebra and its limits."""

from functools import partial

import pytest
import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F
from torch.utils._pytree import tree_map

from lightning_meta.algorithms import IMAML, MAML
from lightning_meta.backbones import Backbone
from lightning_meta.core import Adam, Batch, Episode
from lightning_meta.errors import ConfigError
from tests.conftest import Make, conv4, meta_gradient, smooth

CASES: dict[str, Make] = {"imaml": lambda: IMAML(conv4(), n_way=3, inner_lr=0.1, inner_steps=3, cg_steps=2)}
VARIANTS: dict[str, Make] = {
    "imaml-last": lambda: IMAML(
        conv4(), n_way=3, inner_lr=0.1, inner_steps=3, cg_steps=2, proximal_step="last", eval_proximal_strength=0.0
    ),
}
IN, SUPPORT, QUERY, TASKS = 3, 5, 4, 2


class Raw(Backbone):
    """Features are the inputs, so the learner is a linear regression."""

    in_shape, out_features = (IN,), IN

    def forward(self, x: Tensor) -> Tensor:
        return x


def regression(**overrides) -> IMAML:
    settings = dict(n_way=1, loss_fn=F.mse_loss, inner_lr=0.2, inner_steps=150, proximal_strength=0.7, cg_steps=4)
    return IMAML(Raw(), **(settings | overrides)).double()


def imaml(**overrides) -> IMAML:
    """151 parameters: few enough for a dense Hessian."""
    torch.manual_seed(0)
    settings = dict(n_way=3, inner_lr=0.01, inner_steps=3, proximal_strength=100.0, cg_steps=60)
    backbone = conv4(overrides.pop("norm", "transductive"), hidden=2)
    return IMAML(smooth(backbone), **(settings | overrides)).double()


def linear_tasks() -> Episode:
    def batch(size: int) -> Batch:
        return Batch(torch.randn(TASKS, size, IN).double(), torch.randn(TASKS, size, 1).double())

    return Episode(batch(SUPPORT), batch(QUERY))


def quadratic(batch: Batch) -> tuple[Tensor, Tensor]:
    """H and c of the mean squared error 1/2 p'Hp - c'p + const, for p = (weights, bias)."""
    x = torch.cat([batch.x, torch.ones(len(batch.x), 1)], dim=1)
    return 2 / len(x) * x.T @ x, 2 / len(x) * (x.T @ batch.y)[:, 0]


@pytest.mark.parametrize("mode", ["vmap", "loop"])
def test_solution_and_meta_gradient_on_a_quadratic_have_their_closed_form(mode: str) -> None:
    """phi = (H + lambda)^-1 (c + lambda theta); meta-gradient = lambda (H + lambda)^-1 times the query gradient."""
    module, tasks, strength = regression(task_mode=mode), linear_tasks(), 0.7
    theta = torch.cat([p.detach().flatten() for p in module.parameters()])
    expected = torch.zeros_like(theta)
    for t in range(TASKS):
        support, query = (Batch(part.x[t], part.y[t]) for part in tasks)
        (hessian, c), (query_hessian, query_c) = quadratic(support), quadratic(query)
        system = hessian + strength * torch.eye(IN + 1, dtype=torch.float64)
        phi = torch.linalg.solve(system, c + strength * theta)
        found = torch.cat([value.detach().flatten() for value in module.adapt(support).values()])
        torch.testing.assert_close(found, phi, rtol=1e-8, atol=1e-10)
        expected += strength * torch.linalg.solve(system, query_hessian @ phi - query_c) / TASKS
    gradient = torch.cat([g.flatten() for g in meta_gradient(module, tasks).values()])
    torch.testing.assert_close(gradient, expected, rtol=1e-8, atol=1e-10)


def test_solution_on_a_quadratic_is_what_maml_finds_by_differentiating_all_steps() -> None:
    """Plain autograd through 150 proximal steps: the path's derivative tends to the implicit one."""
    module, tasks = regression(), linear_tasks()
    theta = dict(module.learner.named_parameters())
    losses = []
    for t in range(TASKS):
        phi = theta
        for _ in range(module.inner_steps):
            loss = F.mse_loss(functional_call(module.learner, phi, tasks.support.x[t]), tasks.support.y[t])
            loss = loss + 0.35 * sum((phi[name] - theta[name]).square().sum() for name in theta)
            grads = torch.autograd.grad(loss, list(phi.values()), create_graph=True)
            phi = {name: p - 0.2 * g for (name, p), g in zip(phi.items(), grads, strict=True)}
        losses.append(F.mse_loss(functional_call(module.learner, phi, tasks.query.x[t]), tasks.query.y[t]))
    expected = torch.autograd.grad(torch.stack(losses).mean(), list(theta.values()))
    gradient = meta_gradient(module, tasks)
    torch.testing.assert_close(list(gradient.values()), list(expected), rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(module.play(tasks).loss, torch.stack(losses).detach(), rtol=1e-8, atol=1e-10)


def logits_by_hand(params: dict[str, Tensor], x: Tensor, support_x: Tensor, inductive: bool) -> Tensor:
    """The smoothed Conv4 in plain operations; inductive: normalised with the statistics of the support set."""
    for i in range(4):
        weight, scale, shift = (params[f"0.blocks.{i}.{name}"] for name in ("0.weight", "1.weight", "1.bias"))
        outputs = []
        for batch in (x, support_x):
            mapped = F.conv2d(batch, weight, padding=1)
            source = F.conv2d(support_x, weight, padding=1) if inductive else mapped
            var, mean = torch.var_mean(source, dim=(0, 2, 3), correction=0, keepdim=True)
            mapped = (mapped - mean) / (var + 1e-5).sqrt() * scale[:, None, None] + shift[:, None, None]
            outputs.append(F.avg_pool2d(mapped.tanh(), 2))
        x, support_x = outputs
    return F.linear(x.flatten(1), params["1.weight"], params["1.bias"])


@pytest.mark.parametrize("norm", ["transductive", "inductive"])
def test_meta_gradient_of_a_convolutional_network_equals_a_dense_solve(norm: str, episodes: Episode) -> None:
    """(I + H / (lambda + damping))^-1 g, with the Hessian written out."""
    module = imaml(norm=norm, task_mode="vmap", cg_damping=20.0)
    theta = dict(module.learner.named_parameters())
    sizes = [p.numel() for p in theta.values()]

    def loss(flat: Tensor, batch: Batch, support_x: Tensor) -> Tensor:
        params = {n: v.view_as(theta[n]) for n, v in zip(theta, flat.split(sizes), strict=True)}
        return F.cross_entropy(logits_by_hand(params, batch.x, support_x, norm == "inductive"), batch.y)

    first = tree_map(lambda leaf: leaf[:1], episodes)
    support, query = (Batch(part.x[0], part.y[0]) for part in first)
    phi = module.adapt(support)
    flat = torch.cat([phi[name].detach().flatten() for name in theta])
    hessian = torch.autograd.functional.hessian(lambda p: loss(p, support, support.x), flat)
    g = torch.autograd.functional.jacobian(lambda p: loss(p, query, support.x), flat)
    expected = torch.linalg.solve(torch.eye(len(flat)) + hessian / 120, g)
    gradient = torch.cat([g.flatten() for g in meta_gradient(module, first).values()])
    torch.testing.assert_close(gradient, expected, rtol=1e-7, atol=1e-10)


def test_loss_is_the_ordinary_query_loss_after_proximal_descent(episodes: Episode) -> None:
    module = imaml(proximal_strength=2.0, inner_lr=0.1)
    out = module.play(episodes)
    theta = {name: p.detach() for name, p in module.learner.named_parameters()}
    for t in range(3):
        phi = {name: p.clone().requires_grad_() for name, p in theta.items()}
        optimizer = torch.optim.SGD(phi.values(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            loss = F.cross_entropy(functional_call(module.learner, phi, episodes.support.x[t]), episodes.support.y[t])
            (loss + sum((phi[name] - theta[name]).square().sum() for name in phi)).backward()
            optimizer.step()
        logits = functional_call(module.learner, phi, episodes.query.x[t])
        torch.testing.assert_close(out.preds[t], logits, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(out.loss[t], F.cross_entropy(logits, episodes.query.y[t]), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("mode", ["vmap", "loop"])
def test_the_authors_variant_is_what_their_code_computes(mode: str, episodes: Episode) -> None:
    """Steps on the support loss, one on the proximal term; then `2 v + Hv / (lambda + 10) = g` by a dense solve."""
    strength, rate = 2.0, 0.1
    module = imaml(
        task_mode=mode, inner_lr=rate, inner_steps=4, proximal_step="last", proximal_strength=strength,
        cg_damping=strength + 20, eval_proximal_strength=0.0, cg_steps=100,
    )  # fmt: skip
    theta = {name: p.detach() for name, p in module.learner.named_parameters()}
    sizes = [p.numel() for p in theta.values()]

    def loss(flat: Tensor, batch: Batch) -> Tensor:
        params = {n: v.view_as(theta[n]) for n, v in zip(theta, flat.split(sizes), strict=True)}
        return F.cross_entropy(logits_by_hand(params, batch.x, batch.x, False), batch.y)

    start, expected, logits = torch.cat([p.flatten() for p in theta.values()]), 0, []
    for t in range(3):
        support, query = (Batch(part.x[t], part.y[t]) for part in episodes)
        phi = start.clone().requires_grad_()
        optimizer = torch.optim.SGD([phi], lr=rate)
        for _ in range(4):
            optimizer.zero_grad()
            loss(phi, support).backward()
            optimizer.step()
        params = {n: v.view_as(theta[n]) for n, v in zip(theta, phi.detach().split(sizes), strict=True)}
        logits.append(functional_call(module.learner, params, query.x))  # lambda is 0 in their test
        optimizer.zero_grad()
        (strength / 2 * (phi - start).square().sum()).backward()
        optimizer.step()
        hessian = torch.autograd.functional.hessian(partial(loss, batch=support), phi.detach())
        g = torch.autograd.functional.jacobian(partial(loss, batch=query), phi.detach())
        expected += torch.linalg.solve(2 * torch.eye(len(phi)) + hessian / (strength + 10), g) / 3
    gradient = torch.cat([g.flatten() for g in meta_gradient(module, episodes).values()])
    torch.testing.assert_close(gradient / 2, expected, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(module.eval().play(episodes).preds, torch.stack(logits), rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("step", ["each", "last"])
def test_without_strength_evaluation_is_plain_descent(step: str, episodes: Episode) -> None:
    """With any optimizer: Adam would take a step along a gradient of 0 too."""
    settings = dict(n_way=3, inner_lr=0.02, inner_steps=3, inner_optimizer=Adam)
    module = IMAML(conv4(), proximal_step=step, eval_proximal_strength=0.0, **settings).double().eval()
    plain = MAML(conv4(), **settings).double().eval()
    plain.load_state_dict(module.state_dict())
    torch.testing.assert_close(module.play(episodes), plain.play(episodes), rtol=1e-12, atol=1e-14)
    module.eval_proximal_strength = 2.0
    assert not torch.allclose(module.play(episodes).loss, plain.play(episodes).loss, rtol=1e-4)


def test_towards_infinite_strength_the_gradient_is_that_of_theta_itself(episodes: Episode) -> None:
    module = imaml(proximal_strength=1e9, inner_lr=1e-9, cg_steps=5)
    still = MAML(module.backbone, n_way=3, inner_steps=0).double()
    still.load_state_dict(module.state_dict())
    torch.testing.assert_close(meta_gradient(module, episodes), meta_gradient(still, episodes), rtol=1e-6, atol=1e-8)


def test_towards_infinite_damping_the_gradient_is_the_first_order_one(episodes: Episode) -> None:
    """FOMAML's: the query gradient at phi, as if phi moved with theta."""
    module = imaml(cg_damping=1e12, cg_steps=5)
    expected = dict.fromkeys(dict(module.learner.named_parameters()), 0)
    for t in range(3):
        phi = module.adapt(Batch(episodes.support.x[t], episodes.support.y[t]))
        phi = {name: value.detach().requires_grad_() for name, value in phi.items()}
        F.cross_entropy(functional_call(module.learner, phi, episodes.query.x[t]), episodes.query.y[t]).backward()
        expected = {name: expected[name] + value.grad / 3 for name, value in phi.items()}
    for name, value in meta_gradient(module, episodes).items():
        torch.testing.assert_close(value, expected[name.removeprefix("learner.")], rtol=1e-8, atol=1e-11)


def graph_size(out: Tensor) -> int:
    nodes, seen = [out.grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is not None and node not in seen:
            seen.add(node)
            nodes.extend(parent for parent, _ in node.next_functions)
    return len(seen)


def test_the_graph_does_not_grow_with_the_inner_steps(episodes: Episode) -> None:
    """Memory is that of one step. MAML's grows."""
    few, many = (graph_size(imaml(inner_steps=k).play(episodes).loss) for k in (1, 12))
    assert few == many
    few, many = (
        graph_size(MAML(conv4(), n_way=3, inner_lr=0.1, inner_steps=k).double().play(episodes).loss) for k in (1, 12)
    )
    assert many > 3 * few


@pytest.mark.parametrize(
    ("setting", "value"),
    [("proximal_strength", 0.0), ("eval_proximal_strength", -1.0), ("cg_steps", 0), ("cg_damping", -1.0)],
)
def test_impossible_settings_are_named(setting: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"{setting}={value}"):
        imaml(**{setting: value})
