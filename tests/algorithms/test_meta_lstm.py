"""Meta-LSTM: gates that make it gradient descent, and gates against loops over coordinates in plain Python."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from lightning_meta.algorithms import MAML, MetaLSTM
from lightning_meta.algorithms.optimizers.meta_lstm import GatedUpdate, flatten
from lightning_meta.core import SGD, Episode, Params, unroll
from lightning_meta.errors import ConfigError
from tests.conftest import Make, conv4, meta_gradient, smooth

CASES: dict[str, Make] = {"meta_lstm": lambda: MetaLSTM(conv4(), n_way=3, inner_lr=0.1, inner_steps=2, hidden=4)}
TRANSDUCTIVE_IN_TRAINING = {MetaLSTM: "as in its authors' code, whatever the protocol of evaluation"}
LR, STEPS = 0.1, 3


def meta_lstm(norm: str = "transductive", **overrides) -> MetaLSTM:
    torch.manual_seed(0)
    settings = dict(n_way=3, inner_lr=LR, inner_steps=STEPS, hidden=4)
    return MetaLSTM(conv4(norm), **(settings | overrides)).double()


def fix_gates(update: GatedUpdate) -> None:
    """Forget gate 1, input gate `LR`, whatever they see."""
    for weight in update.parameters():
        nn.init.zeros_(weight)
    with torch.no_grad():
        update.gates.bias.copy_(torch.tensor([50.0, math.log(LR / (1 - LR))], dtype=torch.float64))


def lively(update: GatedUpdate) -> GatedUpdate:
    """Weights so large that every input shows."""
    for weight in update.parameters():
        nn.init.uniform_(weight, -0.7, 0.7)
    return update


def start() -> Params:
    return {"a": torch.randn(3, 2).double(), "b": torch.randn(4).double()}


def quartic(params: Params) -> Tensor:
    return (params["a"] ** 4).sum() / 4 + params["a"].sum() * params["b"].sin().sum()


def test_forget_gate_1_and_a_fixed_input_gate_are_gradient_descent() -> None:
    update, theta = GatedUpdate(0.01).double(), start()
    fix_gates(update)
    path = unroll(quartic, theta, update, STEPS, trajectory=True)
    torch.testing.assert_close(path, unroll(quartic, theta, SGD(LR), STEPS, trajectory=True), rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("mode", ["vmap", "loop"])
@pytest.mark.parametrize("first_order", [True, False])
def test_the_learned_initialisation_alone_is_maml(mode: str, first_order: bool, episodes: Episode) -> None:
    """First-order MAML, by default: the same loss, predictions and gradient of theta."""
    module = meta_lstm(task_mode=mode, first_order=first_order)
    fix_gates(module.inner_optimizer)
    maml = MAML(conv4(), n_way=3, inner_lr=LR, inner_steps=STEPS, first_order=first_order, task_mode=mode).double()
    maml.learner.load_state_dict(module.learner.state_dict())
    torch.testing.assert_close(module.play(episodes), maml.play(episodes), rtol=1e-11, atol=1e-13)
    gradient = meta_gradient(module, episodes)
    for name, expected in meta_gradient(maml, episodes).items():
        torch.testing.assert_close(gradient[name], expected, rtol=1e-9, atol=1e-12)


def test_each_coordinate_is_an_lstm_of_its_own_with_shared_weights() -> None:
    """The recurrence coordinate by coordinate, with torch's cell and the paper's formulas for the gates."""
    update, theta = lively(GatedUpdate(0.01, hidden=3).double()), start()
    cell = nn.LSTMCell(4, 3).double()
    cell.load_state_dict(update.lstm.state_dict())
    (w_f, w_i), (b_f, b_i) = update.gates.weight, update.gates.bias

    def inputs(x: Tensor) -> list[Tensor]:
        return [x.abs().log() / 10, x.sign()] if x.abs() >= math.exp(-10) else [-torch.ones_like(x), x * math.exp(10)]

    phi = {name: value.clone() for name, value in theta.items()}
    hidden = {name: [(torch.zeros(3).double(),) * 2] * value.numel() for name, value in theta.items()}
    f = {name: torch.zeros_like(value).flatten() for name, value in theta.items()}
    i = {name: torch.zeros_like(value).flatten() for name, value in theta.items()}
    for expected in unroll(quartic, theta, update, STEPS, trajectory=True)[1:]:
        grads, loss = torch.func.grad_and_value(quartic)(phi)
        for name, value in phi.items():
            moved = []
            for k, (p, g) in enumerate(zip(value.flatten(), grads[name].flatten(), strict=True)):
                h, c = cell(torch.stack(inputs(g) + inputs(loss)), hidden[name][k])
                hidden[name][k] = (h, c)
                f[name][k] = (w_f @ h + update.from_value[0] * p + update.from_gate[0] * f[name][k] + b_f).detach()
                i[name][k] = (w_i @ h + update.from_value[1] * p + update.from_gate[1] * i[name][k] + b_i).detach()
                moved.append(f[name][k].sigmoid() * p - i[name][k].sigmoid() * g)
            phi[name] = torch.stack(moved).detach().view_as(value)
        torch.testing.assert_close(expected, phi, rtol=1e-12, atol=1e-14)


def test_permuting_coordinates_permutes_the_update() -> None:
    """Whichever tensors they stand in."""
    update, theta = lively(GatedUpdate(0.01).double()), torch.randn(10).double()
    order = torch.randperm(10)
    curvature = torch.randn(10).double()

    def loss(theta_P: Tensor, curvature_P: Tensor) -> Tensor:
        return (curvature_P * theta_P**2).sum() + theta_P.sum().sin()

    whole = unroll(lambda p: loss(p["w"], curvature), {"w": theta}, update, STEPS)["w"]
    parts = {"a": theta[order][:4].view(2, 2), "b": theta[order][4:]}
    permuted = unroll(lambda p: loss(flatten(p), curvature[order]), parts, update, STEPS)
    torch.testing.assert_close(flatten(permuted), whole[order], rtol=1e-12, atol=1e-14)
    assert not torch.allclose(whole, theta)


def test_meta_gradient_equals_finite_differences_with_gradients_and_losses_held_constant(episodes: Episode) -> None:
    """A loop over the steps in which what the learner tells the optimizer is a list of numbers."""
    module = meta_lstm()
    smooth(module)
    update = lively(module.inner_optimizer)
    support, query = (type(batch)(*(leaf[0] for leaf in batch)) for batch in episodes)
    told = []
    for phi in unroll(lambda p: module.loss(p, support), module.theta(), update, STEPS - 1, trajectory=True):
        phi = {name: value.detach().requires_grad_() for name, value in phi.items()}
        loss = module.loss(phi, support)
        told.append((dict(zip(phi, torch.autograd.grad(loss, list(phi.values())), strict=True)), loss.detach()))

    def end() -> Tensor:
        phi, state = module.theta(), update.init(module.theta())
        for grads, loss in told:
            phi, state = update.update(grads, state, phi, loss)
        return F.cross_entropy(functional_call(module.learner, phi, (query.x,)), query.y)

    gradient = meta_gradient(module, Episode(*(type(batch)(*(leaf[:1] for leaf in batch)) for batch in episodes)))
    for name in [*(name for name in gradient if name.startswith("inner_optimizer.")), "learner.0.blocks.1.0.weight"]:
        place = tuple(index.item() for index in (gradient[name].abs() == gradient[name].abs().max()).nonzero()[0])
        weight = module.get_parameter(name)
        ends = []
        for h in (1e-6, -1e-6):
            with torch.no_grad():
                weight[place] += h
                ends.append(end())
                weight[place] -= h
        torch.testing.assert_close(gradient[name][place], (ends[0] - ends[1]) / 2e-6, rtol=1e-5, atol=1e-10)


def test_training_begins_as_gradient_descent_with_the_rate_asked_for() -> None:
    """But for a forget gate of 0.993 and small weights."""
    torch.manual_seed(0)
    update = GatedUpdate(LR).double()
    grads, theta = {"a": torch.randn(5).double()}, {"a": torch.zeros(5).double()}
    moved, _ = update.update(grads, update.init(theta), theta, torch.tensor(1.6).double())
    torch.testing.assert_close(moved["a"], -LR * grads["a"], rtol=0.03, atol=0)


def test_statistics_are_the_batches_own_in_training_and_the_supports_in_evaluation(episodes: Episode) -> None:
    inductive, transductive = meta_lstm("inductive"), meta_lstm("transductive")
    torch.testing.assert_close(inductive.play(episodes), transductive.play(episodes), rtol=0, atol=0)
    (qx, qy) = episodes.query
    alone = Episode(episodes.support, type(episodes.query)(qx[:, :1], qy[:, :1]))
    for module, independent in [(inductive.eval(), True), (transductive.eval(), False)]:
        same = torch.allclose(module.play(alone).preds, module.play(episodes).preds[:, :1], rtol=1e-9)
        assert same is independent


@pytest.mark.parametrize("inner_lr", [0.0, 1.0])
def test_a_rate_that_no_gate_can_have_is_refused(inner_lr: float) -> None:
    with pytest.raises(ConfigError, match=f"inner_lr={inner_lr} must lie between 0 and 1"):
        meta_lstm(inner_lr=inner_lr)
