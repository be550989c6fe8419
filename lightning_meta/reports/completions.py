"""What does an image look like to a module that has seen some of its pixels?

After figure 4 of Garnelo et al. (2018), arXiv:1807.01613.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from lightning_meta.compat import tree_map
from lightning_meta.core import Batch, Episode
from lightning_meta.core.sampling import episode_keys
from lightning_meta.datamodules.episodes import STREAM
from lightning_meta.datamodules.functions.image_completion import PixelSource
from lightning_meta.metrics import EpisodicLogLikelihood
from lightning_meta.reports.base import Report
from lightning_meta.reports.style import DPI, GREY, INK, LABEL, TITLE
from lightning_meta.reports.tested import Tested

IMAGE, GAP, LEFT, TOP, MARGIN = 0.95, 0.06, 1.0, 0.75, 0.12  # inches; LEFT and TOP are room for text
UNSEEN = (0.62, 0.78, 0.9)  # light blue


class Completions(Report):
    """Picture `completions`: images of test episodes, completed from more and more of their pixels.

    For `ImageCompletion` by algorithms that predict means and standard deviations.

    Args:
        images: how many test episodes.
        pixels: numbers of support pixels; those beyond the image's are left out.
    """

    def __init__(self, images: int = 3, pixels: Sequence[int] = (10, 100, 300, 1000)) -> None:
        super().__init__(images=images, pixels=min(pixels, default=None))
        self.images, self.pixels = images, tuple(pixels)

    def applies(self, tested: Tested) -> bool:
        return tested.draws_from(PixelSource) and isinstance(tested.module.metric, EpisodicLogLikelihood)

    def draw(self, tested: Tested, log_dir: Path) -> dict[str, Figure]:
        source = tested.data.sources["test"]
        keys = episode_keys(tested.data.seed, STREAM["test"], tested.first(self.images))
        image, order_TP = source.pixels(keys), source.order(keys)

        def first(leaf: Tensor, count: int) -> Tensor:
            return leaf.gather(1, order_TP[:, :count, None].expand(-1, -1, leaf.shape[-1]))

        contexts: dict[int, tuple[Tensor, Tensor]] = {}
        for count in (count for count in self.pixels if count <= order_TP.shape[1]):
            tasks = Episode(Batch(*(first(leaf, count) for leaf in image)), image)
            preds = tested.play(tested.to_device(tasks)).preds.float().cpu()
            seen_TP = (order_TP.argsort(1) < count).cpu()
            contexts[count] = tree_map(lambda leaf: leaf.unflatten(1, source.size), (seen_TP, preds))
        return {"completions": completions(image.y.cpu().unflatten(1, source.size), contexts, tested.name)}


def completions(images: Tensor, contexts: Mapping[int, tuple[Tensor, Tensor]], title: str = "Completions") -> Figure:
    """Three rows for each of T images: the pixels shown, means and standard deviations; a column for each number.

    Args:
        images: `(T, H, W, C)` in [0, 1]; C is 1 (0 is paper, 1 is ink) or 3 (RGB).
        contexts: for each number of pixels, which were shown `(T, H, W)` and predictions `(T, H, W, C, 2)`.
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
