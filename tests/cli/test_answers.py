"""What the page of `serve` answers, without a page: predictions, neighbours, curves and messages."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageDraw
from torch.nn import functional as F

from lightning_meta.algorithms import MAML, Baseline, ProtoNet
from lightning_meta.backbones import MLP, Conv4
from lightning_meta.cli.answers import (
    MOST_IMAGES,
    Answerer,
    adaptation,
    curve_steps,
    drawing,
    feature_distances,
    in_frame,
)
from lightning_meta.cli.predict import probabilities, read_task
from lightning_meta.core import Batch
from lightning_meta.datamodules import Glyphs
from lightning_meta.errors import ConfigError, DataError
from lightning_meta.modules import EpisodicModule


def draw(path: Path, *lines: tuple[int, ...], size: int = 60) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("L", (size, size), 255)
    for line in lines:
        ImageDraw.Draw(image).line(line, fill=0, width=6)
    image.save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two strokes and two crosses, and a stroke in question."""
    for k in range(2):
        draw(tmp_path / f"support/stroke/{k}.png", (10, 10 + 5 * k, 50, 12 + 5 * k))
        draw(tmp_path / f"support/cross/{k}.png", (10, 10, 50, 50), (10 + 3 * k, 50, 50, 10))
    draw(tmp_path / "query/asked.png", (10, 12, 50, 14))
    return tmp_path


def answerer(
    module: Callable[..., EpisodicModule[Any]] = ProtoNet, norm: str = "inductive", **options: Any
) -> Answerer:
    torch.manual_seed(0)
    return Answerer(module(Conv4(hidden=8, norm=norm), **options).eval(), Glyphs(n_way=2, k_shot=2, n_query=1))


def given(folder: Path, *names: str) -> list[tuple[str, list[Path]]]:
    return [(name, sorted((folder / "support" / name).glob("*.png"))) for name in names]


@pytest.mark.parametrize("module", [ProtoNet, MAML])
def test_answers_are_those_of_predict(module: type[EpisodicModule[Any]], folder: Path) -> None:
    asked = answerer(module, **({"n_way": 2} if module is MAML else {}))
    found = asked.answer([("", []), *given(folder, "cross", "stroke")], folder / "query/asked.png")
    task = read_task(folder / "support", folder / "query", asked.data)
    (expected,) = probabilities(asked.module, task)
    assert list(found.probabilities) == task.classes == ["cross", "stroke"]
    assert [*found.probabilities.values()] == pytest.approx(expected.tolist(), abs=1e-6)
    assert sum(found.probabilities.values()) == pytest.approx(1)
    assert found.picture is not None


@pytest.mark.parametrize("module", [ProtoNet, MAML])
def test_queries_that_are_read_jointly_have_the_support_images_beside_them(
    module: type[EpisodicModule[Any]], folder: Path
) -> None:
    """As `predict` has them where they lie in the query folder."""
    asked = answerer(module, "transductive", **({"n_way": 2} if module is MAML else {}))
    found = asked.answer(given(folder, "cross", "stroke"), folder / "query/asked.png")
    for name in ("cross", "stroke"):
        for path in (folder / "support" / name).glob("*.png"):
            shutil.copy(path, folder / "query" / f"z_{name}_{path.name}")
    task = read_task(folder / "support", folder / "query", asked.data)
    assert len(task.query) == 5 and task.files[0].name == "asked.png"
    expected = probabilities(asked.module, task)[0]
    assert [*found.probabilities.values()] == pytest.approx(expected.tolist(), abs=1e-5)
    assert found.notes[-1].startswith("Queries are read together")
    alone = probabilities(asked.module, task._replace(query=task.query[:1]))[0]
    assert alone.tolist() != pytest.approx(expected.tolist(), abs=1e-3)


def test_the_curve_is_that_of_plain_gradient_descent() -> None:
    torch.manual_seed(0)
    module = (
        MAML(MLP(in_features=4, hidden=[6], activation="tanh"), n_way=3, inner_lr=0.3, inner_steps=5).double().eval()
    )
    support = Batch(torch.randn(6, 4).double(), torch.tensor([0, 1, 2, 0, 1, 2]))
    losses, accuracies = adaptation(module, support, [0, 1, 3])
    weights = [p.detach().clone().requires_grad_() for p in module.learner.parameters()]
    expected, correct = [], []
    for _ in range(4):
        w1, b1, w2, b2 = weights
        logits = F.linear(F.linear(support.x, w1, b1).tanh(), w2, b2)
        loss = F.cross_entropy(logits, support.y)
        expected.append(loss.item())
        correct.append((logits.argmax(1) == support.y).double().mean().item())
        gradients = torch.autograd.grad(loss, weights)
        weights = [(w - 0.3 * g).detach().requires_grad_() for w, g in zip(weights, gradients, strict=True)]
    assert losses == pytest.approx([expected[step] for step in (0, 1, 3)], rel=1e-10)
    assert accuracies == pytest.approx([correct[step] for step in (0, 1, 3)])
    assert module.eval_inner_steps == 5


def test_steps_of_a_curve() -> None:
    assert curve_steps(3) == [0, 1, 2, 3]
    assert curve_steps(100) == [*range(0, 101, 10)]
    assert curve_steps(0) == [0]


@pytest.mark.parametrize("norm", ["running", "inductive"])
def test_neighbours_are_near_in_the_features_that_decide(norm: str, folder: Path) -> None:
    """With one example of each class, ProtoNet's logits are minus the squares of these distances."""
    asked = answerer(norm=norm)
    task = read_task(folder / "support", folder / "query", asked.data)
    support = Batch(task.support.x[1:3], torch.tensor([0, 1]))  # a cross and a stroke
    distances = feature_distances(asked.module, support.x, task.query).double()
    expected = asked.module.predict(asked.module.adapt(support), task.query).double()
    torch.testing.assert_close((-(distances**2)).softmax(1), expected, rtol=1e-3, atol=1e-4)


def test_baselines_have_a_curve_too(folder: Path) -> None:
    asked = answerer(Baseline, "running", n_classes=4, eval_inner_steps=20)
    found = asked.answer(given(folder, "cross", "stroke"), folder / "query/asked.png")
    assert found.notes[0] == "20 inner steps on 4 images."
    panels = found.picture.axes
    assert [*panels[0].lines[0].get_xdata()] == [*range(0, 21, 2)]
    assert panels[0].lines[0].get_ydata()[-1] < panels[0].lines[0].get_ydata()[0]


def test_a_drawing_is_the_same_wherever_it_is_drawn(tmp_path: Path) -> None:
    near = Image.open(draw(tmp_path / "near.png", (5, 5, 25, 25), size=280))
    far = Image.open(draw(tmp_path / "far.png", (205, 175, 225, 195), size=280))
    framed = [in_frame(one) for one in (near, far)]
    assert framed[0].tobytes() == framed[1].tobytes()
    assert framed[0].width == framed[0].height and min(framed[0].crop((0, 0, 3, 3)).getextrema()) == 255
    twice = in_frame(Image.open(draw(tmp_path / "wide.png", (20, 100, 260, 100), size=280)))
    assert twice.width == twice.height, "not distorted"
    assert Image.open(drawing(near, tmp_path)).tobytes() == framed[0].tobytes()
    for nothing in (None, Image.new("RGB", (280, 280), "white")):
        with pytest.raises(DataError, match="Nothing is drawn yet"):
            drawing(nothing, tmp_path)


def test_mistakes_are_one_line(folder: Path) -> None:
    (text := folder / "text.png").write_text("no image")
    Image.new("1", (9000, 9000)).save(wide := folder / "wide.png")
    (large := folder / "large.png").write_bytes(bytes(5_000_001))
    query, cross, stroke = folder / "query/asked.png", *given(folder, "cross", "stroke")
    for named, asked, message in (
        ([], query, r"There are no support images; give a few of each of two or more classes\."),
        ([("a", []), ("b", [])], query, r"There are no support images"),
        ([cross, ("b", [])], query, r"There are images of one class only, cross; give some of another\."),
        ([cross, ("cross ", stroke[1])], query, r"Two classes are called cross"),
        ([cross, (" ", stroke[1])], query, r"A class with 2 images has no name"),
        ([cross, ("b", stroke[1] * MOST_IMAGES)], query, rf"b has 40 images; at most {MOST_IMAGES} are taken"),
        ([cross, stroke], None, r"There is no image in question; drop one, or draw it\."),
        ([cross, stroke], text, r"text\.png is not an image that can be read\."),
        ([cross, ("b", [text])], query, r"text\.png is not an image"),
        ([cross, stroke], wide, r"wide\.png has more than 50 million pixels"),
        ([cross, stroke], large, r"large\.png has 5\.0 MB; at most 5 MB are taken\."),
    ):
        with pytest.raises(DataError, match=rf"^{message}") as caught:
            answerer().answer(named, asked)
        assert "\n" not in str(caught.value)
    message = (
        r"the page has 2 classes \(cross, stroke\), .* has n_way=5 .*give images of as many classes as training had"
    )
    with pytest.raises(ConfigError, match=message):
        answerer(MAML, n_way=5).answer([cross, stroke], query)
