"""Pure functions: torch only, no Lightning, no state."""

from typing import Any

from lightning_meta.core.episode import Batch, Episode, TaskOutput, Tasks
from lightning_meta.core.hypergradient import (
    FiniteDifference,
    FirstOrder,
    Hypergradient,
    Implicit,
    Unrolled,
    attach,
    conjugate_gradient,
    implicit_minimiser,
)
from lightning_meta.core.inner_loop import Progress, descend, detach, follow, take_step, unroll
from lightning_meta.core.inner_optimizer import (
    SGD,
    Adam,
    InnerOptimizer,
    Momentum,
    Params,
    PulledBack,
    RMSprop,
    trainable,
)
from lightning_meta.core.statistics import mean_and_ci95, mean_and_ci95_over
from lightning_meta.core.task_map import (
    TaskMode,
    choose_mode,
    count_tasks,
    loop_with_gradients,
    map_tasks,
    with_gradient,
)

__all__ = [
    "SGD",
    "Adam",
    "Batch",
    "Episode",
    "FiniteDifference",
    "FirstOrder",
    "Hypergradient",
    "Implicit",
    "InnerOptimizer",
    "Momentum",
    "Params",
    "Progress",
    "PulledBack",
    "RMSprop",
    "TaskMode",
    "TaskOutput",
    "Tasks",
    "Unrolled",
    "attach",
    "choose_mode",
    "conjugate_gradient",
    "count_tasks",
    "descend",
    "detach",
    "follow",
    "implicit_minimiser",
    "loop_with_gradients",
    "map_tasks",
    "mean_and_ci95",
    "mean_and_ci95_over",
    "take_step",
    "trainable",
    "unroll",
    "with_gradient",
]


def __getattr__(name: str) -> Any:
    """`LearnedRates` has moved; configs of older runs name it here."""
    if name == "LearnedRates":
        from lightning_meta.modules.learned_rates import LearnedRates

        return LearnedRates
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
