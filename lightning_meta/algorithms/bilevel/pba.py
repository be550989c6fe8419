"""Population-based augmentation: trainings with augmentations of their own, of which the worst copy the best.

Ho, Liang, Stoica, Abbeel, Chen: "Population Based Augmentation: Efficient Learning of Augmentation Policy Schedules"
(2019), arXiv:1905.05393.

A meta-batch is the population. Every so many outer updates the worst quarter take over weights and augmentation of the
best quarter (exploit), and change the augmentation a little (explore). Over time, it is a schedule.

Deviations: the augmentation is one strength for each operation of `core.augment`, all of which each image gets; in the
paper, one or two operations are picked for an image, and have probabilities. The population that was trained is what is
judged; there, the schedule of the best is used to train a network anew.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_meta.backbones import Backbone
from lightning_meta.compat import tree_map
from lightning_meta.core import Batch, FirstOrder, Hypergradient, Params, Progress
from lightning_meta.core.augment import LARGEST, augment_within
from lightning_meta.core.sampling import Keys, subkeys, uniform
from lightning_meta.datamodules.bilevel.trials import BilevelDataModule, Trial
from lightning_meta.errors import ConfigError, require_at_least
from lightning_meta.modules.bilevel import BilevelModule

MAGNITUDES = "magnitudes"  # ride with the weights of a training: parts of the largest (K,)
FIRST, EXPLORED = 2**33, 2**34  # the indices of keys: of the first magnitudes, and of their changes


class PBA(BilevelModule):
    """A population of trainings, whose augmentations evolve.

    Args:
        backbone, n_classes: of `BilevelModule`.
        interval: outer updates between one exploit and the next.
        resample: how likely a magnitude is drawn anew when it is explored; otherwise it moves by up to 0.3.
        hypergradient: of `BilevelModule`; there are no outer variables that would have one.
        **kwargs: of `BilevelModule`.
    """

    def __init__(
        self,
        backbone: Backbone,
        n_classes: int = 10,
        interval: int = 5,
        resample: float = 0.2,
        hypergradient: Hypergradient = FirstOrder(),  # noqa: B008 - never mutated
        **kwargs: Any,
    ) -> None:
        super().__init__(backbone, n_classes, hypergradient=hypergradient, **kwargs)
        require_at_least(1, interval=interval)
        if not 0 <= resample <= 1:
            raise ConfigError(f"resample={resample} must be a probability, between 0 and 1.")
        self.interval, self.resample = interval, resample
        self.losses_T: Tensor | None = None  # on the held-out images, of the outer update at hand

    @property
    def magnitudes(self) -> Tensor:
        """How strong an operation may be in the mean over the population, `(K,)`."""
        population = self.judged or self.carried
        assert isinstance(population, Progress)
        parts_K = population.params[MAGNITUDES].mean(0)
        return parts_K * parts_K.new_tensor(list(LARGEST.values()))

    def begin(self, tasks: Trial) -> Progress:
        """New weights, and random magnitudes for each training."""
        keys = subkeys(tasks.key.cpu().numpy().view(np.uint64), [FIRST])[:, 0]
        weights = super().begin(tasks).params
        first = torch.from_numpy(uniform(keys, len(LARGEST))).to(next(iter(weights.values())))
        weights = weights | {MAGNITUDES: first}
        return Progress(weights, self._map(self.inner_optimizer.init, tasks, weights))

    def logits(self, weights: Params, x: Tensor) -> Tensor:
        return super().logits({name: value for name, value in weights.items() if name != MAGNITUDES}, x)

    def inner_loss(self, weights: Params, batch: Batch) -> Tensor:
        strengths_K = weights[MAGNITUDES].detach() * batch.x.new_tensor(list(LARGEST.values()))
        x = augment_within(batch.x, dict(zip(LARGEST, strengths_K, strict=True)), self.key)
        return self.losses(weights, Batch(x, batch.y)).mean()

    def measure(self, tasks: Trial) -> tuple[dict[str, Tensor], dict[str, Any]]:
        values, others = super().measure(tasks)
        if self.training:
            self.losses_T = values["loss"].detach()
        return values, others

    def settle(self) -> None:
        """The steps for good; and where it is time, the worst copy the best."""
        tasks = self.trials
        super().settle()
        assert tasks is not None and self.losses_T is not None
        segment = int(tasks.start[0]) // tasks.support.x.shape[1]
        if isinstance(self.carried, Progress) and (segment + 1) % self.interval == 0:
            source_T = winners(self.losses_T)
            progress: Progress = tree_map(lambda leaf: leaf[source_T], self.carried)
            copied_T1 = (source_T != torch.arange(len(source_T), device=source_T.device))[:, None]
            magnitudes_TK = progress.params[MAGNITUDES]
            explored_TK = self.explored(magnitudes_TK, tasks.dice[:, -1].cpu().numpy().view(np.uint64))
            progress.params[MAGNITUDES] = torch.where(copied_T1, explored_TK, magnitudes_TK)
            self.carried = progress

    def explored(self, magnitudes_TK: Tensor, keys: Keys) -> Tensor:
        """Each magnitude drawn anew, or moved to either side."""
        u_KTK = torch.from_numpy(uniform(subkeys(keys, [EXPLORED, EXPLORED + 1]), len(LARGEST))).to(magnitudes_TK)
        anew_TK, how_TK = u_KTK[:, 0], u_KTK[:, 1]
        moved_TK = (magnitudes_TK + 0.3 * (2 * how_TK - 1)).clamp(0, 1)
        return torch.where(anew_TK < self.resample, how_TK, moved_TK)

    def watch(self, weights: Params, batch: Batch, right_B: Tensor) -> dict[str, Tensor]:
        """In the mean over the population."""
        return {f"magnitude_{name}": m * LARGEST[name] for name, m in zip(LARGEST, weights[MAGNITUDES], strict=True)}

    def check_trials(self, data: BilevelDataModule) -> None:
        super().check_trials(data)
        if data.meta_batch_size < 4 or data.starts_anew:
            raise ConfigError(
                f"a quarter of the population copies another, and goes on: meta_batch_size={data.meta_batch_size} must "
                "be at least 4, and unroll_steps more than truncation."
            )


def winners(losses_T: Tensor) -> Tensor:
    """Whose place each of T trainings takes `(T,)`: the worst that of the best, ... , for a quarter; others, theirs."""
    order, source = losses_T.argsort(stable=True), torch.arange(len(losses_T), device=losses_T.device)
    quarter = len(losses_T) // 4
    source[order.flip(0)[:quarter]] = order[:quarter]
    return source
