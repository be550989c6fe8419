"""The Lightning seam of bilevel problems: an algorithm writes two losses of ONE inner training.

Its parameters are the outer variables. The weights of the inner training are no parameters: they are carried from one
outer update to the next, and a hypergradient rule makes them a function of the outer variables, so that the gradient
of the query loss is the hypergradient.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from pytorch_lightning.utilities import rank_zero_warn
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.func import functional_call, grad
from torch.nn import functional as F

from lightning_meta.backbones import Backbone, as_backbone
from lightning_meta.backbones.norm import norm_protocol
from lightning_meta.compat import tree_map, tree_structure, tree_unflatten
from lightning_meta.core import (
    SGD,
    Batch,
    Hypergradient,
    Implicit,
    InnerOptimizer,
    Params,
    Progress,
    TaskOutput,
    Unrolled,
    choose_mode,
    descend,
    map_tasks,
)
from lightning_meta.core.episode import Step
from lightning_meta.core.hypergradient import losses_of_steps
from lightning_meta.core.initial_weights import initial_weights
from lightning_meta.core.repairs import repaired
from lightning_meta.datamodules.bilevel.trials import BilevelDataModule, Trial
from lightning_meta.errors import ConfigError
from lightning_meta.metrics import EpisodicAccuracy, EpisodicMetric
from lightning_meta.modules.carried import CarriedModule


class BilevelModule(CarriedModule):
    """Learns what an inner training depends on: weights of examples, hyper-parameters, architectures, data.

    A subclass writes `inner_loss` and `query_loss` for one training, pure functions of weights and examples that read
    `self`; what `inner_loss` draws at random, it draws from `self.key` (see `core.dice`). An outer update: T inner
    trainings take S steps, the outer variables descend on the query loss of the weights that they lead to, and the
    trainings take these steps for good, under the variables as they are now.

    Args:
        backbone: of the network that is trained inside; a linear layer to the classes is added.
        n_classes: of the data.
        inner_lr: step size of the inner trainings.
        inner_optimizer: makes their optimizer from the step size. None: `SGD`.
        hypergradient: how the query loss depends on the outer variables through the inner steps: `Unrolled`,
            `FirstOrder`, `FiniteDifference` or `Implicit`.
        metric: of the query set. Default: accuracy.
        **kwargs: of `MetaModule`; `optimizer` is that of the outer variables.
    """

    plays = BilevelDataModule
    key: Tensor  # of the inner step at hand, `()` int64: what is drawn at random in it

    def __init__(
        self,
        backbone: Backbone,
        n_classes: int = 10,
        inner_lr: float = 0.1,
        inner_optimizer: Callable[[float], InnerOptimizer] | None = None,
        hypergradient: Hypergradient = Unrolled(),  # noqa: B008 - never mutated
        metric: EpisodicMetric | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if self.compile_training:
            raise ConfigError(f"{type(self).__name__} cannot be compiled; set compile_training to false.")
        self.measure_by(metric or EpisodicAccuracy())
        extractor = as_backbone(backbone, norm="transductive")
        if "running" in norm_protocol(extractor):
            raise ConfigError(
                f"{type(self).__name__} trains copies of a network that are no modules and keep no running averages; "
                "take norm: transductive (the statistics of each batch), or a network without batch normalisation."
            )
        layers = OrderedDict(backbone=extractor, head=nn.Linear(extractor.out_features, n_classes))
        # Its layers alone are of use: no optimizer, no DDP and no weight decay touches its parameters.
        self.network = nn.Sequential(layers).requires_grad_(False)
        self.n_classes, self.hypergradient = n_classes, hypergradient
        self.inner_optimizer = (inner_optimizer or SGD)(inner_lr)
        if isinstance(self.inner_optimizer, nn.Module):
            raise ConfigError(
                f"{type(self.inner_optimizer).__name__} learns, but what is learned here is what the inner loss reads; "
                "take an inner optimizer without parameters, such as SGD or Adam."
            )
        # Put in the place of this one for each step.
        self.register_buffer("key", torch.zeros((), dtype=torch.long), persistent=False)
        self.trials: Trial | None = None  # of the outer update at hand, whose steps are still to be taken for good
        self.judged: Progress | None = None  # in evaluation, the trainings of all ranks

    # ---- an algorithm writes these two, for ONE inner training --------------------------------------------------

    def inner_loss(self, weights: Params, batch: Batch) -> Tensor:
        """What an inner step descends on (scalar), as a function of the weights of the network."""
        raise NotImplementedError

    def query_loss(self, weights: Params, query: Batch) -> TaskOutput:
        """How good the weights are on held-out examples; the outer variables learn from it."""
        logits_QC = self.logits(weights, query.x)
        return TaskOutput(F.cross_entropy(logits_QC, query.y), logits_QC)

    def watch(self, weights: Params, batch: Batch, right_B: Tensor) -> dict[str, Tensor]:
        """What else is logged of an inner step (scalars), which may look at which labels are right; optional."""
        return {}

    # ---- for the hooks ------------------------------------------------------------------------------------------

    def logits(self, weights: Params, x: Tensor) -> Tensor:
        """Scores `(B, C)` of the network under these weights."""
        return functional_call(self.network, weights, (x,))

    def losses(self, weights: Params, batch: Batch) -> Tensor:
        """Cross-entropies `(B,)` of the network under these weights."""
        return F.cross_entropy(self.logits(weights, batch.x), batch.y, reduction="none")

    # ---- owned here ---------------------------------------------------------------------------------------------

    def outer(self) -> Params:
        """The outer variables, by name."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    def forward(self, weights: Params, batch: Batch) -> Tensor:
        return self.inner_loss(weights, batch)

    def inner_loss_of(self, outer: Params, weights: Params, batch: Step) -> Tensor:
        """`inner_loss` as a function of the outer variables and of the step's key too."""
        return functional_call(self, {**outer, "key": batch.key}, (weights, Batch(batch.x, batch.y)))

    def adapt(self, progress: Progress, support: Step) -> Params:
        """The weights after the steps of a segment, as a function of the outer variables."""
        return self.hypergradient(self.inner_loss_of, self.outer(), progress, support, self.inner_optimizer)

    def train_on(self, progress: Progress, support: Step) -> Progress:
        """Where the same steps lead, as constants."""
        losses = losses_of_steps(self.inner_loss_of, {k: v.detach() for k, v in self.outer().items()}, support)
        return tree_map(Tensor.detach, descend(losses, progress, self.inner_optimizer, first_order=True))

    def begin(self, tasks: Trial) -> Progress:
        weights = initial_weights(self.network, tasks.key.cpu().numpy().view(np.uint64))
        weights = {name: value.to(self.device) for name, value in weights.items()}
        return Progress(weights, self._map(self.inner_optimizer.init, tasks, weights))

    def measure(self, tasks: Trial) -> tuple[dict[str, Tensor], dict[str, Any]]:
        if not self.training:
            return self._judge(tasks)
        self.trials, self.carried = tasks, self.progress(tasks)
        with torch.autocast(self.device.type, enabled=False):  # a finite difference of bfloat16 weights is noise
            weights = self._map(self.adapt, tasks, self.carried, tasks.steps)
        out = self._map(self.query_loss, tasks, weights, tasks.query)
        watched = self._watched_values(tasks, weights) if self._trainer is not None and self._logs_step else {}
        return {**self._values(out, tasks.query), **watched}, {"preds": out.preds}

    def _values(self, out: TaskOutput, query: Batch) -> dict[str, Tensor]:
        return {"loss": out.loss, self.metric.name: self.metric.per_episode(out.preds, query.y), **out.logs}

    def _watched_values(self, tasks: Trial, weights: Params) -> dict[str, Tensor]:
        """What the algorithm watches, and whether a series of `Implicit` converges; of the last inner step."""
        weights = {name: value.detach() for name, value in weights.items()}
        last, right = Step(*(part[:, -1] for part in tasks.steps)), tasks.right[:, -1]
        with torch.no_grad():
            watched = self._map(self.watch, tasks, weights, Batch(last.x, last.y), right)
        rule = self.hypergradient
        if isinstance(rule, Implicit) and rule.solver == "neumann":
            outer = self.outer()

            def length(weights: Params, step: Step, query: Batch) -> Tensor:
                gradient = grad(lambda w: self.query_loss(w, query).loss)(weights)
                return rule.last_term(self.inner_loss_of, outer, weights, step, gradient)

            watched["last_term"] = self._map(length, tasks, weights, last, tasks.query)
            if watched["last_term"].max() > 1:
                rank_zero_warn(
                    f"the Neumann series of the hypergradient diverges: after {rule.terms} terms the last is "
                    f"{watched['last_term'].max():.3g} times as long as the first. Lower hypergradient.rate "
                    f"({rule.rate}), below 2 over the largest eigenvalue of the inner Hessian."
                )
        return watched

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Without outer variables, an optimizer that does nothing but count the steps of the inner training."""
        if self.outer():
            return super().configure_optimizers()
        return torch.optim.SGD([torch.zeros(1)], lr=0.0)

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        if loss.requires_grad:
            super().backward(loss, *args, **kwargs)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """The outer update, and then the inner steps for good: a checkpoint written after it must have them."""
        super().optimizer_step(*args, **kwargs)
        self.settle()

    @torch.no_grad()
    def settle(self) -> None:
        """Take the inner steps of the outer update under the outer variables as they are now."""
        assert self.trials is not None
        data = getattr(self._trainer, "datamodule", None)
        if isinstance(data, BilevelDataModule) and data.starts_anew:
            self.trials = self.carried = None
            return
        with torch.autocast(self.device.type, enabled=False):
            self.carried = self._map(self.train_on, self.trials, self.carried, self.trials.steps)
        self.trials = None

    # ---- evaluation ---------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _judge(self, tasks: Trial) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """New trainings, each by its query set; or all that are carried, each query set by the mean over them."""
        if tasks.support.x.shape[1]:
            with torch.autocast(self.device.type, enabled=False):
                trained = self._map(self.train_on, tasks, self.begin(tasks), tasks.steps)
            out = self._map(self.query_loss, tasks, trained.params, tasks.query)
            return self._values(out, tasks.query), {"preds": out.preds}
        if self.judged is None:
            raise ConfigError(
                f"{type(self).__name__} judges the weights that a training has come to, but there are none: train it, "
                "or give the checkpoint of a training."
            )
        size, params = len(tasks.key), self.judged.params
        of_trainings = []
        for place in range(len(next(iter(params.values())))):
            weights = {name: value[place].expand(size, *value.shape[1:]) for name, value in params.items()}
            out = self._map(self.query_loss, tasks, weights, tasks.query)
            of_trainings.append(self._values(out, tasks.query))
        return tree_map(lambda *values: torch.stack(values).mean(0), *of_trainings), {"preds": out.preds}

    def on_validation_start(self) -> None:
        self._gather_judged()

    def on_test_start(self) -> None:
        self._gather_judged()

    def _gather_judged(self) -> None:
        """Every rank judges the trainings of all: by how many they are mapped must not show."""
        if self.carried is None:
            self.judged = None
            return
        one = torch.zeros(1, dtype=torch.long)
        structure = tree_structure(self.begin(Trial(one, one, Batch(one, one), one, Batch(one, one), one)))
        self.judged = tree_unflatten([leaf.to(self.device) for leaf in self.of_all_ranks()], structure)

    # ---- checks -------------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        super().setup(stage)
        datamodule = getattr(self.trainer, "datamodule", None)
        if isinstance(datamodule, BilevelDataModule):
            self.check_trials(datamodule)
        if not self.outer() and self.trainer.world_size > 1:
            raise ConfigError(
                f"{type(self).__name__} has no outer variables for {self.trainer.world_size} processes to learn "
                "together; set trainer.devices to 1."
            )
        if self.trainer.accumulate_grad_batches > 1:
            raise ConfigError(
                f"accumulate_grad_batches={self.trainer.accumulate_grad_batches} would take the inner steps of the "
                "last batch only; set it to 1 and data.truncation to the inner steps of an outer update."
            )

    def check_trials(self, data: BilevelDataModule) -> None:
        """Raise `ConfigError` when this algorithm cannot play the trials of a datamodule that has been set up."""
        if data.n_classes != self.n_classes:
            raise ConfigError(
                f"the network has n_classes={self.n_classes}, but {data.name} has {data.n_classes}; set "
                f"model.n_classes to {data.n_classes}."
            )
        shape = data.dataset("train").__getitems__([0]).query.x.shape[2:]
        self.network.get_submodule("backbone").check_input_shape(shape, data.name)  # type: ignore[operator]

    def _map(self, fn: Callable[..., Any], tasks: Trial, *parts: Any) -> Any:
        mode = choose_mode(self.task_mode, tasks.query.x)
        with repaired(self):
            return map_tasks(fn, *parts, mode=mode, chunk_size=self.task_chunk_size)
