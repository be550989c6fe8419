"""Transductive fine-tuning against torch.optim."""

import torch
from torch import nn
from torch.nn import functional as F

from lightning_meta.algorithms import TransductiveFinetuning
from lightning_meta.core import Episode
from tests.conftest import Make, conv4, feature_episodes

CASES: dict[str, Make] = {
    "transductive-finetuning": lambda: TransductiveFinetuning(conv4(), n_classes=12, inner_lr=0.01)
}


def finetuning(**settings) -> TransductiveFinetuning:
    return TransductiveFinetuning(nn.Flatten(), **(dict(inner_lr=0.01, scale=4.0) | settings)).double().eval()


def test_predictions_are_those_of_a_plain_loop() -> None:
    tasks = feature_episodes()
    found = finetuning(query_weight=0.7).play(tasks).preds
    for t in range(3):
        support, query = F.normalize(tasks.support.x[t]), F.normalize(tasks.query.x[t])
        head = nn.Linear(8, 3).double()
        means = torch.stack([support[tasks.support.y[t] == c].mean(0) for c in range(3)])
        head.weight.data, head.bias.data = F.normalize(means), torch.zeros(3).double()
        optimizer = torch.optim.Adam(head.parameters(), 0.01)
        for _ in range(25):
            optimizer.zero_grad()
            entropies = torch.distributions.Categorical(logits=4 * head(query)).entropy()
            (F.cross_entropy(4 * head(support), tasks.support.y[t]) + 0.7 * entropies.mean()).backward()
            optimizer.step()
        torch.testing.assert_close(found[t, :, :3], 4 * head(query), rtol=1e-7, atol=1e-8)
        assert found[t, :, 3:].isneginf().all()


def test_it_gets_surer_of_the_queries_than_the_support_set_alone_makes_it() -> None:
    tasks = feature_episodes()
    surer, alone = (
        torch.distributions.Categorical(logits=finetuning(query_weight=weight).play(tasks).preds).entropy().mean()
        for weight in (1.0, 0.0)
    )
    assert surer < alone


def test_without_the_queries_weight_they_have_no_say() -> None:
    tasks = feature_episodes()
    module = finetuning(query_weight=0.0)
    fewer = Episode(tasks.support, type(tasks.query)(tasks.query.x[:, :4], tasks.query.y[:, :4]))
    torch.testing.assert_close(module.play(fewer).preds, module.play(tasks).preds[:, :4])
