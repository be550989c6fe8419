# # Your own loss, metric, callback and report
#
# Each is a small piece of Python that is handed in, by a program or on the command line. Nothing else changes.

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger
from torch.nn import functional as F

from lightning_meta.algorithms import MAML
from lightning_meta.backbones import Conv4
from lightning_meta.datamodules import Glyphs
from lightning_meta.metrics import EpisodicAccuracy, EpisodicMetric
from lightning_meta.reports.base import Report
from lightning_meta.reports.style import new_figure, tidy

# ## A loss
#
# A function of predictions and targets, here with smoothed labels. MAML and its family take it as `loss_fn`, for
# support and query alike. It must be differentiable twice, because inner steps are differentiated. In other algorithms
# the loss is part of the method: override `query_loss`, or `head_loss` of those that compare features.


def smoothed(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits, targets, label_smoothing=0.1)


# ## A metric
#
# `per_episode` is given the predictions and targets of T episodes and returns one number for each; means, intervals and
# several devices are taken care of. `mode` says whether larger is better: checkpoints are chosen by it. A metric of
# classes derives from `EpisodicAccuracy`. What is measured beside it, in validation and test, are its `companions`:
# here how many queries of an episode's worst class are recognised.


class WorstClass(EpisodicMetric):
    name, mode = "worst_class", "max"
    scale, unit, digits = 100, "%", 2  # how it is written

    @staticmethod
    def per_episode(preds, targets):
        right = (preds.argmax(-1) == targets).double()  # (T, Q)
        belongs = F.one_hot(targets).double()  # (T, Q, N)
        return ((right[..., None] * belongs).sum(1) / belongs.sum(1)).amin(-1)


class AccuracyAndWorst(EpisodicAccuracy):
    companions = (WorstClass,)


# ## A callback
#
# It is Lightning's. Episodes that a test plays are frozen, so what one looks at is the same in every run.


class Largest(pl.Callback):
    """The largest training loss so far."""

    loss = 0.0

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.loss = max(self.loss, float(outputs["loss"]))


# ## A report
#
# A callback that draws a finished test. `applies` says of which tests; `draw` plays some of its episodes again and
# returns figures by name, which go into the run's folder `pictures/` and to W&B.


class Losses(Report):
    """Picture `losses`: the query loss of the first test episodes, in order."""

    def applies(self, tested):
        return tested.plays_episodes

    def draw(self, tested, log_dir):
        losses = tested.play(tested.episodes(tested.first(20))).loss.cpu()
        figure = new_figure(5, 3, tested.title)
        axes = figure.subplots()
        axes.plot(losses.sort().values)
        tidy(axes, "episode, by its loss", "query loss")
        return {"losses": figure}


# ## All of them at work

data = Glyphs(n_way=5, k_shot=1, n_query=5, meta_batch_size=4, steps_per_epoch=5, val_episodes=10, test_episodes=40)
pl.seed_everything(0)
maml = MAML(Conv4(downsample="stride"), n_way=5, loss_fn=smoothed, metric=AccuracyAndWorst())
largest, report = Largest(), Losses()
trainer = pl.Trainer(
    max_steps=5, inference_mode=False, accelerator="cpu", callbacks=[largest, report], logger=CSVLogger("my_logs")
)
trainer.fit(maml, datamodule=data)
(scores,) = trainer.test(maml, datamodule=data)
print(f"accuracy {100 * scores['test/acc']:.1f} %, of the worst class {100 * scores['test/worst_class']:.1f} %")
print(f"largest loss {largest.loss:.2f}, picture {report.paths[0]}")

# ## On the command line
#
# With these in a file `my_parts.py` of the folder you are in:
#
# | what | option |
# |---|---|
# | the loss | `--model.loss_fn my_parts.smoothed` |
# | the metric | `--model.metric my_parts.AccuracyAndWorst` |
# | the callback, or the report | `--trainer.callbacks+ my_parts.Losses` |
#
# A callback with arguments: `--trainer.callbacks.NAME VALUE` after it. In a package of yours they work in the same way,
# see [A project of your own](../your_project.md).
