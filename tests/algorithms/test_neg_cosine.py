"""Neg-Cosine: the margin is in the training loss, and nowhere else."""

import pytest
import torch
from torch.nn import functional as F

from lightning_meta.algorithms import BaselinePlusPlus, NegCosine
from lightning_meta.core import Batch, Episode
from tests.conftest import CLASSES, Make, conv4

SETTINGS = dict(n_classes=CLASSES, scale=4.0, inner_lr=0.1, eval_inner_steps=5)
CASES: dict[str, Make] = {"neg-cosine": lambda: NegCosine(conv4(), margin=-0.3, **SETTINGS)}


@pytest.mark.parametrize("margin", [-0.3, 0.0, 0.2])
def test_the_training_loss_subtracts_the_margin_from_the_cosine_of_the_true_class(
    margin: float, episodes: Episode
) -> None:
    tasks = Episode(*(Batch(x[:1], y[:1] + 7) for x, y in episodes))
    module = NegCosine(conv4(), margin=margin, **SETTINGS).double()
    out = module.play(tasks)
    features = torch.cat([module.backbone(part.x[0]) for part in tasks])
    labels = torch.cat([part.y[0] for part in tasks])
    cosines = torch.cosine_similarity(features[:, None], module.classifier.weight[None], dim=2)
    losses = []
    for row, label in zip(cosines, labels, strict=True):  # the definition, one example at a time
        others = torch.cat([row[:label], row[label + 1 :]])
        true = (4 * (row[label] - margin)).exp()
        losses.append(-(true / (true + (4 * others).exp().sum())).log())
    torch.testing.assert_close(out.loss[0], torch.stack(losses).mean(), rtol=1e-10, atol=1e-12)


def test_evaluation_is_that_of_baseline_plus_plus(episodes: Episode) -> None:
    ours = NegCosine(conv4(), **SETTINGS).double().eval()
    theirs = BaselinePlusPlus(conv4(), **SETTINGS).double().eval()
    theirs.load_state_dict(ours.state_dict())
    torch.testing.assert_close(ours.play(episodes), theirs.play(episodes), rtol=0, atol=0)
    labels = episodes.query.y[0]
    logits = torch.randn(len(labels), CLASSES).double()
    assert not torch.equal(ours.naming_loss(logits, labels), F.cross_entropy(logits, labels))
