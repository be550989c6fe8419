"""Does the module read the support set, or has it memorised the tasks?

The failure that Yin, Tucker, Zhou, Levine, Finn name in "Meta-Learning without Memorization" (2020), arXiv:1912.03820.
"""

import logging
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from lightning_meta.compat import tree_map
from lightning_meta.core import Episode, mean_and_ci95_over
from lightning_meta.core.episode import Split
from lightning_meta.reports.base import Report
from lightning_meta.reports.tables import write_csv
from lightning_meta.reports.tested import Tested

log = logging.getLogger(__name__)

UNSEEN = 10**9  # number of a training episode that no training has reached


class SupportUse(Report):
    """Score on query sets after adaptation to the task's own support set, and to that of another task.

    Writes `<log_dir>/support_use.csv` (split, support, the metric and its ci95, in that order own, another's and the
    paired difference). Without a difference the module ignores the support set: it has memorised the tasks. That shows
    in tasks of the training distribution, so by default unseen ones of it are played.

    Args:
        split: whose episodes are played; of `train` such that no training has reached.
        episodes: how many.
    """

    unasked = False

    def __init__(self, split: Split = "train", episodes: int = 1000) -> None:
        super().__init__(episodes=episodes)
        self.split, self.episodes = split, episodes

    def applies(self, tested: Tested) -> bool:
        return tested.plays_episodes

    def draw(self, tested: Tested, log_dir: Path) -> dict[str, Figure]:
        data, metric = tested.data, tested.module.metric
        if self.split not in data.sources:
            data.setup("fit")
        dataset, first = data.dataset(self.split), UNSEEN if self.split == "train" else 0
        scores: dict[str, list[Tensor]] = {"own": [], "another's": []}
        for start in range(0, self.episodes, data.eval_meta_batch_size):
            stop = min(start + data.eval_meta_batch_size, self.episodes)
            # One more: the last task of a part borrows the support set of the task after it.
            tasks = tested.to_device(dataset.__getitems__(range(first + start, first + stop + 1)))
            query = tree_map(lambda leaf: leaf[:-1], tasks.query)
            for name, chosen in (("own", slice(None, -1)), ("another's", slice(1, None))):
                out = tested.play(Episode(tree_map(lambda leaf: leaf[chosen], tasks.support), query))  # noqa: B023
                scores[name].append(metric.per_episode(out.preds, query.y).double())
        values = {name: torch.cat(parts) for name, parts in scores.items()}
        values["difference"] = values["another's"] - values["own"]
        rows = []
        for name, value in values.items():
            mean, ci95 = (number.item() for number in mean_and_ci95_over(value))
            rows.append({"split": self.split, "support": name, metric.name: mean, f"{metric.name}_ci95": ci95})
            log.info("%s tasks, support %s: %s %s", self.split, name, metric.name, metric.text(mean, ci95))
        write_csv(log_dir / "support_use.csv", rows)
        return {}
