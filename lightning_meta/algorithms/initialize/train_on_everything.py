"""Train on everything: one network for all tasks so far, which is fine-tuned when a new one comes.

A baseline of Finn, Rajeswaran, Kakade, Levine: "Online Meta-Learning" (2019), arXiv:1902.08438, for tasks that arrive
one after another (`data.arrivals`). Their FTML is MAML on such tasks.

Deviations: a training step learns from the queries of its episodes. Each example of a task is among them at some time.
"""

from typing import Any, ClassVar

from lightning_meta.algorithms.initialize.maml import MAML
from lightning_meta.backbones import Backbone


class TrainOnEverything(MAML):
    """MAML that does not adapt in training: the tasks are learned together, as one.

    Args:
        backbone, n_way, inner_lr: of `MAML`.
        eval_inner_steps: steps of fine-tuning, in validation and test.
        **kwargs: of `MAML`, but `inner_steps`.
    """

    fewest_steps: ClassVar[int] = 0

    def __init__(
        self,
        backbone: Backbone,
        n_way: int | None = None,
        inner_lr: float = 0.01,
        eval_inner_steps: int = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(backbone, n_way, inner_lr, inner_steps=0, eval_inner_steps=eval_inner_steps, **kwargs)
