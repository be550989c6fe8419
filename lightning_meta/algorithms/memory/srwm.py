"""SRWM: a matrix that reads the stream, and says itself what of it is to change: all of it, this saying included.

Irie, Schlag, Csordas, Schmidhuber: "A Modern Self-Referential Weight Matrix That Learns to Modify Itself" (2022),
arXiv:2202.05780.

Where DeltaNet has a slow network and a fast one, this has one matrix: what is meta-learned is where it starts.

Deviations: a query's label is all zeros, the authors' that of class 0, and all queries of an episode share its support
set. No softmax on the inputs of a layer: it is off in the authors' code unless asked for.
"""

from typing import Any

from lightning_meta.backbones import Backbone
from lightning_meta.core.fast_weights import FastWeights, SelfReferentialLayer
from lightning_meta.modules import StreamClassifierModule


class SRWM(StreamClassifierModule):
    """Read the support set by matrices that rewrite themselves; classify each query by one more row.

    Args:
        backbone, n_way, width: of `StreamClassifierModule`.
        layers: of self-referential matrices, each with a perceptron after it.
        heads: of each layer; the width is a multiple of them.
        factor: by which the hidden units of a perceptron are more than the width.
        **kwargs: of `StreamClassifierModule`.
    """

    def __init__(
        self,
        backbone: Backbone,
        n_way: int | None = None,
        width: int = 256,
        layers: int = 2,
        heads: int = 16,
        factor: int = 4,
        **kwargs: Any,
    ) -> None:
        super().__init__(backbone, n_way, width, **kwargs)
        self.reader = FastWeights([SelfReferentialLayer(width, heads) for _ in range(layers)], width, factor)
