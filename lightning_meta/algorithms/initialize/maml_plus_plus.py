"""MAML++: how to train MAML so that it is stable, by five changes that can be switched one by one.

Antoniou, Edwards, Storkey: "How to train your MAML" (2019), arXiv:1810.09502.

1. Multi-step loss (MSL): the query loss after every inner step counts, and less and less of it for the early steps.
2. Derivative-order annealing (DA): first order in the beginning of training.
3. Per-step batch normalisation (BNWB, BNRS): scale, shift and, if asked for, moving averages of each inner step's own.
4. Learned rates (LSLR): one for each weight tensor and inner step.
5. Cosine annealing of the meta-optimizer's learning rate (CA): an `lr_scheduler`, in the configs.

Deviations: schedules count outer steps, not epochs of 500 of them. Slot k of the normalisation belongs to the weights
after k inner steps, for support and query alike; in the authors' code the query after step k still has slot k - 1. As
in their code, and unlike their text, queries are normalised by their own batch unless `per_step_statistics` is set.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightning_meta.algorithms.initialize.maml import MAML
from lightning_meta.backbones import Backbone
from lightning_meta.backbones.norm import batch_norm_layers, batch_statistics, support_statistics
from lightning_meta.core import SGD, Batch, InnerOptimizer, Params, TaskOutput, unroll
from lightning_meta.core.cuda_graph import Schedule
from lightning_meta.core.inner_loop import detach
from lightning_meta.core.inner_optimizer import module_key
from lightning_meta.modules.learned_rates import LearnedRates, inner_optimizer_for


class Path(NamedTuple):
    """Parameters after each inner step whose query loss counts, and new values of the averages of normalisation."""

    phis: list[Params]
    averages: Params


class MAMLPlusPlus(MAML):
    """MAML with the five changes; with every switch off it is MAML, bit for bit.

    Args:
        backbone, n_way: of `MAML`.
        inner_lr: of the inner loop; with `learned_rates` what all rates start from.
        inner_steps: adaptation steps in training.
        multi_step_until: outer step at which the multi-step loss has faded to that of the last inner step. 0: off.
        first_order_until: outer step from which second derivatives are used. 0: from the start. (Before, some meta-
            parameters have no gradient; on several devices take `strategy: ddp_find_unused_parameters_true`.)
        per_step_norm: learn normalisation's scale and shift for each inner step; they are not adapted then.
        per_step_statistics: evaluate with moving averages for each inner step, gathered from support sets in training.
        learned_rates: learn the step size of each weight tensor in each inner step.
        inner_optimizer: of `MAML`; comes in place of the learned rates.
        **kwargs: of `MAML`.
    """

    def __init__(
        self,
        backbone: Backbone,
        n_way: int | None = None,
        inner_lr: float = 0.1,
        inner_steps: int = 5,
        multi_step_until: int = 7500,
        first_order_until: int = 0,
        per_step_norm: bool = True,
        per_step_statistics: bool = False,
        learned_rates: bool = True,
        inner_optimizer: Callable[[float], InnerOptimizer] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(backbone, n_way, inner_lr, inner_steps, **kwargs)
        self.multi_step_until, self.first_order_until = multi_step_until, first_order_until
        self.norm = PerStepNorm(self.learner, inner_steps, per_step_norm, per_step_statistics)
        moving = without(super().theta(), self.norm.at(0))
        rule = partial(LearnedRates, per="tensor", steps=inner_steps) if learned_rates else SGD
        self.inner_optimizer = inner_optimizer_for(lambda: moving, inner_lr, inner_optimizer or rule)

    def theta(self) -> Params:
        return super().theta() | self.norm.at(0)

    def schedule(self) -> Schedule:
        """Is the derivative of first order; does every inner step's query loss count, and how much an early one.

        From 1/K each, the weights of the first K - 1 steps fall linearly to 0.03/K, then all of it is the last one's.
        """
        step = self.global_step
        multi_step = self.inner_steps > 0 and step < self.multi_step_until
        return {
            "first_order": self.first_order or step < self.first_order_until,
            "multi_step": multi_step,
            "early_weight": max(1 - step / self.multi_step_until, 0.03) / self.inner_steps if multi_step else 0.0,
        }

    def loss_weights(self) -> list[float | Tensor]:
        """Weight of the query loss after each inner step; they sum to 1. A single one when only the last counts."""
        if not self.training or not self.scheduled("multi_step"):
            return [1.0]
        early, others = self.scheduled("early_weight"), self.inner_steps - 1
        return [early] * others + [1 - early * others]

    def adapt(self, support: Batch) -> Path:  # type: ignore[override]
        """The path of the fast weights, as far as its points count in the query loss."""
        path = unroll(
            lambda params: self.loss(params, support),
            self.theta(),
            PerStep(self.inner_optimizer, self.norm),
            self.steps,
            self.scheduled("first_order") if self.training else self.first_order,
            trajectory=True,
        )
        averages = self.norm.follow(self.learner, path, support.x) if self.training else {}
        phis = path[-len(self.loss_weights()) :]
        return Path(
            [phi | support_statistics(self.learner, phi, support.x) for phi in phis],
            {f"norm.{name}": value for name, value in averages.items()},
        )

    def query_loss(self, path: Path, query: Batch) -> TaskOutput:  # type: ignore[override]
        outs = [MAML.query_loss(self, phi, query) for phi in path.phis]
        if len(outs) == 1:
            return outs[0]._replace(buffers=path.averages)
        loss = torch.stack([weight * out.loss for weight, out in zip(self.loss_weights(), outs, strict=True)]).sum()
        return TaskOutput(loss, outs[-1].preds, {"last_step_loss": outs[-1].loss}, path.averages)


class PerStepNorm(nn.Module):
    """What the normalisation layers of a learner use after 0, 1, ..., `steps` inner steps; later, what they used last.

    Args:
        learner: holds the `EpisodicBatchNorm2d` layers.
        steps: number of inner steps in training.
        affine: learn a scale and a shift `(steps + 1, C)` for each layer, in place of the layer's own.
        averages: keep moving averages of mean and variance `(steps + 1, C)` for each layer, and use them in evaluation.
        momentum: weight of a new observation in the moving averages.
    """

    def __init__(self, learner: nn.Module, steps: int, affine: bool, averages: bool, momentum: float = 0.1) -> None:
        super().__init__()
        self.steps, self.averages, self.momentum = steps, averages, momentum
        self.affine = nn.ParameterDict()
        for name, layer in batch_norm_layers(learner).items():
            channels = len(layer.weight)
            if affine and (layer.weight.requires_grad or layer.per_step):  # a frozen layer keeps its own
                self.affine[module_key(f"{name}.weight")] = nn.Parameter(torch.ones(steps + 1, channels))
                self.affine[module_key(f"{name}.bias")] = nn.Parameter(torch.zeros(steps + 1, channels))
                layer.requires_grad_(False)  # has no part in any result
                layer.per_step = True
            if averages:
                layer.protocol = "per-step running"
                self.register_buffer(module_key(f"{name}.mean"), torch.zeros(steps + 1, channels))
                self.register_buffer(module_key(f"{name}.var"), torch.ones(steps + 1, channels))

    def at(self, step: int) -> Params:
        """Values after `step` inner steps, by their names in the learner."""
        slots = dict(self.affine) if self.training else dict(self.affine) | dict(self.named_buffers())
        return {_name(key): values[min(step, self.steps)] for key, values in slots.items()}

    def follow(self, learner: nn.Module, path: list[Params], support_x: Tensor) -> Params:
        """The averages, `(steps + 1, C)` by name, moved towards what a support set shows at each point of a path."""
        if not self.averages:
            return {}
        seen = [batch_statistics(learner, detach(phi), support_x, batch_norm_layers(learner)) for phi in path]
        return {
            key: average.lerp(torch.stack([statistics[_name(key)] for statistics in seen]), self.momentum)
            for key, average in self.named_buffers()
        }


@dataclass(frozen=True)
class PerStep:
    """Steps of an inner optimizer, with the normalisation of each step put in its place."""

    optimizer: InnerOptimizer
    norm: PerStepNorm

    def init(self, params: Params) -> tuple[int, Any]:
        return 0, self.optimizer.init(without(params, self.norm.at(0)))

    def update(
        self, grads: Params, state: tuple[int, Any], params: Params, loss: Tensor
    ) -> tuple[Params, tuple[int, Any]]:
        step, inner = state
        norm = self.norm.at(step + 1)
        moved, inner = self.optimizer.update(without(grads, norm), inner, without(params, norm), loss)
        return moved | norm, (step + 1, inner)


def without(params: Params, names: Params) -> Params:
    return {name: value for name, value in params.items() if name not in names}


def _name(key: str) -> str:
    return key.replace("/", ".")
