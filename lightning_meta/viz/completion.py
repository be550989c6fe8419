"""Images completed from some of their pixels, after figure 4 of Garnelo et al. (2018), arXiv:1807.01613."""

from collections.abc import Mapping

import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from lightning_meta.viz.style import DPI, GREY, INK, LABEL, TITLE

IMAGE, GAP, LEFT, TOP, MARGIN = 0.95, 0.06, 1.0, 0.75, 0.12  # inches; LEFT and TOP are room for text
UNSEEN = (0.62, 0.78, 0.9)  # light blue


def completions(images: Tensor, contexts: Mapping[int, tuple[Tensor, Tensor]], title: str = "Completions") -> Figure:
    """Three rows for each of T images: the pixels shown, means and standard deviations; a column for each number.

    Args:
        images: `(T, H, W, C)` in [0, 1]; C is 1 (0 is paper, 1 is ink) or 3 (RGB).
        contexts: for each number of pixels, which were shown `(T, H, W)` and predictions `(T, H, W, C, 2)`.
        title: what was tested.
    """
    rows = ("shown", "mean", "deviation")
    height = TOP + len(images) * (len(rows) * (IMAGE + GAP) + 2 * GAP) + MARGIN
    width = max(LEFT + (len(contexts) + 1) * (IMAGE + GAP) + MARGIN, 6.0)
    # One coordinate system in inches from the upper left corner: a hundred axes would take seconds.
    figure = Figure(figsize=(width, height), dpi=DPI)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()

    def show(pixels: Tensor, column: int, top: float) -> None:
        left = LEFT + column * (IMAGE + GAP)
        axes.imshow(pixels.clamp(0, 1).numpy(), aspect="auto", extent=(left, left + IMAGE, top + IMAGE, top))
        axes.add_patch(Rectangle((left, top), IMAGE, IMAGE, fill=False, edgecolor=GREY, linewidth=0.6))

    axes.text(MARGIN, MARGIN, title, fontsize=TITLE, color=INK, va="top")
    for column, name in enumerate([*(f"{count} pixels" for count in contexts), "image"]):
        middle = LEFT + column * (IMAGE + GAP) + IMAGE / 2
        axes.text(middle, TOP - 0.06, name, fontsize=LABEL, color=INK, ha="center")
    for index, image in enumerate(images):
        tops = [TOP + (index * len(rows) + row) * (IMAGE + GAP) + index * 2 * GAP for row in range(len(rows))]
        for name, top in zip(rows, tops, strict=True):
            axes.text(LEFT - GAP, top + IMAGE / 2, name, fontsize=LABEL, color=INK, ha="right", va="center")
        for column, (seen, preds) in enumerate(contexts.values()):
            mean, std = preds[index].unbind(-1)
            show(torch.where(seen[index][..., None], colours(image), torch.tensor(UNSEEN)), column, tops[0])
            show(colours(mean), column, tops[1])
            show(colours(2 * std.mean(-1, keepdim=True)), column, tops[2])  # black: 0.5
        show(colours(image), len(contexts), tops[0])
    axes.set(xlim=(0, width), ylim=(height, 0))
    return figure


def colours(image: Tensor) -> Tensor:
    """RGB `(H, W, 3)` of an image `(H, W, C)`: ink black on white paper, or its own colours."""
    return 1 - image.expand(-1, -1, 3) if image.shape[-1] == 1 else image
