"""RL^2: a recurrent network whose state is what it has learned of the task at hand.

Duan, Schulman, Chen, Bartlett, Sutskever, Abbeel: "RL^2: Fast Reinforcement Learning via Slow Reinforcement Learning"
(2016), arXiv:1611.02779.

Deviations: trained by the advantage actor-critic on whole trials, with a bonus for entropy, which may fade, and a
discount, which may grow; the paper uses TRPO with generalised advantages. No weight normalisation.
"""

from typing import Any

from torch import Tensor

from lightning_meta.backbones.recurrent import GRUCell
from lightning_meta.modules.rollout import Told
from lightning_meta.modules.stream_actor import StreamActorModule
from lightning_meta.worlds import Actions


class RL2(StreamActorModule):
    """Act by a GRU that is told rewards; train it on what trials earn in all.

    Args:
        seen_size: numbers that the world shows.
        actions: of the world.
        hidden: units of the GRU.
        keep: of `GRUCell`.
        **kwargs: of `StreamActorModule`.
    """

    def __init__(self, seen_size: int, actions: Actions, hidden: int = 32, keep: float = 0.0, **kwargs: Any) -> None:
        super().__init__(seen_size, actions, **kwargs)
        self.cell = GRUCell(self.told_size, hidden, keep)
        self.outputs = self.head(hidden)

    def blank(self, like: Tensor) -> Tensor:
        return self.cell.zero_state(like)

    def read(self, memory: Tensor, told: Told) -> Tensor:
        return self.cell(told.numbers(), memory)
