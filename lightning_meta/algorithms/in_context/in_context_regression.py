"""In-context regression: a Transformer trained to fit functions of a class learns to fit any of them as it reads.

Garg, Tsipras, Liang, Valiant: "What Can Transformers Learn In-Context? A Case Study of Simple Function Classes" (2022),
arXiv:2208.01066.

Deviations: those of `PFN`, whose network it is. The paper's reads points and values in turn, each what stands before
it; here the examples are a set, so their order cannot matter. It trains on every number of examples at once, for each
task on one that is drawn.
"""

from typing import Any

from lightning_meta.algorithms.in_context.pfn import PFN
from lightning_meta.algorithms.processes.cnp import dense
from lightning_meta.core import Batch, TaskOutput
from lightning_meta.metrics import EpisodicMSE


class InContextRegression(PFN):
    """A `PFN` that predicts values `(Q, Y)`, trained by their squared error.

    Args:
        x_size, y_size, width: of `ConditionalNeuralProcess`.
        **kwargs: of `PFN`, but `min_std`.
    """

    def __init__(self, x_size: int = 5, y_size: int = 1, width: int = 64, **kwargs: Any) -> None:
        super().__init__(x_size=x_size, y_size=y_size, width=width, **kwargs)
        self.measure_by(EpisodicMSE())
        self.decoder[-1] = dense(width, y_size)

    def query_loss(self, adapted: Any, query: Batch) -> TaskOutput:
        preds_QY = self.decoded(*self.decoder_inputs(adapted, query.x))
        return TaskOutput((preds_QY - query.y).square().mean((-2, -1)), preds_QY)
