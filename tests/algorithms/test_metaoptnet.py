"""MetaOptNet (metaoptnet): the SVM against cvxpy and its conditions of optimality, gradients by finite differences."""

import sys
from importlib.util import find_spec

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_meta.algorithms import MetaOptNet
from lightning_meta.algorithms.compare import metaoptnet
from lightning_meta.algorithms.compare.metaoptnet import support_vector_machine
from lightning_meta.core import Episode
from lightning_meta.core.episode import EpisodeShape
from lightning_meta.errors import ConfigError
from lightning_meta.interop.qpth import solve_qp
from tests.conftest import Make, conv4, meta_gradient, random_episodes, smooth

needs_qpth = pytest.mark.skipif(find_spec("qpth") is None, reason="qpth is not installed")
CASES: dict[str, Make] = {"metaoptnet-ridge": lambda: MetaOptNet(conv4(), head="ridge")}
VARIANTS: dict[str, Make] = {
    "metaoptnet": pytest.param(lambda: MetaOptNet(conv4("inductive"), n_way=3), marks=needs_qpth),
}
C_REG = 0.1
LABELS = torch.tensor([2, 0, 1, 1, 0, 2])


@pytest.fixture
def _qpth() -> None:
    pytest.importorskip("qpth")


def features(scale: float = 1.0) -> Tensor:
    return scale * torch.randn(6, 8, dtype=torch.float64)


def dual_of(weights: Tensor, x: Tensor) -> Tensor:
    """The dual variables behind `W = X' a`; there are fewer examples than features."""
    return torch.linalg.lstsq(x.T, weights).solution


@pytest.mark.usefixtures("_qpth")
@pytest.mark.parametrize("scale", [0.3, 1.0, 5.0], ids=["at the bound", "between", "inside"])
def test_weights_minimise_the_primal_objective(scale: float) -> None:
    """`|W|^2 / 2 + C sum_n max_k (margin_nk + w_k x_n - w_y x_n)`, by cvxpy's solver, which sees no dual."""
    cp = pytest.importorskip("cvxpy")
    x = features(scale)
    weights = support_vector_machine(x, F.one_hot(LABELS, 3), C_REG)
    variable = cp.Variable((8, 3))
    scores = x.numpy() @ variable
    own = cp.sum(cp.multiply(scores, F.one_hot(LABELS, 3).numpy()), axis=1, keepdims=True)
    hinge = cp.max(1 - F.one_hot(LABELS, 3).numpy() + scores - own @ torch.ones(1, 3).numpy(), axis=1)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(variable) / 2 + C_REG * cp.sum(hinge)))
    problem.solve(solver=cp.CLARABEL)
    torch.testing.assert_close(weights, torch.tensor(variable.value), rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("_qpth")
@pytest.mark.parametrize("scale", [0.3, 1.0, 5.0])
def test_the_dual_is_feasible_and_as_good_as_the_primal(scale: float) -> None:
    """No duality gap: the conditions of optimality of a convex program."""
    x, one_hot = features(scale), F.one_hot(LABELS, 3).double()
    weights = support_vector_machine(x, one_hot, C_REG)
    dual = dual_of(weights, x)
    assert (dual <= C_REG * one_hot + 1e-8).all()
    torch.testing.assert_close(dual.sum(1), torch.zeros(6).double(), rtol=0, atol=1e-8)
    scores = x @ weights
    slack = (1 - one_hot + scores - (scores * one_hot).sum(1, keepdim=True)).amax(1)
    primal = weights.square().sum() / 2 + C_REG * slack.sum()
    torch.testing.assert_close(primal, -weights.square().sum() / 2 - ((1 - one_hot) * dual).sum(), rtol=1e-5, atol=0)


@pytest.mark.usefixtures("_qpth")
@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0])
def test_slots_without_examples_change_nothing(scale: float) -> None:
    x = features(scale)
    exact, more = (support_vector_machine(x, F.one_hot(LABELS, slots), C_REG) for slots in (3, 6))
    torch.testing.assert_close(more[:, :3], exact, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(more[:, 3:], torch.zeros(8, 3).double(), rtol=0, atol=1e-10)


@pytest.mark.usefixtures("_qpth")
@pytest.mark.parametrize("mode", ["vmap", "loop"])
def test_gradient_of_a_program_equals_finite_differences(mode: str) -> None:
    root, p = torch.randn(2, 4, 4, dtype=torch.float64), torch.randn(2, 4, dtype=torch.float64)
    G, h = torch.eye(4, dtype=torch.float64), torch.full((4,), 0.2, dtype=torch.float64)
    A, b = torch.ones(1, 4, dtype=torch.float64), torch.full((1,), 0.3, dtype=torch.float64)

    def solve(root: Tensor, p: Tensor, h: Tensor, b: Tensor) -> Tensor:
        return solve_qp(root @ root.T + torch.eye(4).double(), p, G, h, A, b)

    arguments = [value.clone().requires_grad_() for value in (root, p, h, b)]
    if mode == "vmap":
        assert torch.autograd.gradcheck(torch.vmap(solve, (0, 0, None, None)), arguments, atol=1e-6)
    else:
        arguments[:2] = [value[0].detach().requires_grad_() for value in arguments[:2]]
        assert torch.autograd.gradcheck(solve, arguments, atol=1e-6)
    solution = torch.vmap(solve, (0, 0, None, None))(root, p, h, b)
    assert (solution >= 0.2 - 1e-6).any()  # some inequality holds with equality
    torch.testing.assert_close(solution.sum(1), torch.full((2,), 0.3).double())


@pytest.mark.usefixtures("_qpth")
def test_meta_gradient_equals_finite_differences(episodes: Episode) -> None:
    module = MetaOptNet(smooth(conv4()), n_way=3, c_reg=0.5).double()
    gradient = meta_gradient(module, episodes)
    for name in ("log_scale", "backbone.blocks.0.0.weight", "backbone.blocks.3.1.bias"):
        parameter, index = module.get_parameter(name), gradient[name].abs().argmax()
        value, step = parameter.data.flatten()[index].clone(), 1e-5
        losses = []
        for sign in (1, -1):
            parameter.data.view(-1)[index] = value + sign * step
            losses.append(module.play(episodes).loss.mean().item())
        parameter.data.view(-1)[index] = value
        difference = (losses[0] - losses[1]) / (2 * step)
        assert gradient[name].flatten()[index].item() == pytest.approx(difference, rel=1e-5), name


@pytest.mark.parametrize("head", ["svm", "ridge"])
def test_plays_any_way_with_the_same_weights(head: str) -> None:
    if head == "svm":
        pytest.importorskip("qpth")
    module = MetaOptNet(nn.Flatten(), head, ridge_penalty=1.0).double()
    for n_way in (2, 5):
        tasks = random_episodes(n_way=n_way, k_shot=1)
        out = module.play(Episode(tasks.support, tasks.support))
        assert out.preds.shape == (3, n_way, n_way)
        assert (out.preds.argmax(-1) == tasks.support.y).all()  # fits its own support set


def test_the_ridge_head_is_ridge_regression(episodes: Episode) -> None:
    module = MetaOptNet(nn.Flatten(), "ridge", ridge_penalty=2.0).double()
    out = module.play(episodes)
    x, y = episodes.support.x[0].flatten(1), F.one_hot(episodes.support.y[0], 3).double()
    weights = torch.linalg.inv(x.T @ x + 2 * torch.eye(x.shape[1]).double()) @ x.T @ y
    expected = module.log_scale.exp() * episodes.query.x[0].flatten(1) @ weights
    torch.testing.assert_close(out.preds[0, :, :3], expected, rtol=1e-8, atol=1e-9)


@pytest.mark.usefixtures("_qpth")
def test_more_classes_than_outputs_names_both_numbers() -> None:
    module = MetaOptNet(conv4(), n_way=5)
    module.check_task(EpisodeShape(3, 1, 1), "test")
    with pytest.raises(ConfigError, match=r"train.*20-way.*n_way=5"):
        module.check_task(EpisodeShape(20, 1, 1), "train")


def test_without_qpth_the_svm_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "qpth", None)
    with pytest.raises(ConfigError, match=r"qpth.*requirements\.txt"):
        MetaOptNet(conv4())
    assert metaoptnet.MetaOptNet(conv4(), head="ridge").head == "ridge"


@pytest.mark.parametrize("setting", ["c_reg", "ridge_penalty"])
def test_penalties_must_be_positive(setting: str) -> None:
    with pytest.raises(ConfigError, match=rf"{setting}=0"):
        MetaOptNet(conv4(), head="ridge", **{setting: 0})
