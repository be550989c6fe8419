"""Pure functions: torch only, no Lightning, no state."""

from lightning_meta.core.episode import Batch, Episode, TaskOutput
from lightning_meta.core.hypergradient import conjugate_gradient, implicit_minimiser
from lightning_meta.core.inner_loop import Progress, detach, follow, take_step, unroll
from lightning_meta.core.inner_optimizer import SGD, Adam, InnerOptimizer, LearnedSGD, Momentum, Params, RMSprop
from lightning_meta.core.statistics import mean_and_ci95
from lightning_meta.core.task_map import TaskMode, choose_mode, map_tasks

__all__ = [
    "SGD",
    "Adam",
    "Batch",
    "Episode",
    "InnerOptimizer",
    "LearnedSGD",
    "Momentum",
    "Params",
    "Progress",
    "RMSprop",
    "TaskMode",
    "TaskOutput",
    "choose_mode",
    "conjugate_gradient",
    "detach",
    "follow",
    "implicit_minimiser",
    "map_tasks",
    "mean_and_ci95",
    "take_step",
    "unroll",
]
