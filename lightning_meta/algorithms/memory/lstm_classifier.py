"""An LSTM that reads labelled examples: learning to learn with nothing but a state, to compare fast weights with.

Irie, Schlag, Csordas, Schmidhuber: "A Modern Self-Referential Weight Matrix That Learns to Modify Itself" (2022),
arXiv:2202.05780, whose baseline it is; for functions it is Hochreiter et al.'s of 2001.

Deviations: a linear map makes the rows that are read, as for the fast weights beside it. A query's label is all zeros,
the authors' that of class 0, and all queries of an episode share its support set.
"""

from typing import Any

from torch import Tensor, nn

from lightning_meta.backbones import Backbone
from lightning_meta.backbones.recurrent import LSTMCell, LSTMState
from lightning_meta.modules import StreamClassifierModule


class LSTMClassifier(StreamClassifierModule):
    """Read the support set into the state of an LSTM; classify each query by one more row.

    Args:
        backbone, n_way: of `StreamClassifierModule`.
        width: of the rows that are read, and units of the LSTM.
        **kwargs: of `StreamClassifierModule`.
    """

    def __init__(self, backbone: Backbone, n_way: int | None = None, width: int = 256, **kwargs: Any) -> None:
        super().__init__(backbone, n_way, width, **kwargs)
        self.reader = LSTMReader(width, width)


class LSTMReader(nn.Module):
    """A cell that is a reader: what a row writes is the next state."""

    def __init__(self, in_features: int, hidden: int) -> None:
        super().__init__()
        self.cell = LSTMCell(in_features, hidden)

    def start(self, like: Tensor) -> LSTMState:
        return self.cell.zero_state(like[:1])

    def forward(self, x_BD: Tensor, memory: LSTMState) -> tuple[Tensor, LSTMState]:
        h_BH, c_BH = (leaf.expand(len(x_BD), -1) for leaf in memory)
        state = self.cell(x_BD, (h_BH, c_BH))
        return state[0], state

    def written(self, memory: LSTMState, write: LSTMState) -> LSTMState:
        return write
