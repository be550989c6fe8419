"""A Conditional Neural Process as a few-shot classifier: class means, side by side, are what the decoder reads.

Garnelo, Rosenbaum, Maddison, Ramalho, Saxton, Shanahan, Teh, Rezende, Eslami: "Conditional Neural Processes" (2018),
arXiv:1807.01613, section 4.3.

Deviations: one backbone encodes support and query images, as the paper does not say how its decoder sees an image.
`Conv4` has four convolutions with normalisation, the paper's encoder three. Features have mean 0 and variance 1 over
their entries, without which the decoder learns far more slowly. Training images are not shifted or turned at random.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from lightning_meta.algorithms.processes.cnp import with_columns
from lightning_meta.backbones import MLP, Backbone
from lightning_meta.core import Batch, TaskOutput
from lightning_meta.core.prototypes import class_means
from lightning_meta.modules import EmbeddingModule, FixedWayModule


class CNPClassifier(EmbeddingModule[Tensor], FixedWayModule):
    """Decode logits from the features of a query image and from the means of all classes, in the order of their labels.

    Nothing in the decoder compares features: that a query belongs to the nearest mean has to be learned.

    Args:
        backbone: the encoder.
        n_way: classes per episode. On the command line it follows `data.n_way`.
        hidden: widths of the decoder's hidden layers.
        **kwargs: of `EmbeddingModule`.
    """

    def __init__(
        self, backbone: Backbone, n_way: int | None = None, hidden: Sequence[int] = (256, 256), **kwargs: Any
    ) -> None:
        super().__init__(backbone, **kwargs)
        self.n_way = self.required_way(n_way)
        decoder = MLP((1 + self.n_way) * self.backbone.out_features, hidden)
        self.decoder = nn.Sequential(decoder, nn.Linear(decoder.out_features, self.n_way))

    def adapt_head(self, support: Batch) -> Tensor:
        """The means of the classes, one after another, `(N * D,)`."""
        means_CD, _ = class_means(normalised(support.x), support.y)
        return means_CD[: self.n_way].flatten()

    def head_loss(self, means: Tensor, query: Batch) -> TaskOutput:
        logits_QN = self.decoder(with_columns(normalised(query.x), means))
        return TaskOutput(F.cross_entropy(logits_QN, query.y), logits_QN)


def normalised(features_BD: Tensor) -> Tensor:
    """Layer normalisation without weights of its own: the decoder has some."""
    return F.layer_norm(features_BD, features_BD.shape[1:])
