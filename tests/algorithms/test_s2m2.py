"""S2M2: its loss against the parts written out, and the parts against what they are to be."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_meta.algorithms import S2M2
from lightning_meta.algorithms.baselines import s2m2
from lightning_meta.core import Batch, Episode
from lightning_meta.errors import ConfigError
from tests.conftest import CLASSES, Make, conv4

SETTINGS = dict(n_classes=CLASSES, scale=4.0, inner_lr=0.1, eval_inner_steps=5)
CASES: dict[str, Make] = {"s2m2": lambda: S2M2(conv4(), mixup=0, **SETTINGS)}


def test_images_are_there_in_four_turns_that_are_named_right() -> None:
    images = torch.arange(2 * 3 * 1 * 4 * 4.0).view(2, 3, 1, 4, 4)
    turned, turns = s2m2.in_turns(images), s2m2.turn_of_each(torch.zeros(12))
    assert turned.shape == (2, 12, 1, 4, 4)
    for place, turn in enumerate(turns.tolist()):
        back = turned[:, place].rot90(-turn, (-2, -1))
        assert torch.equal(back, images[:, place % 3])
    with pytest.raises(ConfigError, match=r"square images, but an input is of shape \(1, 4, 5\)"):
        s2m2.in_turns(torch.zeros(2, 3, 1, 4, 5))


def test_the_training_loss_is_of_classes_and_turns(episodes: Episode) -> None:
    tasks = Episode(*(Batch(x[:1], y[:1] + 7) for x, y in episodes))
    module = S2M2(conv4(), mixup=0, **SETTINGS).double()
    out = module.play(tasks)
    sets = [torch.cat([part.x[0].rot90(turn, (-2, -1)) for turn in range(4)]) for part in tasks]
    turns = torch.cat([torch.full((len(part.y[0]),), turn) for part in tasks for turn in range(4)])
    labels = torch.cat([part.y[0] for part in tasks for _ in range(4)])
    features = torch.cat([module.backbone(images) for images in sets])  # each is normalised by itself
    cosines = torch.cosine_similarity(features[:, None], module.classifier.weight[None], dim=2)
    named, turned = F.cross_entropy(4 * cosines, labels), F.cross_entropy(module.turns(features), turns)
    torch.testing.assert_close(out.loss[0], (named + turned) / 2, rtol=1e-8, atol=1e-10)
    assert out.preds.shape[1] == tasks.query.y.shape[1]


def test_mixed_examples_have_the_labels_of_both(monkeypatch: pytest.MonkeyPatch) -> None:
    module = S2M2(conv4(), **SETTINGS).double()
    features, labels = torch.randn(6, module.backbone.out_features).double(), torch.arange(6) % CLASSES
    monkeypatch.setattr(s2m2, "middle_of", lambda alpha, like: like.new_tensor(0.3))
    torch.manual_seed(0)
    order = torch.rand_like(features[:, 0]).argsort()
    torch.manual_seed(0)
    found = module.mixed_loss(features, labels)
    logs = module.class_logits(0.3 * features + 0.7 * features[order]).log_softmax(1)
    expected: Tensor = sum(0.3 * logs[i, labels[i]] + 0.7 * logs[i, labels[order[i]]] for i in range(6)) / -6
    torch.testing.assert_close(found, expected)


def test_parts_are_of_a_beta_distribution() -> None:
    torch.manual_seed(0)
    for alpha in (1, 2, 5):
        parts = torch.stack([s2m2.middle_of(alpha, torch.zeros(20, 4)) for _ in range(4000)])
        assert parts.mean() == pytest.approx(0.5, abs=0.02)
        assert parts.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.1)
