"""Is a choice repeated because it was rewarded, or because of where it leads? Choices in the two-step task.

Daw, Gershman, Seymour, Dayan, Dolan: "Model-Based Influences on Humans' Choices and Striatal Prediction Errors" (2011),
Neuron; as figure 5 of Wang et al.: "Learning to Reinforcement Learn" (2016), arXiv:1611.05763.

Shapes: `T` tasks, `N` trials of a trajectory, `B` trajectories; cells of a table `(2, 2)` are by reward (no, yes) and
transition (rare, common).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from lightning_meta.core.statistics import Z95
from lightning_meta.datamodules.trials.rollouts import Rollouts
from lightning_meta.modules.rollout import RolloutModule, Trajectories
from lightning_meta.ranks import gather
from lightning_meta.reports.base import Report
from lightning_meta.reports.style import BLUE, GREY, INK, SMALL, new_figure, tidy
from lightning_meta.reports.tested import Tested
from lightning_meta.worlds import TwoStep

EFFECTS = {"reward": ((-1, -1), (1, 1)), "transition": ((-1, 1), (-1, 1)), "interaction": ((1, -1), (-1, 1))}


class StayProbability(Report):
    """How often the first choice is repeated, by whether it was rewarded and by how common the transition was.

    Logs the coefficients of a logistic regression of staying on reward, transition (both -1 or 1) and their product,
    `test/stay_reward`, `test/stay_transition` and `test/stay_interaction`, and draws the picture `stay_probability`.
    Plans have an effect of the interaction alone, habits one of the reward, and where places differ in what they pay
    some of the interaction too. For any `RolloutModule` in the world `TwoStep`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[Tensor] = []

    def applies(self, tested: Tested) -> bool:
        module, data = tested.module, tested.data
        return isinstance(module, RolloutModule) and isinstance(data, Rollouts) and isinstance(data.world, TwoStep)

    def begin(self, tested: Tested) -> None:
        self.parts = []

    def observe(self, tested: Tested, outputs: Any, batch: Any, ids: Sequence[int]) -> None:
        self.parts.append(stays(tested.module.record(batch)[-1]).cpu())

    def conclude(self, tested: Tested) -> None:
        mine = torch.cat(self.parts) if self.parts else torch.zeros(0, 2, 2, 2, dtype=torch.float64)
        self.parts = gather(mine)
        for name, (value, half) in effects(torch.cat(self.parts)).items():
            tested.log(f"stay_{name}", value, half)

    def draw(self, tested: Tested, log_dir: Path) -> dict[str, Figure]:
        return {"stay_probability": stay_probability(torch.cat(self.parts), tested.title)}


def stays(played: Trajectories) -> Tensor:
    """How often the choice of a trial was repeated in the next and how often not, by task and cell `(T, 2, 2, 2)`."""
    chosen_TNB, places_TNB = played.actions[:, 0::2], played.told.seen[:, 1::2].argmax(-1)
    rewarded_TNB, common_TNB = played.rewards[:, 1::2] > 0, places_TNB == 1 + chosen_TNB
    left_TNB = chosen_TNB[:, 1:] != chosen_TNB[:, :-1]
    place_TX = (4 * left_TNB + 2 * rewarded_TNB[:, :-1] + 1 * common_TNB[:, :-1]).flatten(1)
    return torch.nn.functional.one_hot(place_TX, 8).sum(1).view(-1, 2, 2, 2).double()


def effects(counts_T222: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Coefficients of the logistic regression, and half of their 95 % intervals.

    With the product, the regression has as many coefficients as there are cells, so its logits are those of the shares
    in the cells. Trials of a task are not independent: the variance is that over tasks (the cluster-robust one).
    """
    counts_T222 = counts_T222 + 0.5 / len(counts_T222)  # half a choice each, so that no cell is without
    stayed_T22, left_T22 = counts_T222.unbind(1)
    share_22 = stayed_T22.sum(0) / counts_T222.sum((0, 1))
    # How far each task moves the logit of a cell.
    pull_T22 = (stayed_T22 - share_22 * (stayed_T22 + left_T22)) / (counts_T222.sum((0, 1)) * share_22 * (1 - share_22))
    found = {}
    for name, signs in EFFECTS.items():
        contrast_22 = torch.tensor(signs, dtype=counts_T222.dtype) / 4
        half = Z95 * (contrast_22 * pull_T22).sum((1, 2)).square().sum().sqrt()
        found[name] = ((contrast_22 * share_22.logit()).sum(), half)
    return found


def stay_probability(counts_T222: Tensor, title: str) -> Figure:
    """Four bars, the mean over tasks of the share of choices that were repeated, and its 95 % interval."""
    trials_T22 = counts_T222.sum(1)
    total_22 = trials_T22.sum(0).clamp_min(1)
    share_22 = counts_T222[:, 0].sum(0) / total_22
    half_22 = Z95 * ((counts_T222[:, 0] - share_22 * trials_T22) / total_22).square().sum(0).sqrt()
    found = effects(counts_T222)
    said = ", ".join(f"{name} {value:.2f} ± {half:.2f}" for name, (value, half) in found.items())
    figure = new_figure(5.6, 4.0, f"{title}\nlogistic regression of staying: {said}")
    axes = figure.subplots()
    for common, (name, colour, shift) in enumerate((("rare transition", GREY, 0.2), ("common transition", BLUE, -0.2))):
        for rewarded in (0, 1):
            axes.bar(
                1 - rewarded + shift, share_22[rewarded, common], 0.38, color=colour, ecolor=INK, capsize=3,
                yerr=half_22[rewarded, common], label=name if rewarded else None,
            )  # fmt: skip
    tidy(axes, "", "choice repeated")
    axes.set_xticks([0, 1], ["rewarded", "not rewarded"])
    axes.set_ylim(0, 1)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=SMALL)
    return figure
