"""What does an episode look like, and what is confused with what?"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from torch import Tensor

from lightning_meta.compat import tree_map
from lightning_meta.core import Batch
from lightning_meta.reports.base import Report
from lightning_meta.reports.fonts import NAME, drawable, families, short
from lightning_meta.reports.sheet import (
    CAPTION,
    CHARACTER,
    FILE,
    FILE_SIZE,
    GAP,
    IMAGE,
    MARGIN,
    SEPARATION,
    TOP,
    WIDTH,
    below,
    room_for,
    sheet,
    show,
)  # fmt: skip
from lightning_meta.reports.style import BLUE, GREY, INK, LABEL, SMALL, TITLE, VERMILLION
from lightning_meta.reports.tested import Tested


class EpisodeGallery(Report):
    """Pictures `episode_0`, `episode_1`, ...: support and query images of test episodes with the predictions.

    For image classification.

    Args:
        episodes: how many test episodes.
    """

    def __init__(self, episodes: int = 2) -> None:
        super().__init__(episodes=episodes)
        self.episodes = episodes

    def applies(self, tested: Tested) -> bool:
        query = tested.one(0).query if tested.is_episodic else None
        return query is not None and query.x.ndim == 5 and query.y.ndim == 2 and not query.y.is_floating_point()

    def draw(self, tested: Tested, log_dir: Path) -> dict[str, Figure]:
        figures = {}
        for index in tested.first(self.episodes):
            tasks = tested.one(index)
            (preds,) = tested.play(tasks).preds
            support, query = tree_map(lambda leaf: leaf[0], tasks)
            title = f"{tested.title}, test episode {index}"
            figures[f"episode_{index}"] = episode_gallery(support, query, preds, title, tested.class_names(index))
        return figures


def episode_gallery(
    support: Batch,
    query: Batch,
    preds: Tensor,
    title: str = "Episode",
    names: Mapping[int, str] | None = None,
    max_support: int = 5,
    max_query: int = 8,
) -> Figure:
    """A row for each class: its support images at the left, its query images with their predictions at the right.

    A right prediction has a thin blue frame and a check mark, a wrong one a thick red frame, a cross and the class it
    was taken for: the mark and the thickness serve readers who do not see the colours.

    Args:
        support: images `(N*K, C, H, W)` in [0, 1] and labels `(N*K,)`; C is 1 (0 is paper, 1 is ink) or 3 (RGB).
        query: likewise `(N*Q, C, H, W)` and `(N*Q,)`.
        preds: logits of the query images `(N*Q, N)`.
        title: names the episode; its score is added below.
        names: of the classes by their labels. None: they have none.
        max_support, max_query: images shown per class.
    """
    predicted = preds.argmax(-1)
    correct = predicted == query.y
    classes = support.y.unique().tolist()
    shown = {c: f"class {c}" for c in classes}
    if names:
        shown |= dict(zip(classes, short(drawable([names[c] for c in classes], "class"), NAME), strict=True))
    n_support = min(max_support, int(support.y.bincount().max()))
    n_query = min(max_query, int(query.y.bincount().max()))
    left_support = room_for(shown.values())
    query_left = left_support + n_support * (IMAGE + GAP) - GAP + SEPARATION
    taken = "✗ name: taken for that class" if names else "✗ n: taken for class n"
    heading = f"query   (✓ right, {taken})"
    width = max(query_left + n_query * (IMAGE + GAP) - GAP + MARGIN, WIDTH)
    width = max(width, *(left + CHARACTER * len(s) for left, s in ((left_support, title), (query_left, heading))))
    height = TOP + len(classes) * (IMAGE + CAPTION) + MARGIN

    figure, axes = sheet(width, height)
    score = f"{int(correct.sum())} of {len(correct)} queries right ({float(correct.double().mean()):.0%})"
    axes.text(left_support, MARGIN, f"{title}\n{score}", fontsize=TITLE, color=INK, va="top")
    axes.text(left_support, TOP - 0.06, "support", fontsize=LABEL, color=INK)
    axes.text(query_left, TOP - 0.06, heading, fontsize=LABEL, color=INK)
    for row, label in enumerate(classes):
        top = TOP + row * (IMAGE + CAPTION)
        name: dict[str, Any] = {"s": shown[label], "family": families(shown[label])}
        axes.text(left_support - GAP, top + IMAGE / 2, **name, fontsize=LABEL, color=INK, ha="right", va="center")
        for column, image in enumerate(support.x[support.y == label][:n_support]):
            show(axes, image, left_support + column * (IMAGE + GAP), top, GREY, 0.8)
        for column, index in enumerate((query.y == label).nonzero().flatten()[:n_query].tolist()):
            left = query_left + column * (IMAGE + GAP)
            taken_for = int(predicted[index])
            wrong = short([shown.get(taken_for, "?")], FILE)[0] if names else taken_for
            mark, colour, thickness = ("✓", BLUE, 1.2) if correct[index] else (f"✗ {wrong}", VERMILLION, 2.6)
            show(axes, query.x[index], left, top, colour, thickness)
            below(axes, left, top + IMAGE + 0.04, mark, SMALL if len(mark) < 8 else FILE_SIZE, colour)
    return figure
