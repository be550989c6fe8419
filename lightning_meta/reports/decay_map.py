"""Where a network is held back: the decay that was learned for each pixel, beside the mean image."""

from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from lightning_meta.algorithms.bilevel.hyperparameters import Hyperparameters
from lightning_meta.core.inner_optimizer import module_key
from lightning_meta.datamodules.bilevel.trials import BilevelDataModule
from lightning_meta.reports.base import Report
from lightning_meta.reports.style import LABEL, SMALL, new_figure
from lightning_meta.reports.tested import Tested


class DecayMap(Report):
    """The picture `decay_map`: the mean of the images to learn from, and the decay of each pixel.

    For `Hyperparameters` with a decay for each input or weight of a linear first layer; of several weights of a pixel,
    the geometric mean.
    """

    def applies(self, tested: Tested) -> bool:
        module, data = tested.module, tested.data
        decays = isinstance(module, Hyperparameters) and isinstance(data, BilevelDataModule)
        return decays and first_decays(module).ndim > 1

    def draw(self, tested: Tested, log_dir: Path) -> dict[str, Figure]:
        mean = tested.data.learned_from().x.mean((0, 1))
        log_decay_D = first_decays(tested.module).mean(0).cpu() / torch.tensor(10.0).log()
        if log_decay_D.numel() % mean.numel():
            return {}
        return {"decay_map": decay_map(mean, log_decay_D.view(-1, *mean.shape).mean(0), tested.title)}


def first_decays(module: Hyperparameters) -> Tensor:
    """Logarithms of the decays of the first layer, `(outputs or 1, inputs)`; `()` where it has none of its own."""
    if module.per not in ("input", "weight"):
        return torch.zeros(())
    first = next(name for name, p in module.network.named_parameters() if p.ndim > 1)
    return module.log_decay[module_key(first)].detach().flatten(1)


def decay_map(mean: Tensor, log_decay: Tensor, title: str) -> Figure:
    """Two pictures of a height and width: the mean image in grey, and the powers of ten of the decays in colour."""
    figure = new_figure(6.4, 3.4, title)
    left, right = figure.subplots(1, 2)
    left.imshow(mean, "gray_r")
    left.set_title("mean image", fontsize=LABEL)
    shown = right.imshow(log_decay, "viridis")
    right.set_title("decay of a pixel, power of ten", fontsize=LABEL)
    figure.colorbar(shown, ax=right, shrink=0.8).ax.tick_params(labelsize=SMALL)
    for axes in (left, right):
        axes.set_axis_off()
    return figure
