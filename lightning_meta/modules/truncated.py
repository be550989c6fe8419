"""The Lightning seam of long optimizations: what is optimized lives on from one outer update to the next."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lightning_meta.compat import tree_leaves, tree_map
from lightning_meta.core import Batch, InnerOptimizer, Params, Progress, choose_mode, follow, map_tasks
from lightning_meta.core.hypergradient import BatchLoss
from lightning_meta.core.inner_loop import LossFn
from lightning_meta.datamodules.optimizees.optimizees import OptimizeeDataModule, Segment
from lightning_meta.errors import ConfigError
from lightning_meta.metrics import FinalLoss
from lightning_meta.modules.carried import CarriedModule


class TruncatedModule(CarriedModule):
    """Trains an optimizer with parameters by truncated backpropagation through the optimizations that it performs.

    A training step continues T optimizations by a segment of so many steps; the meta-loss is the mean of the losses
    after each of them. Weights and optimizer states are then carried to the next segment. In evaluation each optimizee
    is optimized from its initial weights to the end.

    Args:
        rule: the optimizer that is learned. Its state must be a pytree of tensors.
        second_order: let meta-gradients flow through the gradients of the optimizees too. By default they are constants
            for the rule (the dashed edges in the paper's figure 2), which saves second derivatives.
        **kwargs: optimizer, lr_scheduler, task_mode and task_chunk_size of `MetaModule`.
    """

    plays = OptimizeeDataModule

    def __init__(self, rule: InnerOptimizer, second_order: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.measure_by(FinalLoss())
        self.rule, self.second_order = rule, second_order
        self.loss_of: BatchLoss | None = None  # the datamodule's

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if self.trainer.precision not in ("32-true", "64-true"):
            raise ConfigError(
                f"precision={self.trainer.precision} would round every step of a long optimization; take 32-true."
            )
        datamodule = getattr(self.trainer, "datamodule", None)
        if isinstance(datamodule, OptimizeeDataModule):
            self.loss_of = datamodule.loss

    def measure(self, tasks: Segment) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """In training, a segment of each optimization; in evaluation, the whole of it."""
        if self.training:
            progress, losses_TS = self._map(self.follow, tasks, self.progress(tasks), tasks.batches)
            self.carried = tree_map(torch.Tensor.detach, progress)
        else:
            losses_TS = self.optimize(tasks, self.rule)
        # The first loss is that of the start, where a segment cannot change it any more.
        return {"loss": losses_TS[:, 1:].mean(1), self.metric.name: losses_TS[:, -1]}, {"losses": losses_TS}

    def follow(self, progress: Progress, batches: Batch) -> tuple[Progress, Tensor]:
        """S steps of one optimization by the rule on S + 1 batches; see `core.follow`."""
        return follow(self._losses(batches), progress, self.rule, first_order=not self.second_order)

    @torch.no_grad()
    def optimize(self, tasks: Segment, optimizer: InnerOptimizer) -> Tensor:
        """The losses `(T, S + 1)` that any optimizer leaves on its way from the initial weights of T optimizees."""

        def run(theta: Params, batches: Batch) -> Tensor:
            return follow(self._losses(batches), Progress(theta, optimizer.init(theta)), optimizer)[1]

        return self._map(run, tasks, tasks.theta, tasks.batches)

    def _losses(self, batches: Batch) -> list[LossFn]:
        """The loss on each of the `S + 1` batches, as a function of the parameters."""
        if self.loss_of is None:
            raise ConfigError(
                f"{type(self).__name__} needs a Trainer with an OptimizeeDataModule, or its loss as loss_of."
            )
        return [partial(self.loss_of, batch=Batch(x, y)) for x, y in zip(*batches, strict=True)]

    def begin(self, tasks: Segment) -> Progress:
        state = self.rule.init({name: value[0] for name, value in tasks.theta.items()})
        if strange := [leaf for leaf in tree_leaves(state) if not isinstance(leaf, Tensor)]:
            raise ConfigError(
                f"the state of {type(self.rule).__name__} has {strange[0]!r}, which is no tensor and cannot be carried "
                "from segment to segment; make it one."
            )
        return Progress(tasks.theta, self._map(self.rule.init, tasks, tasks.theta))

    def _map(self, fn: Callable[..., Any], tasks: Segment, *parts: Any) -> Any:
        mode = choose_mode(self.task_mode, tasks.batches.x[:, 0])
        return map_tasks(fn, *parts, mode=mode, chunk_size=self.task_chunk_size)
