"""How much an example counts by its loss: the curve that Meta-Weight-Net has learned, and the examples on it."""

from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from lightning_meta.algorithms.bilevel.meta_weight_net import MetaWeightNet
from lightning_meta.core import Batch
from lightning_meta.datamodules.bilevel.held_out_images import HeldOutImages
from lightning_meta.reports.base import Report
from lightning_meta.reports.style import BLUE, LABEL, VERMILLION, new_figure, tidy
from lightning_meta.reports.tables import write_csv
from lightning_meta.reports.tested import Tested


class ExampleWeights(Report):
    """Weights of the images that a training learns from, under the weights that it has come to.

    Writes `<log_dir>/example_weights.csv` (loss, weight, right: whether the label is) and the picture
    `example_weights`. For `MetaWeightNet` on `HeldOutImages`; of several trainings, the first.

    Args:
        examples: how many, the first ones.
    """

    def __init__(self, examples: int = 2000) -> None:
        super().__init__(examples=examples)
        self.examples = examples

    def applies(self, tested: Tested) -> bool:
        return isinstance(tested.module, MetaWeightNet) and isinstance(tested.data, HeldOutImages)

    def draw(self, tested: Tested, log_dir: Path) -> dict[str, Figure]:
        module, data = tested.module, tested.data
        if module.judged is None:
            return {}
        weights = {name: value[0] for name, value in module.judged.params.items()}
        order = torch.randperm(len(data.given_labels), generator=torch.Generator().manual_seed(0))[: self.examples]
        batch = tested.to_device(Batch(*(part[order] for part in data.learned_from())))
        losses = module.losses(weights, batch)
        right = data.given_labels[order] == data.labels["support"][order]
        counts = module.weights_of(losses).cpu()
        columns = zip(losses.tolist(), counts.tolist(), right.tolist(), strict=True)
        rows = [{"loss": loss, "weight": weight, "right": int(is_right)} for loss, weight, is_right in columns]
        write_csv(log_dir / "example_weights.csv", rows)
        return {"example_weights": example_weights(losses.cpu(), counts, right, tested.name)}


def example_weights(losses: Tensor, weights: Tensor, right: Tensor, title: str) -> Figure:
    """Points of E examples, weight over loss, those with a wrong label in another colour; and how losses are spread.

    Args:
        losses, weights: `(E,)`.
        right: `(E,)` whether the label is right.
        title: of the picture.
    """
    figure = new_figure(6.4, 4.6, f"{title}: how much an example counts")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    bins = torch.linspace(0, float(losses.max()) or 1.0, 41).tolist()
    for name, colour, chosen in (("right label", BLUE, right), ("wrong label", VERMILLION, ~right)):
        if chosen.any():
            above.scatter(losses[chosen], weights[chosen], s=8, color=colour, alpha=0.6, lw=0, label=name)
            below.hist(losses[chosen].tolist(), bins, color=colour, alpha=0.6)
    tidy(above, y_label="weight")
    tidy(below, "loss of the example", "examples")
    above.set_ylim(bottom=0)
    above.legend(frameon=False, fontsize=LABEL)
    return figure
