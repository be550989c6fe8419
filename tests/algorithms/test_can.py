"""CAN (can) against its formulas, one query and one class at a time."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_meta.algorithms import CAN
from lightning_meta.core import Batch, Episode
from lightning_meta.errors import ConfigError
from tests.conftest import CLASSES, Make, conv4, random_episodes

SETTINGS = dict(n_classes=CLASSES, reduction=4)
CASES: dict[str, Make] = {"can": lambda: CAN(conv4(halvings=2), **SETTINGS)}


def attention(module: CAN, rows: Tensor, columns: Tensor) -> Tensor:
    """Over the places of `rows` `(D, P)`, the other map being `columns` `(D, M)`; as the paper writes it."""
    first, _, second = module.kernel
    correlation = F.normalize(columns, dim=0).T @ F.normalize(rows, dim=0)  # column i: a place of `rows`
    kernel = second.weight @ (first.weight @ correlation.mean(1) + first.bias).relu() + second.bias
    scores = torch.stack([kernel @ correlation[:, i] / len(kernel) for i in range(rows.shape[1])])
    return 1 + (scores / module.temperature).softmax(0)


def maps(module: CAN, images: Tensor) -> Tensor:
    return module.backbone(images).unflatten(1, (6, -1))


@pytest.mark.parametrize("mode", ["vmap", "loop"])
@pytest.mark.parametrize("k_shot", [1, 3])
@torch.no_grad()
def test_logits_and_losses_equal_the_paper_s(mode: str, k_shot: int) -> None:
    """Classes 2, 5 and 7 of the training ones."""
    module = CAN(conv4(halvings=2), temperature=0.5, task_mode=mode, nearest_weight=0.7, **SETTINGS).double()
    tasks = random_episodes(k_shot=k_shot)
    names = torch.tensor([2, 5, 7])
    named = Episode(*(Batch(x, names[y]) for x, y in tasks))
    plain, training = module.eval().play(tasks), module.train().play(named)
    for t in range(3):
        support, query = (maps(module, part.x[t]) for part in tasks)
        classes = [support[tasks.support.y[t] == c].mean(0) for c in range(3)]
        logits, nearest, naming = torch.zeros(len(query), 3).double(), [], []
        for q, image in enumerate(query):
            places = torch.zeros(image.shape[1], 3).double()
            for c, of_class in enumerate(classes):
                attended = (image * attention(module, image, of_class), of_class * attention(module, of_class, image))
                logits[q, c] = 7 * torch.cosine_similarity(attended[0].mean(1), attended[1].mean(1), dim=0)
                places[:, c] = 7 * torch.cosine_similarity(attended[0], attended[1].mean(1)[:, None], dim=0)
                if c == tasks.query.y[t, q]:
                    naming.append(module.classifier(attended[0].T).log_softmax(1)[:, names[c]])
            nearest.append(places.log_softmax(1)[:, tasks.query.y[t, q]])
        torch.testing.assert_close(plain.preds[t, :, :3], logits, rtol=1e-8, atol=1e-10)
        assert (plain.preds[t, :, 3:] == -torch.inf).all()
        torch.testing.assert_close(plain.loss[t], F.cross_entropy(logits, tasks.query.y[t]), rtol=1e-8, atol=1e-10)
        torch.testing.assert_close(training.preds[t][:, names], logits, rtol=1e-8, atol=1e-10)
        assert training.preds.shape[2] == CLASSES and training.preds[t].isfinite().sum() == 3 * len(query)
        loss = -torch.stack(naming).mean() - 0.7 * torch.stack(nearest).mean()
        torch.testing.assert_close(training.loss[t], loss, rtol=1e-8, atol=1e-10)


def test_plays_any_way_with_the_same_weights() -> None:
    module = CAN(conv4(halvings=2), **SETTINGS).double()
    for n_way in (2, 7):
        assert module.eval().play(random_episodes(n_way=n_way, k_shot=1)).preds.shape == (3, 2 * n_way, n_way)


def test_what_it_cannot_attend_to_or_name_is_refused(episodes: Episode) -> None:
    with pytest.raises(ConfigError, match=r"Conv4 have one place; take larger maps"):
        CAN(conv4(halvings=4), n_classes=CLASSES)
    with pytest.raises(ConfigError, match=r"temperature=0"):
        CAN(conv4(halvings=2), temperature=0)
    with pytest.raises(ConfigError, match=r"CAN has no classifier to train yet; pass n_classes"):
        CAN(conv4(halvings=2)).double().play(episodes)
