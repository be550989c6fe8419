"""DeltaNet: a slow network writes to fast weights by the delta rule, and reads what it will need again.

Schlag, Irie, Schmidhuber: "Linear Transformers Are Secretly Fast Weight Programmers" (2021), arXiv:2102.11174. As a
few-shot learner in Irie, Schlag, Csordas, Schmidhuber (2022), arXiv:2202.05780, whose baseline it is.

A linear Transformer adds to what is stored under a key; here a write replaces it, as far as its rate says.

Deviations: positive features are ELU + 1, as in the authors' code for few-shot learning; the paper's own feature map is
deterministic and parameter-free (DPFP). A query's label is all zeros, theirs that of class 0, and all queries of an
episode share its support set.
"""

from typing import Any

from lightning_meta.backbones import Backbone
from lightning_meta.core.fast_weights import DeltaLayer, FastWeights
from lightning_meta.modules import StreamClassifierModule


class DeltaNet(StreamClassifierModule):
    """Read the support set into fast weights, which start at zero; classify each query by one more row.

    Args:
        backbone, n_way, width: of `StreamClassifierModule`.
        layers: of fast weights, each with a perceptron after it.
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
        self.reader = FastWeights([DeltaLayer(width, heads) for _ in range(layers)], width, factor)
