"""Alpha-TIM: its entropy, and its limit, TIM."""

import pytest
import torch
from torch import nn

from lightning_meta.algorithms import TIM, AlphaTIM
from lightning_meta.algorithms.transductive.alpha_tim import tsallis_entropy
from tests.conftest import Make, conv4, feature_episodes

CASES: dict[str, Make] = {"alpha-tim": lambda: AlphaTIM(conv4(), n_classes=12, steps=10, inner_lr=0.01)}
SETTINGS = dict(steps=30, inner_lr=0.01, support_weight=0.3, marginal_weight=1.0, conditional_weight=0.2)


@pytest.mark.parametrize("alpha", [1.0, 1 + 1e-7, 1 - 1e-7])
def test_its_limit_is_tim(alpha: float) -> None:
    tasks = feature_episodes()
    found = AlphaTIM(nn.Flatten(), alpha=alpha, **SETTINGS).double().eval().play(tasks)
    expected = TIM(nn.Flatten(), **SETTINGS).double().eval().play(tasks)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_another_order_predicts_otherwise() -> None:
    tasks = feature_episodes()
    preds = [AlphaTIM(nn.Flatten(), alpha=alpha, **SETTINGS).double().eval().play(tasks).preds for alpha in (2.0, 5.0)]
    assert not torch.allclose(*(logits[..., :3] for logits in preds), atol=1e-2)


def test_entropies_of_order_two_and_three() -> None:
    """Of order 2 it is the chance that two draws differ; the uniform distribution has the largest of all orders."""
    p = torch.tensor([[0.5, 0.3, 0.2], [1 / 3, 1 / 3, 1 / 3], [1.0, 0.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(tsallis_entropy(p, 2.0), torch.tensor([0.62, 2 / 3, 0.0]).double(), rtol=0, atol=1e-7)
    cubes = torch.tensor([(1 - 0.125 - 0.027 - 0.008) / 2, (1 - 1 / 9) / 2, 0.0]).double()
    torch.testing.assert_close(tsallis_entropy(p, 3.0), cubes, rtol=0, atol=1e-7)
