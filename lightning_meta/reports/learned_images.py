"""Images that were learned, beside those that they began as."""

from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from lightning_meta.algorithms.bilevel.kip import KIP
from lightning_meta.datamodules.bilevel.trials import BilevelDataModule
from lightning_meta.reports.base import Report
from lightning_meta.reports.sheet import GAP, IMAGE, MARGIN, TOP, WIDTH, below, sheet, show
from lightning_meta.reports.style import GREY, INK, SMALL, TITLE
from lightning_meta.reports.tested import Tested


class LearnedImages(Report):
    """The picture `learned_images`: two rows, real images and what was made of them. For `KIP`.

    Args:
        images: how many, at even distances.
    """

    def __init__(self, images: int = 10) -> None:
        super().__init__(images=images)
        self.images = images

    def applies(self, tested: Tested) -> bool:
        images = isinstance(tested.module, KIP) and tested.module.images.ndim == 4
        return images and isinstance(tested.data, BilevelDataModule)

    def draw(self, tested: Tested, log_dir: Path) -> dict[str, Figure]:
        module: KIP = tested.module
        first = module.first_images(tested.data)
        places = torch.arange(min(self.images, len(first))) * len(first) // min(self.images, len(first))
        learned, labels = module.images.detach().cpu()[places], module.labels.argmax(1).cpu()[places]
        return {"learned_images": learned_images(first[places], learned, labels, tested.title)}


def learned_images(first: Tensor, learned: Tensor, labels: Tensor, title: str) -> Figure:
    """A row of M real images above the learned ones, each scaled to its own range, with their classes.

    Args:
        first, learned: `(M, C, H, W)`.
        labels: `(M,)`.
        title: of the picture.
    """
    left, step = 0.9, IMAGE + GAP
    figure, axes = sheet(max(WIDTH, left + len(first) * step + MARGIN), TOP + 2 * step + 0.3 + MARGIN)
    head, _, rest = title.partition(", ")
    axes.text(MARGIN, MARGIN, head, fontsize=TITLE, color=INK, va="top")
    axes.text(MARGIN, MARGIN + 0.27, rest, fontsize=SMALL, color=GREY, va="top")
    for row, (name, images) in enumerate((("real", first), ("learned", learned))):
        top = TOP + row * step
        axes.text(MARGIN, top + IMAGE / 2, name, fontsize=SMALL, color=INK, va="center")
        for place, image in enumerate(images):
            low, high = image.min(), image.max()
            show(axes, (image - low) / (high - low).clamp_min(1e-12), left + place * step, top, GREY, 0.5)
    for place, label in enumerate(labels.tolist()):
        below(axes, left + place * step, TOP + 2 * step, f"class {label}", SMALL, INK)
    return figure
