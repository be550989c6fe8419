"""What is found in a scene: masks or boxes beside those that are right."""

from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from lightning_meta.compat import tree_map
from lightning_meta.core import Episode
from lightning_meta.datamodules.images.scenes import SceneBank
from lightning_meta.metrics import EpisodicAveragePrecision, EpisodicIoU
from lightning_meta.reports.base import Report
from lightning_meta.reports.style import BLUE, DPI, GREEN, GREY, INK, LABEL, PURPLE, TITLE, VERMILLION
from lightning_meta.reports.tested import Tested

COLOURS = (BLUE, VERMILLION, GREEN, PURPLE)  # of the classes; further ones begin anew
IMAGE = 1.1  # inches


class SceneGallery(Report):
    """Picture `scene_gallery`: support scenes of a test episode as they are marked, then queries: true, found.

    For segmentation (an `iou`) and detection (an `ap50`) on `Scenes`.

    Args:
        queries: how many query scenes of the first test episode.
        score: boxes below this score are not drawn.
    """

    def __init__(self, queries: int = 6, score: float = 0.3) -> None:
        super().__init__(queries=queries)
        self.queries, self.score = queries, score

    def applies(self, tested: Tested) -> bool:
        looked_at = EpisodicIoU | EpisodicAveragePrecision
        return tested.draws_from(SceneBank) and isinstance(tested.module.metric, looked_at)

    def draw(self, tested: Tested, log_dir: Path) -> dict[str, Figure]:
        episode = tree_map(lambda leaf: leaf.cpu(), tested.episodes(tested.first(1)))
        preds = tested.play(tested.to_device(episode)).preds.float().cpu()[0]
        one: Episode = tree_map(lambda leaf: leaf[0], episode)
        found = preds.argmax(-1) if isinstance(tested.module.metric, EpisodicIoU) else above(preds, self.score)
        return {"scene_gallery": scenes(one, found, self.queries, tested.name)}


def above(preds_QM6: Tensor, score: float) -> Tensor:
    """Detections as boxes `(Q, M, 5)` without their scores; -1 where these are too low."""
    boxes = preds_QM6[..., [0, 2, 3, 4, 5]]
    return torch.where(preds_QM6[..., 1, None] >= score, boxes, -1)


def scenes(episode: Episode, found: Tensor, queries: int = 6, title: str = "Scenes") -> Figure:
    """Three rows: support scenes as they are marked, query scenes as they are, and with what was found.

    Args:
        episode: one task; targets are masks `(S, H, W)` or boxes `(S, O, 5)`.
        found: of the queries, in the form of the targets.
        queries: how many of them are shown, at even distances, so that all classes are.
        title: of the figure.
    """
    support, query = episode
    places = torch.linspace(0, len(query.x) - 1, min(queries, len(query.x))).round().long()
    rows = [
        ("support", support.x[: len(places)], support.y[: len(places)]),
        ("query: true", query.x[places], query.y[places]),
        ("found", query.x[places], found[places]),
    ]
    columns = max(len(images) for _, images, _ in rows)
    figure = Figure(figsize=(0.9 + columns * IMAGE, 0.5 + 3 * IMAGE), dpi=DPI, layout="constrained")
    figure.suptitle(title, fontsize=TITLE, color=INK, x=0.01, ha="left")
    for axes_of_row, (name, images, targets) in zip(figure.subplots(3, columns, squeeze=False), rows, strict=True):
        axes_of_row[0].set_ylabel(name, fontsize=LABEL, color=INK)
        for axes in axes_of_row:
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set(linewidth=0.6, color=GREY)
        for axes, image, target in zip(axes_of_row, images, targets, strict=False):
            paint(axes, image, target)
        for axes in axes_of_row[len(images) :]:
            axes.set_visible(False)
    return figure


def paint(axes: Axes, image_CHW: Tensor, target: Tensor) -> None:
    """A scene with its masks `(H, W)` or boxes `(O, 5)`."""
    picture = 1 - image_CHW.expand(3, -1, -1) if len(image_CHW) == 1 else image_CHW
    axes.imshow(picture.movedim(0, -1).clamp(0, 1).numpy())
    if target.is_floating_point():
        for label, top, left, bottom, right in target.tolist():
            if label >= 0:
                colour = COLOURS[int(label) % len(COLOURS)]
                frame = Rectangle((left - 0.5, top - 0.5), right - left, bottom - top, fill=False, edgecolor=colour)
                axes.add_patch(frame)
        return
    for label in target.unique().tolist():
        if label:
            axes.contourf(
                (target == label).numpy(), levels=[0.5, 1.5], colors=[COLOURS[(label - 1) % len(COLOURS)]], alpha=0.45
            )
