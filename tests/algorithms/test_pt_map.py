"""PT-MAP: its plan has the wanted sums, and is the one that optimal transport asks for."""

import pytest
import torch
from torch import nn

from lightning_meta.algorithms import PTMAP
from lightning_meta.algorithms.transductive.pt_map import transported
from tests.conftest import Make, conv4, feature_episodes

CASES: dict[str, Make] = {"pt-map": lambda: PTMAP(conv4(), n_classes=12, steps=3, transport_steps=20)}
PRESENT = torch.tensor([True, True, False, True])


def test_rows_and_columns_of_the_plan_have_the_wanted_sums() -> None:
    plan = transported(3 * torch.randn(12, 4).double(), PRESENT, steps=500).exp()
    torch.testing.assert_close(plan.sum(1), torch.ones(12).double())
    torch.testing.assert_close(plan.sum(0), torch.tensor([4.0, 4.0, 0.0, 4.0]).double(), rtol=1e-9, atol=1e-12)


def test_the_plan_is_the_affinities_times_a_factor_of_each_row_and_column() -> None:
    """Which, with the sums above, makes it the only entropic transport plan: its cross-ratios are those of `exp`."""
    affinities = torch.randn(6, 4).double()
    log_plan = transported(affinities, PRESENT, steps=500)[:, PRESENT]
    ratio = log_plan - affinities[:, PRESENT]
    crossed = ratio - ratio[:1] - ratio[:, :1] + ratio[:1, :1]
    torch.testing.assert_close(crossed, torch.zeros_like(crossed), rtol=0, atol=1e-10)


def test_queries_are_shared_out_evenly_though_one_class_is_nearest_to_all() -> None:
    """Unlike softmax, which would give it all of them."""
    affinities = torch.randn(9, 3).double() + torch.tensor([20.0, 0.0, 0.0])
    taken = transported(affinities, torch.ones(3, dtype=torch.bool), steps=2000).exp().sum(0)
    torch.testing.assert_close(taken, torch.full((3,), 3.0).double(), rtol=1e-6, atol=0)
    assert affinities.softmax(1).sum(0)[0] > 8.9


@pytest.mark.parametrize("k_shot", [1, 3])
def test_predictions_are_those_of_plain_steps_on_a_plan_by_multiplication(k_shot: int) -> None:
    """The paper's algorithm on probabilities, not logarithms, and on as many classes as there are."""
    tasks = feature_episodes(k_shot=k_shot)
    found = PTMAP(nn.Flatten(), steps=4, transport_steps=300).double().eval().play(tasks).preds.exp()

    def made_normal(x: torch.Tensor) -> torch.Tensor:
        x = (x + 1e-6).sqrt()
        x = x / x.norm(dim=1, keepdim=True)
        x = x - x.mean(0)
        return x / x.norm(dim=1, keepdim=True)

    for t in range(3):
        support, query = made_normal(tasks.support.x[t]), made_normal(tasks.query.x[t])
        named = torch.eye(3).double()[tasks.support.y[t]]
        means = torch.stack([support[tasks.support.y[t] == c].mean(0) for c in range(3)])
        for step in range(5):
            plan = (-10 * torch.cdist(query, means).square()).exp()
            plan = plan / plan.sum(1, keepdim=True)
            for _ in range(300):
                plan = plan / plan.sum(0) * 5
                plan = plan / plan.sum(1, keepdim=True)
            if step < 4:
                weights = torch.cat([named, plan])
                target = weights.T @ torch.cat([support, query]) / weights.sum(0)[:, None]
                means = means + 0.2 * (target - means)
        torch.testing.assert_close(found[t, :, :3], plan, rtol=1e-6, atol=1e-9)
        assert found[t, :, 3:].eq(0).all()
