"""MR-MAML charges for what its encoder knows; what adapts is free."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence
from torch.func import functional_call
from torch.nn import functional as F

from lightning_meta.algorithms import ANIL, MAML, MRMAML
from lightning_meta.algorithms.initialize.mr_maml import divergence
from lightning_meta.backbones import MLP, Backbone
from lightning_meta.core import Batch, Episode
from lightning_meta.errors import ConfigError
from tests.conftest import Make, conv4, meta_gradient, smooth

CASES: dict[str, Make] = {
    "mr-maml-weights": lambda: MRMAML(conv4(), n_way=3, decoder=MLP(4, [5]), inner_lr=0.1, inner_steps=2),
}
VARIANTS: dict[str, Make] = {
    "mr-maml-activations": lambda: MRMAML(conv4(), n_way=3, regularize="activations", inner_lr=0.1, inner_steps=2),
}
LR, STEPS, BETA, CODE = 0.2, 2, 0.3, 4
REGULARIZED = ["weights", "activations"]


def mr_maml(regularize: str, decoder: bool = True, norm: str = "transductive", **overrides) -> MRMAML:
    torch.manual_seed(0)
    settings = dict(n_way=3, regularize=regularize, beta=BETA, initial_std=0.3, inner_lr=LR, inner_steps=STEPS)
    module = MRMAML(conv4(norm), decoder=MLP(CODE, [5]) if decoder else None, **(settings | overrides))
    return smooth(module).double()


@pytest.fixture
def noise(monkeypatch: pytest.MonkeyPatch) -> Callable[[Tensor], Tensor]:
    """In place of random numbers, a function of the mean of what is drawn."""

    def standard(mean: Tensor) -> Tensor:
        return torch.cos(10 * mean).detach()

    monkeypatch.setattr("torch.randn_like", standard)
    return standard


def draw_counter(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    draws: list[Tensor] = []
    randn_like = torch.randn_like

    def counted(mean: Tensor) -> Tensor:
        draws.append(randn_like(mean))
        return draws[-1]

    monkeypatch.setattr("torch.randn_like", counted)
    return draws


def task(episodes: Episode, t: int = 0) -> Episode:
    return Episode(*(Batch(part.x[t], part.y[t]) for part in episodes))


def autograd_loss(module: MRMAML, episode: Episode, noise: Callable[[Tensor], Tensor]) -> Tensor:
    """The training loss of one task, written out: torch.autograd, torch.distributions and no hooks of the module."""
    backbone, to_code, *rest = module.learner
    decoder = nn.Sequential(*rest[1:] if module.regularize == "activations" else rest)
    if module.regularize == "weights":
        named = dict(nn.Sequential(backbone, to_code).named_parameters())
        kernels = [name for name, p in named.items() if p.ndim > 1]
        posteriors = [
            Normal(named[name], log_std.exp()) for name, log_std in zip(kernels, module.log_stds, strict=True)
        ]
        drawn = {name: q.loc + q.scale * noise(q.loc) for name, q in zip(kernels, posteriors, strict=True)}
        support, query = (
            functional_call(nn.Sequential(backbone, to_code), drawn, part.x)
            for part in (episode.support, episode.query)
        )
        kl = sum(kl_divergence(q, Normal(torch.zeros_like(q.loc), 1.0)).sum() for q in posteriors)
    else:
        codes = []
        for part in episode:
            mean, spread = to_code(backbone(part.x)).tensor_split(2, dim=1)
            codes.append(Normal(mean, F.softplus(spread)))
        support, query = (q.loc + q.scale * noise(q.loc) for q in codes)
        kl = kl_divergence(codes[1], Normal(torch.zeros_like(codes[1].loc), 1.0)).sum(1).mean()
    phi = dict(decoder.named_parameters())
    for _ in range(STEPS):
        loss = F.cross_entropy(functional_call(decoder, phi, support), episode.support.y)
        gradients = torch.autograd.grad(loss, list(phi.values()), create_graph=True)
        phi = {name: p - LR * g for (name, p), g in zip(phi.items(), gradients, strict=True)}
    return F.cross_entropy(functional_call(decoder, phi, query), episode.query.y) + BETA * kl


def test_divergence_is_that_of_torch_distributions() -> None:
    mean, std = torch.randn(5, 3).double(), torch.rand(5, 3).double() + 0.01
    torch.testing.assert_close(divergence(mean, std), kl_divergence(Normal(mean, std), Normal(0.0, 1.0)).double())
    assert divergence(torch.zeros(()), torch.ones(())) == 0


@pytest.mark.parametrize("mode", ["vmap", "loop"])
@pytest.mark.parametrize("regularize", REGULARIZED)
def test_meta_gradient_equals_a_direct_implementation(
    regularize: str, mode: str, episodes: Episode, noise: Callable[[Tensor], Tensor]
) -> None:
    module = mr_maml(regularize, task_mode=mode)
    gradient = meta_gradient(module, episodes)
    assert set(gradient) == set(dict(module.named_parameters()))
    module.zero_grad()
    loss = torch.stack([autograd_loss(module, task(episodes, t), noise) for t in range(3)]).mean()
    loss.backward()
    torch.testing.assert_close(module.play(episodes).loss.mean(), loss, rtol=1e-10, atol=1e-12)
    expected = {name: p.grad for name, p in module.named_parameters()}
    torch.testing.assert_close(gradient, expected, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("regularize", REGULARIZED)
def test_only_decoder_and_head_adapt(regularize: str, episodes: Episode) -> None:
    module = mr_maml(regularize).eval()
    phi = module.adapt(task(episodes).support)
    first = 3 if regularize == "activations" else 2
    for name, p in module.learner.named_parameters():
        moved = name in phi and (phi[name] - p).abs().max() > 1e-4
        assert moved == (int(name.split(".")[0]) >= first), name


class Encoder(Backbone):
    """What comes before the adapted part, as one backbone."""

    def __init__(self, layers: nn.Sequential) -> None:
        super().__init__()
        self.layers, self.out_features = layers, layers[1].out_features

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def test_without_noise_and_charge_it_is_anil(episodes: Episode) -> None:
    """Loss and predictions to the last bit; the meta-gradient of encoder and head to rounding."""
    module = mr_maml("weights", decoder=False, beta=0.0, initial_std=1e-30, task_mode="loop")
    encoder = Encoder(module.encoder)
    anil = ANIL(encoder, n_way=3, inner_lr=LR, inner_steps=STEPS, task_mode="loop").double()
    anil.head.load_state_dict(module.decoder[0].state_dict())
    torch.testing.assert_close(module.play(episodes)[:2], anil.play(episodes)[:2], rtol=0, atol=0)
    gradient = meta_gradient(module, episodes)
    expected = meta_gradient(anil, episodes)
    for name, value in expected.items():
        own = name.replace("learner.1.", "learner.2.").replace("learner.0.layers.", "learner.")
        torch.testing.assert_close(gradient[own], value, rtol=1e-11, atol=1e-14)
    assert len(expected) == len(gradient) - len(module.log_stds)


def test_without_noise_and_charge_the_activations_are_those_of_maml_with_a_frozen_encoder(episodes: Episode) -> None:
    """The truth is MAML on codes computed beforehand. No spread: softplus(-100) is 4e-44."""
    module = mr_maml("activations", beta=0.0)
    to_code = module.learner[1]
    with torch.no_grad():
        to_code.weight[CODE:] = 0
        to_code.bias[CODE:] = -100
        codes = Episode(
            *(
                Batch(torch.stack([to_code(module.learner[0](x))[:, :CODE] for x in part.x]), part.y)
                for part in episodes
            )
        )
    maml = MAML(module.learner[3], n_way=3, inner_lr=LR, inner_steps=STEPS).double()
    maml.learner[1].load_state_dict(module.learner[4].state_dict())
    torch.testing.assert_close(module.play(episodes)[:2], maml.play(codes)[:2], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("regularize", REGULARIZED)
def test_evaluation_draws_nothing_and_reports_the_plain_loss(
    regularize: str, episodes: Episode, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, draws = mr_maml(regularize).eval(), draw_counter(monkeypatch)
    out = module.play(episodes)
    plain = F.cross_entropy(out.preds.flatten(0, 1), episodes.query.y.flatten())
    torch.testing.assert_close(out.loss.mean(), plain, rtol=1e-12, atol=1e-14)
    assert not draws
    assert not out.logs
    trained = module.train().play(episodes)
    assert draws
    assert set(trained.logs) == {"kl"}
    assert (trained.loss - BETA * trained.logs["kl"] - out.loss).abs().max() < 1


def test_evaluation_is_the_learner_as_it_stands(episodes: Episode) -> None:
    for regularize in REGULARIZED:
        module = mr_maml(regularize, inner_steps=0).eval()
        torch.testing.assert_close(module.play(episodes).preds[0], module.learner(episodes.query.x[0]))


@pytest.mark.parametrize("mode", ["vmap", "loop"])
def test_support_and_query_of_a_task_share_the_drawn_weights_and_tasks_do_not(
    mode: str, episodes: Episode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With as many draws as kernels for each task, and with support = query and no steps: the loss on the support."""
    module = mr_maml("weights", inner_steps=0, task_mode=mode)
    same_task = Episode(
        *(Batch(part.x[:1].expand(2, *part.x.shape[1:]), part.y[:1].expand(2, -1)) for part in episodes)
    )
    preds = module.play(same_task).preds
    assert (preds[0] - preds[1]).abs().max() > 1e-3
    draws = draw_counter(monkeypatch)
    adapted = module.adapt(task(episodes).support)
    module.query_loss(adapted, task(episodes).query)
    assert len(draws) == len(module.log_stds) == 5  # four convolutions and the linear layer


def test_the_code_of_each_example_is_drawn_anew(episodes: Episode) -> None:
    module = mr_maml("activations", inner_steps=0)
    x = episodes.query.x[0, :1].expand(6, -1, -1, -1)
    preds = module.query_loss(module.adapt(task(episodes).support), Batch(x, episodes.query.y[0])).preds
    assert (preds[0] - preds[1:]).abs().amax(1).min() > 1e-4


def test_inductive_predictions_ignore_the_other_queries(episodes: Episode) -> None:
    first_query = Episode(episodes.support, Batch(episodes.query.x[:, :1], episodes.query.y[:, :1]))
    module = mr_maml("weights", norm="inductive").eval()
    alone, together = module.play(first_query).preds[:, 0], module.play(episodes).preds[:, 0]
    torch.testing.assert_close(alone, together, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(beta=-1.0), r"beta=-1\.0"),
        (dict(initial_std=0.0), r"initial_std=0\.0"),
        (dict(decoder=conv4()), r"a code is a vector.*\(1, 16, 16\)"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MRMAML(conv4(), n_way=3, **settings)
