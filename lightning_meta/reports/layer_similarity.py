"""Rapid learning or feature reuse: which layers does adaptation change?

The analysis of Raghu, Raghu, Bengio, Vinyals: "Rapid Learning or Feature Reuse? Towards Understanding the Effectiveness
of MAML" (2020), arXiv:1909.09157.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from math import isnan
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from lightning_meta.backbones import Backbone
from lightning_meta.compat import tree_map
from lightning_meta.core import Episode, mean_and_ci95_over
from lightning_meta.core.similarity import MIN_EXAMPLES, centred_gram, linear_cka
from lightning_meta.reports.base import Report
from lightning_meta.reports.style import BLUE, INK, SMALL, new_figure, tidy
from lightning_meta.reports.tables import write_csv
from lightning_meta.reports.tested import Tested, eval_inner_steps


class LayerSimilarity(Report):
    """Similarity (CKA) of each layer's output before and after adaptation, on query sets of the first test episodes.

    Writes `<log_dir>/layer_similarity.csv` (layer, cka, cka_ci95; mean and interval over episodes) and the picture
    `layer_similarity`. A layer that keeps its weights and its input has exactly 1. Few query examples would make the
    usual estimate of CKA too high, so a debiased one is taken, see `core/similarity.py`; with fewer than 4 of them
    nothing is drawn.

    The layers are the head and the children of the backbone that have parameters; a child that is an `nn.Sequential`
    stands for its own children, each with the activation that follows it (the blocks of Conv4 and of ResNet-12, the
    hidden layers of an MLP), and so does an `nn.ModuleList` (the convolutions of TextCNN, before their activation).

    For algorithms that have `eval_inner_steps` and a `learner`, a backbone followed by a head, which `query_loss` runs
    once: MAML and its relatives. Before adaptation means with `eval_inner_steps=0`.

    Args:
        episodes: how many test episodes, at most `test_episodes`.
    """

    def __init__(self, episodes: int = 50) -> None:
        super().__init__(episodes=episodes)
        self.episodes = episodes

    def applies(self, tested: Tested) -> bool:
        learner = getattr(tested.module, "learner", None)
        whole = tested.adapts_in_steps and tested.leaves_one_network
        whole = whole and isinstance(learner, nn.Sequential) and len(learner) == 2
        return whole and len(tested.episodes([0]).query.x[0]) >= MIN_EXAMPLES

    def draw(self, tested: Tested, log_dir: Path) -> dict[str, Figure]:
        backbone, head = tested.module.learner
        layers = layers_of(backbone.inner if isinstance(backbone, Backbone) else backbone, head)
        ids = tested.first(self.episodes)
        similarities: list[Tensor] = []  # of each episode, the CKA of each layer
        for index in ids:
            task = tree_map(lambda leaf: leaf[0], tested.episodes([index]))
            before, after = (centred_grams(layers, tested, task, steps) for steps in (0, None))
            similarities.append(torch.stack([linear_cka(before[name], after[name]) for name in before]))
        mean, ci95 = mean_and_ci95_over(torch.stack(similarities).cpu())
        names = list(before)
        columns = zip(names, mean.tolist(), ci95.tolist(), strict=True)
        rows = [{"layer": name, "cka": cka, "cka_ci95": half_width} for name, cka, half_width in columns]
        write_csv(log_dir / "layer_similarity.csv", rows)
        figure = layer_similarity(names, mean, ci95, len(ids), len(task.query.x), tested.title)
        return {"layer_similarity": figure}


def layers_of(backbone: nn.Module, head: nn.Module) -> dict[str, nn.Module]:
    """What to take the output of for each layer: those of the backbone by their names there, then the head.

    Without its activation, a linear layer of a scalar input would have a similarity of 1 whatever its weights.
    """
    layers: dict[str, nn.Module] = {}
    for name, child in backbone.named_children():
        if not isinstance(child, nn.Sequential | nn.ModuleList):
            layers |= {name: child} if has_parameters(child) else {}
            continue
        layer = None
        for key, part in child.named_children():
            layer = f"{name}.{key}" if has_parameters(part) else layer
            layers |= {layer: part} if layer else {}
    return layers | {"head": head}


def has_parameters(module: nn.Module) -> bool:
    return any(True for _ in module.parameters())


def centred_grams(
    layers: dict[str, nn.Module], tested: Tested, task: Episode, inner_steps: int | None
) -> dict[str, Tensor]:
    """`centred_gram` of each layer's output for the query set, after so many inner steps (None: as in the test).

    In the order in which the layers run; one that does not is left out. The outputs themselves, which are large in a
    deep network, are not kept.
    """
    grams: dict[str, Tensor] = {}
    with tested.trainer.precision_plugin.test_step_context(), eval_inner_steps(tested.module, inner_steps):
        with tested.module.adapt_precision():
            adapted = tested.module.adapt(task.support)
        with ExitStack() as hooks:
            for name, layer in layers.items():

                def keep(_: nn.Module, inputs: Any, output: Any, name: str = name) -> None:
                    output = output[0] if isinstance(output, tuple) else output  # of a recurrent layer
                    if len(output) == len(task.query.x):
                        grams.setdefault(name, centred_gram(output.flatten(1)))  # an activation may be shared

                hooks.enter_context(layer.register_forward_hook(keep))
            tested.module.query_loss(adapted, task.query)
    return grams


def layer_similarity(
    layers: Sequence[str], mean: Tensor, ci95: Tensor, episodes: int, examples: int, title: str = "Adaptation"
) -> Figure:
    """A bar for each of L layers: mean CKA over episodes, with its 95 % confidence interval.

    Args:
        layers: names, from input to output.
        mean: CKA `(L,)`; NaN, where it is undefined, leaves a gap.
        ci95: half-width of the interval `(L,)`.
        episodes: how many episodes the means are taken over.
        examples: query examples in each of them.
    """
    mean, ci95 = mean.cpu(), ci95.cpu().nan_to_num(0)  # a single episode has no interval
    width = max(1.5 + 0.75 * len(layers), 6.5)  # inches; at least, for the title
    figure = new_figure(width, 4.2, f"{title}\nmean and 95 % interval over {episodes} episodes")
    axes = figure.subplots()
    places = range(len(layers))
    axes.bar(places, mean, width=0.6, color=BLUE)
    axes.errorbar(places, mean, yerr=ci95, fmt="none", ecolor=INK, elinewidth=1.2, capsize=4)
    for place, value, half_width in zip(places, mean.tolist(), ci95.tolist(), strict=True):
        if not isnan(value):
            top = max(value, 0) + half_width
            axes.annotate(
                f"{value:.3f}",
                (place, top),
                xytext=(0, 4),
                textcoords="offset points",
                ha="center",
                fontsize=SMALL,
                color=INK,
            )
    axes.set_xticks(places, layers)
    axes.set_ylim(min(0, float((mean - ci95).nan_to_num(0).min())), 1.1)
    axes.set_yticks([0, 0.2, 0.4, 0.6, 0.8, 1])
    note = f"debiased, as the usual estimate of CKA from {examples} query examples is too high"
    tidy(axes, f"layer, from input to output\n\n{note}", "CKA, before against after")
    axes.grid(axis="x", visible=False)
    return figure
