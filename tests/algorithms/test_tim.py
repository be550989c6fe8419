"""TIM against torch.optim, and what it maximises."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_meta.algorithms import TIM
from lightning_meta.core import Episode
from tests.conftest import Make, conv4, feature_episodes

STEPS, LR = 30, 0.01
CASES: dict[str, Make] = {"tim": lambda: TIM(conv4(), n_classes=12, steps=10, inner_lr=0.01)}


def tim(**settings) -> TIM:
    return TIM(nn.Flatten(), **(dict(steps=STEPS, inner_lr=LR) | settings)).double().eval()


def by_torch_optim(tasks: Episode, t: int, weights: tuple[float, float, float]) -> Tensor:
    """Logits of the queries by Adam, on as many class weights as the task has classes."""
    support, query = F.normalize(tasks.support.x[t]), F.normalize(tasks.query.x[t])
    classes = torch.stack([support[tasks.support.y[t] == c].mean(0) for c in range(3)]).requires_grad_()
    optimizer = torch.optim.Adam([classes], LR)
    for _ in range(STEPS):
        optimizer.zero_grad()
        named = F.cross_entropy(-7.5 * torch.cdist(support, classes).square(), tasks.support.y[t])
        predicted = (-7.5 * torch.cdist(query, classes).square()).softmax(1)
        mean = predicted.mean(0)
        marginal, conditional = -(mean * mean.log()).sum(), -(predicted * predicted.log()).sum(1).mean()
        (weights[0] * named - weights[1] * marginal + weights[2] * conditional).backward()
        optimizer.step()
    return (-7.5 * torch.cdist(query, classes).square()).detach()


def test_predictions_are_those_of_a_plain_loop() -> None:
    tasks = feature_episodes()
    found = tim(support_weight=0.3, marginal_weight=1.0, conditional_weight=0.2).play(tasks).preds
    for t in range(3):
        expected = by_torch_optim(tasks, t, (0.3, 1.0, 0.2))
        torch.testing.assert_close(found[t, :, :3], expected, rtol=1e-7, atol=1e-8)
        assert found[t, :, 3:].isneginf().all()


def test_without_the_queries_weights_it_is_fitted_to_the_support_set() -> None:
    tasks = feature_episodes()
    module = tim(support_weight=1.0, marginal_weight=0.0, conditional_weight=0.0)
    found = module.play(tasks).preds
    torch.testing.assert_close(found[0, :, :3], by_torch_optim(tasks, 0, (1.0, 0.0, 0.0)), rtol=1e-7, atol=1e-8)
    fewer = Episode(tasks.support, type(tasks.query)(tasks.query.x[:, :4], tasks.query.y[:, :4]))
    torch.testing.assert_close(module.play(fewer).preds, found[:, :4])


def information(logits_TQC: Tensor) -> Tensor:
    """Mutual information of query and prediction in each task: the mean divergence from the mean prediction."""
    p = logits_TQC.softmax(2)
    return (p * (p / p.mean(1, keepdim=True)).log()).sum(2).mean(1)


def test_mutual_information_rises() -> None:
    tasks = feature_episodes(noise=0.8)
    settings = dict(support_weight=0.0, marginal_weight=1.0, conditional_weight=1.0, inner_lr=1e-3)
    values = [information(tim(steps=steps, **settings).play(tasks).preds[..., :3]) for steps in (0, 10, 20, 40, 80)]
    assert (torch.stack(values).diff(dim=0) > 0).all()


def test_it_prefers_classes_of_equal_size() -> None:
    """Nine queries of one class and one of each other: it shares them out more evenly than they are."""
    tasks = feature_episodes(n_query=9, noise=0.9)
    kept = [[*torch.where(y == 0)[0], torch.where(y == 1)[0][0], torch.where(y == 2)[0][0]] for y in tasks.query.y]
    x = torch.stack([tasks.query.x[t, rows] for t, rows in enumerate(kept)])
    y = torch.stack([tasks.query.y[t, rows] for t, rows in enumerate(kept)])
    uneven = Episode(tasks.support, type(tasks.query)(x, y))
    largest = [tim(steps=steps).play(uneven).preds.argmax(2).eq(0).double().mean().item() for steps in (0, 200)]
    assert largest[1] < largest[0] <= 9 / 11 + 0.1
