"""ANIL adapts the head alone, on features that are computed once."""

import pytest
import torch

from lightning_meta.algorithms import ANIL, MAML
from lightning_meta.core import Batch, Episode
from tests.conftest import Make, autograd_meta_gradient, conv4, meta_gradient

CASES: dict[str, Make] = {"anil": lambda: ANIL(conv4(), n_way=3, inner_lr=0.1, inner_steps=2)}
LR, STEPS = 0.3, 3


def anil(norm: str = "transductive", **overrides) -> ANIL:
    torch.manual_seed(0)
    return ANIL(conv4(norm), **(dict(n_way=3, inner_lr=LR, inner_steps=STEPS) | overrides)).double()


def first_task(tasks: Episode) -> Batch:
    return Batch(tasks.support.x[0], tasks.support.y[0])


def test_only_the_head_moves(episodes: Episode) -> None:
    module = anil()
    phi = module.adapt(first_task(episodes))
    assert set(phi) == {"1.weight", "1.bias"}
    for name, theta in module.head.named_parameters():
        assert (phi[f"1.{name}"] - theta).abs().max() > 1e-3


@pytest.mark.parametrize("mode", ["vmap", "loop"])
@pytest.mark.parametrize("first_order", [False, True], ids=["second-order", "first-order"])
def test_meta_gradient_is_that_of_maml_with_a_frozen_body(mode: str, first_order: bool, episodes: Episode) -> None:
    """The truth runs the whole network in every step and differentiates the head's update only."""
    module = anil(task_mode=mode, first_order=first_order)
    expected = autograd_meta_gradient(module, episodes, STEPS, lambda name, step: LR, not first_order, prefix="1.")
    torch.testing.assert_close(meta_gradient(module, episodes), expected, rtol=1e-9, atol=1e-13)


def test_the_body_learns_through_the_adapted_head(episodes: Episode) -> None:
    """Second order: the support features enter the head's update, so the body's gradient differs from first order."""
    second, first = (meta_gradient(anil(first_order=order), episodes) for order in (False, True))
    body = [name for name in second if name.startswith("learner.0.")]
    assert max((second[name] - first[name]).abs().max() for name in body) > 1e-4


def test_features_of_the_support_set_are_computed_once(episodes: Episode) -> None:
    module, calls = anil(inner_steps=7, task_mode="loop"), []
    module.backbone.register_forward_hook(lambda *_: calls.append(1))
    module.play(episodes)
    assert len(calls) == 2 * len(episodes.support.x)  # support and query of each task


def test_with_no_steps_it_is_maml_with_no_steps(episodes: Episode) -> None:
    module = anil(inner_steps=0)
    other = MAML(conv4(), n_way=3, inner_steps=0).double()
    other.load_state_dict(module.state_dict())
    torch.testing.assert_close(module.play(episodes), other.play(episodes), rtol=0, atol=0)


def test_inductive_predictions_ignore_the_other_queries(episodes: Episode) -> None:
    first_query = Episode(episodes.support, Batch(episodes.query.x[:, :1], episodes.query.y[:, :1]))
    module = anil("inductive")
    alone, together = module.play(first_query).preds[:, 0], module.play(episodes).preds[:, 0]
    torch.testing.assert_close(alone, together, rtol=1e-10, atol=1e-12)
