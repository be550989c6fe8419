"""Meta-Curvature: learn the initialisation and a curvature that transforms every inner gradient.

Park, Oliva: "Meta-Curvature" (2019), arXiv:1902.03356.

The curvature of a convolution is a product of three matrices, over its filters, its input channels and the places of
its kernel; that of a linear layer is a product of two. All start as the identity, so training starts from MAML. The
transform is learn2learn's.

Deviations: those of MAML. Vectors (biases, scale and shift of normalisation) have a factor for each element.
"""

from typing import Any

from lightning_meta.algorithms.initialize.maml import MAML
from lightning_meta.backbones import Backbone
from lightning_meta.interop.learn2learn import TransformedSGD, import_learn2learn


class MetaCurvature(MAML):
    """MAML with a learned curvature for each weight tensor: `phi - inner_lr * curvature(gradient)`. Needs learn2learn.

    Args:
        backbone, n_way, inner_lr: of `MAML`.
        **kwargs: of `MAML`.
    """

    def __init__(self, backbone: Backbone, n_way: int | None = None, inner_lr: float = 0.4, **kwargs: Any) -> None:
        super().__init__(backbone, n_way, inner_lr, inner_optimizer=None, **kwargs)
        transform = import_learn2learn().optim.MetaCurvatureTransform
        self.inner_optimizer = TransformedSGD(self.theta(), inner_lr, transform)
