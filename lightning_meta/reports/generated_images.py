"""What does a module make of a few images of a class? Those it was shown, and new ones of its own."""

from pathlib import Path

from matplotlib.figure import Figure
from torch import Tensor

from lightning_meta.compat import tree_map
from lightning_meta.core import Episode
from lightning_meta.reports.base import Report
from lightning_meta.reports.sheet import GAP, IMAGE, MARGIN, SEPARATION, WIDTH, sheet, show
from lightning_meta.reports.style import BLUE, GREY, INK, LABEL, TITLE
from lightning_meta.reports.tested import Tested

TOP = 0.85  # inches for the title and the names of the columns
SHOWN = 5  # support images of a class at most


class GeneratedImages(Report):
    """Picture `generated_images`: a row for each class of test episodes, support images beside generated ones.

    For modules with a method `generate`.

    Args:
        classes: how many, of the first test episodes.
        images: generated for each.
    """

    def __init__(self, classes: int = 8, images: int = 8) -> None:
        super().__init__(classes=classes, images=images)
        self.classes, self.images = classes, images

    def applies(self, tested: Tested) -> bool:
        return tested.generates

    def draw(self, tested: Tested, log_dir: Path) -> dict[str, Figure]:
        rows: list[tuple[Tensor, Tensor]] = []
        for index in tested.first(self.classes):
            if len(rows) < self.classes:
                rows += zip(*support_and_generated(tested, tested.episodes([index]), self.images)[0], strict=True)
        return {"generated_images": gallery(rows[: self.classes], tested.title)}


def support_and_generated(tested: Tested, tasks: Episode, count: int) -> list[tuple[Tensor, Tensor]]:
    """For each task its support images `(N, K, C, H, W)`, and generated ones `(N, count, C, H, W)`."""
    module, n_way = tested.module, tested.data.shapes["test"].n_way
    with tested.trainer.precision_plugin.test_step_context():
        adapted = module.adapt_tasks(tasks.support)
        found = []
        for t, (x, y) in enumerate(zip(*tasks.support, strict=True)):
            made = module.generate(tree_map(lambda leaf, t=t: leaf[t], adapted), count)
            shown = x[y.argsort(stable=True)].unflatten(0, (n_way, -1))
            found.append((shown.float().cpu(), made.detach().float().cpu()))
    return found


def gallery(rows: list[tuple[Tensor, Tensor]], title: str = "Generated images") -> Figure:
    """A row for each class: support images `(K, C, H, W)`, at most five of them, and generated ones `(M, C, H, W)`."""
    shown, made = min(SHOWN, len(rows[0][0])), len(rows[0][1])
    second = MARGIN + shown * (IMAGE + GAP) + SEPARATION
    width = max(second + made * (IMAGE + GAP) + MARGIN, WIDTH)
    figure, axes = sheet(width, TOP + len(rows) * (IMAGE + GAP) + MARGIN)
    axes.text(MARGIN, MARGIN, title, fontsize=TITLE, color=INK, va="top")
    for left, name in ((MARGIN, "support"), (second, "generated")):
        axes.text(left, TOP - 0.08, name, fontsize=LABEL, color=INK)
    for row, (support, generated) in enumerate(rows):
        top = TOP + row * (IMAGE + GAP)
        for left, images, colour in ((MARGIN, support[:shown], GREY), (second, generated, BLUE)):
            for column, image in enumerate(images):
                show(axes, image, left + column * (IMAGE + GAP), top, colour, 0.6)
    return figure
