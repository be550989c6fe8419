"""RFS: the minimum of regularised logistic regression."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_meta.algorithms import RFS
from tests.conftest import Make, conv4, feature_episodes

CASES: dict[str, Make] = {"rfs": lambda: RFS(conv4(), n_classes=12, steps=20)}


@pytest.mark.parametrize("k_shot", [1, 5])
@pytest.mark.parametrize("strength", [1.0, 10.0])
def test_the_head_is_where_lbfgs_arrives(k_shot: int, strength: float) -> None:
    """On as many weights as the task has classes, with the loss as scikit-learn's manual has it."""
    tasks = feature_episodes(k_shot=k_shot)
    module = RFS(nn.Flatten(), strength=strength, steps=400).double().eval()
    out = module.play(tasks)
    for t in range(3):
        x, y = F.normalize(tasks.support.x[t]), tasks.support.y[t]
        weight, bias = torch.zeros(3, 8).double().requires_grad_(), torch.zeros(3).double().requires_grad_()
        optimizer = torch.optim.LBFGS([weight, bias], max_iter=500, tolerance_grad=1e-12, tolerance_change=1e-15)

        def objective() -> torch.Tensor:
            optimizer.zero_grad()  # noqa: B023 - used within the loop
            entropies = F.cross_entropy(x @ weight.T + bias, y, reduction="sum")  # noqa: B023
            loss = weight.square().sum() / 2 + strength * entropies  # noqa: B023
            loss.backward()
            return loss

        optimizer.step(objective)
        expected = F.normalize(tasks.query.x[t]) @ weight.T + bias
        torch.testing.assert_close(out.preds[t, :, :3], expected.detach(), rtol=1e-6, atol=1e-6)
        assert out.preds[t, :, 3:].isneginf().all()
