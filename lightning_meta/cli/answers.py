"""What the page of `serve` answers: a function of named images and an image in question. Nothing of a page is here."""

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast
from uuid import uuid4

import torch
from matplotlib.figure import Figure
from PIL import Image, ImageChops
from torch import Tensor
from torch.func import functional_call

from lightning_meta.backbones import support_statistics
from lightning_meta.cli.predict import Task, check, make_task, probabilities, reads_jointly
from lightning_meta.core import Batch
from lightning_meta.datamodules.classification import ClassificationDataModule
from lightning_meta.errors import DataError
from lightning_meta.modules import EmbeddingModule, EpisodicModule
from lightning_meta.modules.fixed_way import FixedWayModule
from lightning_meta.reports.answers import neighbours, support_curve
from lightning_meta.reports.tested import eval_inner_steps

MOST_CLASSES = 8  # where an algorithm takes any number
MOST_IMAGES = 20  # of a class
MOST_BYTES = 5_000_000  # of a file
MOST_PIXELS = 50_000_000  # of an image; a small file may hold very many
POINTS = 10  # of a curve, after its beginning
BESIDE = "Queries are read together: the support images were given as queries beside this one."
MARGIN = 0.2  # of paper around a drawing, in sides of its ink


class Answer(NamedTuple):
    """What is said of the image in question.

    Attributes:
        probabilities: of each class by name; they sum to 1.
        picture: what the answer rests on; None where an algorithm neither compares features nor takes steps.
        notes: what is to be told of it, one line each.
    """

    probabilities: dict[str, float]
    picture: Figure | None
    notes: list[str]


class Answerer:
    """A trained meta-learner that is asked by one at a time.

    Args:
        module: in evaluation mode.
        data: its data, which make images like those of training.
        invert: exchange dark and light.
    """

    def __init__(self, module: EpisodicModule[Any], data: ClassificationDataModule, invert: bool = False) -> None:
        self.module, self.data, self.invert = module, data, invert
        self.lock = threading.Lock()  # the number of inner steps is the module's

    @property
    def classes(self) -> int:
        """How many can be named."""
        return self.module.n_way if isinstance(self.module, FixedWayModule) else MOST_CLASSES

    def answer(self, named: Sequence[tuple[str, Sequence[Path]]], query: Path | None) -> Answer:
        """What an image is taken for, from images of classes; those without images do not count.

        Raises:
            DataError: of the images: none, of one class only, too many, too large, or not readable.
            ConfigError: the module cannot play this task.
        """
        of_class = checked(named)
        if query is None:
            raise DataError("There is no image in question; drop one, or draw it.")
        for path in (*(path for paths in of_class.values() for path in paths), query):
            check_size(path)
        with self.lock:
            task = self.task(of_class, query)
            check(self.module, task, "the page", "give images of as many classes as training had")
            found = probabilities(self.module, task)[0]
            picture, note = self.reasons(task)
        lines = (note, BESIDE if len(task.query) > 1 else "")
        return Answer(dict(zip(task.classes, found.tolist(), strict=True)), picture, [line for line in lines if line])

    def task(self, of_class: Mapping[str, Sequence[Path]], query: Path) -> Task:
        """The image in question first, and where queries are read jointly, the support images beside it.

        Statistics of a single image are far from those of training: MAML, trained on Omniglot with transductive
        normalisation, took a circle for a cross.
        """
        task = make_task(of_class, [query], self.data, self.invert)
        if not reads_jointly(self.module):
            return task
        files = [query, *(path for paths in of_class.values() for path in paths)]
        return task._replace(query=torch.cat([task.query, task.support.x]), files=files)

    def reasons(self, task: Task) -> tuple[Figure | None, str]:
        """What the answer rests on, as a picture, and in words."""
        if hasattr(self.module, "eval_inner_steps"):
            steps = curve_steps(cast(int, self.module.eval_inner_steps))
            losses, accuracies = adaptation(self.module, task.support, steps)
            return support_curve(steps, losses, accuracies), f"{steps[-1]} inner steps on {len(task.support.y)} images."
        if isinstance(self.module, EmbeddingModule):
            distances_S = feature_distances(self.module, task.support.x, task.query)[0]
            names = [task.classes[label] for label in task.support.y.tolist()]
            return neighbours(task.query[0], task.support.x, names, distances_S), ""
        return None, ""


def checked(named: Sequence[tuple[str, Sequence[Path]]]) -> Mapping[str, Sequence[Path]]:
    """The classes that have images. `DataError` where they are fewer than two, too many or have one name."""
    given = [(name.strip(), paths) for name, paths in named if paths]
    if not given:
        raise DataError("There are no support images; give a few of each of two or more classes.")
    for name, paths in given:
        if not name:
            raise DataError(f"A class with {len(paths)} images has no name; give it one.")
        if len(paths) > MOST_IMAGES:
            raise DataError(f"{name} has {len(paths)} images; at most {MOST_IMAGES} are taken of a class.")
    of_class = dict(given)
    if len(of_class) < len(given):
        twice = next(name for name in of_class if [one for one, _ in given].count(name) > 1)
        raise DataError(f"Two classes are called {twice}; give each a name of its own.")
    if len(of_class) < 2:
        raise DataError(f"There are images of one class only, {given[0][0]}; give some of another.")
    return of_class


def check_size(path: Path) -> None:
    """Raise `DataError` where a file or its image is too large, before it is decoded; others are read later on."""
    size = path.stat().st_size
    if size > MOST_BYTES:
        raise DataError(f"{path.name} has {size / 1e6:.1f} MB; at most {MOST_BYTES / 1e6:.0f} MB are taken.")
    try:
        with Image.open(path) as image:
            pixels = image.width * image.height
    except Image.DecompressionBombError:
        pixels = MOST_PIXELS + 1
    except Exception as error:  # damage shows as whatever Pillow's many decoders stumble over
        raise DataError(f"{path.name} is not an image that can be read.") from error
    if pixels > MOST_PIXELS:
        raise DataError(f"{path.name} has more than {MOST_PIXELS / 1e6:.0f} million pixels; make it smaller.")


def drawing(canvas: Image.Image | None, folder: Path) -> Path:
    """The file of a drawing, framed as images of characters are. `DataError` where nothing is drawn."""
    framed = None if canvas is None else in_frame(canvas)
    if framed is None:
        raise DataError("Nothing is drawn yet; draw with the mouse or a finger.")
    framed.save(path := folder / f"drawing_{uuid4().hex[:8]}.png")
    return path


def in_frame(canvas: Image.Image) -> Image.Image | None:
    """Dark ink in the middle of a square of light paper, whatever its place and size on the canvas; None: no ink."""
    grey = canvas.convert("L")
    box = ImageChops.invert(grey).point(lambda level: 255 * (level > 32)).getbbox()
    if box is None:
        return None
    ink = grey.crop(box)
    side = round(max(ink.size) * (1 + 2 * MARGIN))
    paper = Image.new("L", (side, side), 255)
    paper.paste(ink, ((side - ink.width) // 2, (side - ink.height) // 2))
    return paper


def curve_steps(steps: int) -> list[int]:
    """Numbers of inner steps at even distances from 0 to `steps`, or all of them where they are few."""
    return (
        sorted({round(steps * point / POINTS) for point in range(POINTS + 1)})
        if steps > POINTS
        else [*range(steps + 1)]
    )


@torch.no_grad()
def adaptation(module: EpisodicModule[Any], support: Batch, steps: Sequence[int]) -> tuple[list[float], list[float]]:
    """Cross-entropy and accuracy on a support set after each number of inner steps on it."""
    device = next(module.parameters()).device
    x, y = support.x.to(device), support.y.to(device)
    losses, accuracies = [], []
    for count in steps:
        with eval_inner_steps(module, count):
            found_SC = module.predict(module.adapt(Batch(x, y)), x)
        losses.append(float(-found_SC.gather(1, y[:, None]).log().mean()))
        accuracies.append(float((found_SC.argmax(1) == y).float().mean()))
    return losses, accuracies


@torch.no_grad()
def feature_distances(module: EmbeddingModule[Any], support: Tensor, query: Tensor) -> Tensor:
    """Euclidean distances `(Q, S)` of features, normalised as in the module's own hooks."""
    device = next(module.parameters()).device
    support, query = support.to(device), query.to(device)
    statistics = support_statistics(module.backbone, {}, support)
    query_QD = functional_call(module.backbone, statistics, (query,)).flatten(1)
    return torch.cdist(query_QD, module.backbone(support).flatten(1)).cpu()
