"""What is generated, in pictures, and what a classifier learns from it."""

from pathlib import Path

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from lightning_meta.algorithms import FIGR, NeuralStatistician
from lightning_meta.core import mean_and_ci95_over
from lightning_meta.reports import GeneratedImages, LearnedFromGenerated
from lightning_meta.reports.generated_images import gallery
from lightning_meta.reports.learned_from_generated import accuracy
from tests.algorithms.test_figr import SMALL as PLAYERS
from tests.algorithms.test_neural_statistician import SMALL as STATISTICIAN
from tests.conftest import SIZE, blobs
from tests.reports.conftest import run_test


class Copies(NeuralStatistician):
    """It makes the images of a class that are at hand: as many as there are, and again."""

    def adapt(self, support):
        return super().adapt(support), support

    def query_loss(self, adapted, query):
        return super().query_loss(adapted[0], query)

    def generate(self, adapted, count: int) -> Tensor:
        x, y = adapted[1]
        x_NK = x[y.argsort(stable=True)].unflatten(0, (3, -1))
        return torch.stack([x_NK[:, i % x_NK.shape[1]] for i in range(count)], 1)


def test_copies_of_the_support_set_teach_what_it_teaches(tmp_path: Path) -> None:
    """By accuracies that scikit-learn has for the frozen test episodes, and with their interval."""
    report = LearnedFromGenerated(images=2)
    data = blobs(n_query=4)
    logged = run_test(tmp_path, Copies(**STATISTICIAN), data, report)
    data.setup("test")
    episodes, values = data.dataset("test").__getitems__(range(7)), []
    for t in range(7):
        (x, y), query = ((part.x[t].flatten(1).numpy(), part.y[t].numpy()) for part in episodes)
        values.append(LogisticRegression(max_iter=200).fit(x, y).score(*query))
    mean, ci95 = mean_and_ci95_over(torch.tensor(values, dtype=torch.float64))
    for name in ("support", "generated"):
        assert logged[f"test/acc_from_{name}"] == pytest.approx(mean.item(), abs=1e-6)
        assert logged[f"test/acc_from_{name}_ci95"] == pytest.approx(ci95.item(), abs=1e-6)
    assert logged["test/acc_gained"] == pytest.approx(logged["test/acc_from_both"] - mean.item(), abs=1e-6)


def test_as_many_episodes_as_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(
        "lightning_meta.reports.learned_from_generated.accuracy",
        lambda shots, x, y: asked.append(shots.shape[1]) or 0.5,
    )
    run_test(tmp_path, FIGR(**PLAYERS), blobs(), LearnedFromGenerated(images=5, episodes=3))
    assert asked == [2, 5, 7] * 3


def test_shots_of_the_other_class_teach_the_opposite() -> None:
    x = torch.tensor([0.0, 1.0])[:, None, None, None, None].expand(2, 3, 1, 2, 2)
    query, labels = torch.tensor([0.1, 0.9])[:, None, None, None].expand(2, 1, 2, 2), torch.tensor([0, 1])
    assert accuracy(x, query, labels) == 1
    assert accuracy(x.flip(0), query, labels) == 0


def test_each_class_has_a_row_of_its_own_images(tmp_path: Path) -> None:
    rows = [(torch.full((7, 1, 4, 4), n / 4), torch.full((3, 1, 4, 4), n / 4 + 0.1)) for n in range(2)]
    (axes,) = gallery(rows).axes
    shown = [image.get_array().mean() for image in axes.get_images()]
    assert shown == pytest.approx([0.0] * 5 + [0.1] * 3 + [0.25] * 5 + [0.35] * 3)
    report = GeneratedImages(classes=4, images=3)
    run_test(tmp_path, Copies(**STATISTICIAN), blobs(), report)
    assert [path.stem for path in report.paths] == ["generated_images"]


def test_the_picture_shows_what_the_module_makes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[tuple[Tensor, Tensor]]] = []
    name = "lightning_meta.reports.generated_images.gallery"
    monkeypatch.setattr(name, lambda rows, title: seen.append(rows) or gallery(rows, title))
    run_test(tmp_path, Copies(**STATISTICIAN), blobs(), GeneratedImages(classes=4, images=2))
    assert len(seen[0]) == 4, "three of the first episode and one of the second"
    for support, made in seen[0]:
        assert support.shape == (2, 1, SIZE, SIZE)
        torch.testing.assert_close(made, support)
