"""Learning to reinforcement learn: an LSTM that is trained by reinforcement learning, and learns by itself another one.

Wang, Kurth-Nelson, Tirumala, Soyer, Leibo, Munos, Blundell, Kumaran, Botvinick: "Learning to Reinforcement Learn"
(2016), arXiv:1611.05763.

Deviations: gradients flow through the whole trial, and all trials of a meta-batch make one update; the paper's workers
update asynchronously. The network is also told whether a new trajectory begins.
"""

from typing import Any

from torch import Tensor, nn

from lightning_meta.backbones.recurrent import LSTMState, open_gates
from lightning_meta.modules.rollout import Told
from lightning_meta.modules.stream_actor import StreamActorModule
from lightning_meta.worlds import Actions


class LearningToReinforcementLearn(StreamActorModule):
    """Act by an LSTM that is told rewards; its values are part of what it learns from.

    Args:
        seen_size: numbers that the world shows.
        actions: of the world.
        hidden: units of the LSTM.
        keep: added to the bias of its forget gates, as in `GRUCell`.
        **kwargs: of `StreamActorModule`.
    """

    def __init__(self, seen_size: int, actions: Actions, hidden: int = 48, keep: float = 0.0, **kwargs: Any) -> None:
        super().__init__(seen_size, actions, **kwargs)
        self.inputs = nn.Linear(self.told_size, 4 * hidden)
        self.recurrent = nn.Linear(hidden, 4 * hidden)
        open_gates(self.inputs.bias, hidden, keep)
        self.outputs = self.head(hidden)

    def blank(self, like: Tensor) -> LSTMState:
        zeros = like.new_zeros(len(like), self.recurrent.in_features)
        return zeros, zeros

    def read(self, memory: LSTMState, told: Told) -> LSTMState:
        """One step of an LSTM, examples before units: under vmap that of `LSTMCell` would copy the weights."""
        hidden, cell = memory
        gates = self.inputs(told.numbers()) + self.recurrent(hidden)
        taken, kept, new, shown = gates.chunk(4, dim=-1)
        cell = kept.sigmoid() * cell + taken.sigmoid() * new.tanh()
        return shown.sigmoid() * cell.tanh(), cell

    def features(self, memory: LSTMState) -> Tensor:
        return memory[0]
