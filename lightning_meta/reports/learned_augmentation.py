"""What an augmentation has learned: images under it, beside held-out ones, and how strong each operation may be."""

from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from lightning_meta.algorithms.bilevel.autoaugment import AutoAugment
from lightning_meta.algorithms.bilevel.dada import DADA
from lightning_meta.algorithms.bilevel.pba import PBA
from lightning_meta.core.augment import LARGEST, augment_within
from lightning_meta.datamodules.bilevel.held_out_images import HeldOutImages
from lightning_meta.reports.base import Report
from lightning_meta.reports.sheet import GAP, IMAGE, MARGIN, TOP, WIDTH, sheet, show
from lightning_meta.reports.style import BLUE, GREY, INK, LABEL, SMALL, TITLE, VERMILLION, new_figure, tidy
from lightning_meta.reports.tables import write_csv
from lightning_meta.reports.tested import Tested


class LearnedAugmentation(Report):
    """Magnitudes of operations that were learned, and images under them. For `DADA`, `AutoAugment` and `PBA`.

    Writes `<log_dir>/augmentation.csv` (operation; how strong it may be, as learned, and as the held-out images are
    moved, where that is known) and the pictures `augmentation` and `augmented_images`.

    Args:
        images: how many, of different classes as far as there are.
    """

    def __init__(self, images: int = 10) -> None:
        super().__init__(images=images)
        self.images = images

    def applies(self, tested: Tested) -> bool:
        learned = isinstance(tested.module, DADA | AutoAugment | PBA)
        return learned and isinstance(tested.data, HeldOutImages)

    def draw(self, tested: Tested, log_dir: Path) -> dict[str, Figure]:
        module, data = tested.module, tested.data
        learned = dict(zip(LARGEST, module.magnitudes.detach().cpu().tolist(), strict=True))
        rows = [{"operation": name, "learned": m, "true": data.moved.get(name, 0.0)} for name, m in learned.items()]
        write_csv(log_dir / "augmentation.csv", rows)
        real, held_out = (
            images[torch.arange(self.images) * len(images) // self.images]
            for images in (data.learned_from().x, data.all_held_out().x)
        )
        magnitudes = {name: real.new_tensor(m) for name, m in learned.items()}
        augmented = [augment_within(real, magnitudes, torch.tensor(key)) for key in range(3)]
        return {
            "augmentation": augmentation(learned, data.moved, tested.name),
            "augmented_images": augmented_images(real, augmented, held_out, tested.title),
        }


def augmentation(learned: dict[str, float], true: dict[str, float], title: str) -> Figure:
    """A bar for each operation, as a part of the largest strength, and a mark where the truth is."""
    figure = new_figure(6.4, 3.6, f"{title}: how strong an operation may be")
    axes = figure.subplots()
    places = range(len(learned))
    axes.bar(places, [m / LARGEST[name] for name, m in learned.items()], 0.6, color=BLUE, label="learned")
    marks = [true.get(name, 0.0) / LARGEST[name] for name in learned]
    axes.scatter(places, marks, s=500, marker="_", color=VERMILLION, lw=2.5, label="held-out images", zorder=3)
    tidy(axes, y_label="part of the largest")
    axes.set_xticks(places, [f"{name}\n{m:.2g}" for name, m in learned.items()], fontsize=SMALL - 1)
    axes.set_ylim(-0.02, 1)
    axes.legend(frameon=False, fontsize=LABEL, markerscale=0.4)
    return figure


def augmented_images(real: Tensor, augmented: list[Tensor], held_out: Tensor, title: str) -> Figure:
    """Rows of M images: as they are to learn from, some draws of what was made of them, and others, held out.

    Args:
        real, held_out: `(M, C, H, W)`.
        augmented: several of the same shape.
        title: of the picture.
    """
    left, step = 1.0, IMAGE + GAP
    rows = [("real", real), *[("augmented", images) for images in augmented], ("held out", held_out)]
    figure, axes = sheet(max(WIDTH, left + len(real) * step + MARGIN), TOP + len(rows) * step + MARGIN)
    head, _, rest = title.partition(", ")
    axes.text(MARGIN, MARGIN, head, fontsize=TITLE, color=INK, va="top")
    axes.text(MARGIN, MARGIN + 0.27, rest, fontsize=SMALL, color=GREY, va="top")
    for row, (name, images) in enumerate(rows):
        top = TOP + row * step
        axes.text(MARGIN, top + IMAGE / 2, name, fontsize=SMALL, color=INK, va="center")
        for place, image in enumerate(images):
            show(axes, image, left + place * step, top, GREY, 0.5)
    return figure
