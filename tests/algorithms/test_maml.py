"""MAML's meta-gradient against independent truths."""

from collections.abc import Callable
from functools import partial

import pytest
import torch

from lightning_meta.algorithms import MAML, MRMAML, Reptile
from lightning_meta.backbones import MLP, TokenTransformer
from lightning_meta.core import Adam, Batch, Episode
from lightning_meta.errors import ConfigError
from lightning_meta.modules.learned_rates import LearnedRates
from tests.conftest import Make, autograd_meta_gradient, blobs, conv4, meta_gradient, next_tokens, smooth

CASES: dict[str, Make] = {"maml": lambda: MAML(conv4(), n_way=3, inner_lr=0.1, inner_steps=2)}
LANGUAGE_MODELS: dict[str, Make] = {
    "maml-lstm": lambda: MAML(**next_tokens(), inner_lr=0.3, inner_steps=2),
    "maml-transformer": lambda: MAML(**next_tokens(TokenTransformer, layers=1, heads=2), inner_lr=0.3),
}
VARIANTS: dict[str, Make] = {
    "maml-strided": lambda: MAML(conv4(downsample="stride"), n_way=3, inner_lr=0.1, inner_steps=2),
    "maml-learned-adam": lambda: MAML(
        conv4(),
        n_way=3,
        inner_lr=0.01,
        inner_steps=2,
        inner_optimizer=partial(LearnedRates, optimizer=Adam, weight_decay=0.01),
    ),
    "maml-inductive": lambda: MAML(conv4("inductive"), n_way=3, inner_lr=0.1, inner_steps=2),
    "fomaml": lambda: MAML(conv4(), n_way=3, inner_lr=0.1, inner_steps=2, first_order=True),
}
LR, STEPS = 0.1, 3


def maml(**overrides) -> MAML:
    torch.manual_seed(0)
    settings = dict(n_way=3, inner_lr=LR, inner_steps=STEPS)
    backbone = overrides.pop("backbone", None) or conv4(overrides.pop("norm", "transductive"))
    return MAML(smooth(backbone), **(settings | overrides)).double()


@pytest.mark.parametrize("mode", ["vmap", "loop"])
@pytest.mark.parametrize("first_order", [False, True], ids=["second-order", "first-order"])
def test_meta_gradient_equals_plain_autograd(mode: str, first_order: bool, episodes: Episode) -> None:
    """For first order, `create_graph=False` detaches the inner gradients: FOMAML's definition."""
    module = maml(task_mode=mode, first_order=first_order)
    expected = autograd_meta_gradient(module, episodes, STEPS, lambda name, step: LR, create_graph=not first_order)
    torch.testing.assert_close(meta_gradient(module, episodes), expected, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("mode", ["vmap", "loop"])
@pytest.mark.parametrize("norm", ["transductive", "inductive"])
def test_meta_gradient_equals_finite_differences(mode: str, norm: str, episodes: Episode) -> None:
    """Central differences along a random direction through the whole outer objective."""
    module = maml(norm=norm, task_mode=mode)
    direction = {name: torch.randn_like(p) for name, p in module.named_parameters()}
    slope = sum((g * direction[name]).sum() for name, g in meta_gradient(module, episodes).items())
    h, ends = 1e-6, []
    for sign in (1, -1):
        with torch.no_grad():
            for name, p in module.named_parameters():
                p.add_(sign * h * direction[name])
            ends.append(module.play(episodes).loss.mean())
            for name, p in module.named_parameters():
                p.sub_(sign * h * direction[name])
    torch.testing.assert_close(slope, (ends[0] - ends[1]) / (2 * h), rtol=1e-6, atol=1e-9)


def test_second_order_term_is_not_zero(episodes: Episode) -> None:
    second, first = (meta_gradient(maml(first_order=f), episodes) for f in (False, True))
    difference = torch.cat([(second[name] - first[name]).flatten() for name in second]).norm()
    assert difference > 1e-2 * torch.cat([g.flatten() for g in second.values()]).norm()


def test_inductive_predictions_ignore_the_other_queries_and_transductive_ones_do_not(episodes: Episode) -> None:
    first_query = Episode(episodes.support, Batch(episodes.query.x[:, :1], episodes.query.y[:, :1]))
    for norm, ignores in (("inductive", True), ("transductive", False)):
        module = maml(norm=norm)
        alone, together = module.play(first_query).preds[:, 0], module.play(episodes).preds[:, 0]
        assert torch.allclose(alone, together, atol=1e-10) == ignores


def test_evaluation_uses_its_own_number_of_steps(episodes: Episode) -> None:
    module = maml(inner_steps=1, eval_inner_steps=5)
    five = maml(inner_steps=5)
    with torch.no_grad():
        torch.testing.assert_close(module.eval().play(episodes).loss, five.train().play(episodes).loss)
        assert not torch.allclose(module.train().play(episodes).loss, five.play(episodes).loss)


def test_adaptation_lowers_the_support_loss(episodes: Episode) -> None:
    on_support = Episode(episodes.support, episodes.support)
    losses = [maml(eval_inner_steps=k).eval().play(on_support).loss.mean() for k in (0, 1, 5)]
    assert losses[0] > losses[1] > losses[2]


@pytest.mark.parametrize("algorithm", [MAML, Reptile, partial(MRMAML, decoder=MLP(4, [5]))])
def test_the_head_is_drawn_as_told(algorithm: Callable[..., MAML]) -> None:
    """Glorot and Bengio's uniform distribution fills +-sqrt(6 / (inputs + outputs)), here wider than torch's own."""
    module = algorithm(conv4(hidden=32), n_way=20, head_init=torch.nn.init.xavier_uniform_)
    head = module.learner[-1]
    bound = (6 / (head.in_features + 20)) ** 0.5
    assert 0.9 * bound < head.weight.abs().max() < bound
    assert 0.9 * bound / 3**0.5 < head.weight.std() < 1.1 * bound / 3**0.5
    assert not head.bias.any()


def test_way_mismatch_names_both_numbers() -> None:
    import pytorch_lightning as pl

    trainer = pl.Trainer(max_epochs=1, inference_mode=False, logger=False, enable_checkpointing=False)
    with pytest.raises(ConfigError, match=r"3-way.*n_way=5"):
        trainer.fit(MAML(conv4(), n_way=5), datamodule=blobs())
