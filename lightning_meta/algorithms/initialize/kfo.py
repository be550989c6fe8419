"""KFO: learn the initialisation and, outside the network, a Kronecker-factored optimizer that adapts it.

Arnold, Iqbal, Sha: "When MAML Can Adapt Fast and How to Assist When It Cannot" (2021), arXiv:1910.13603.

The gradient of each weight tensor, as a matrix, is multiplied from both sides by learned positive semi-definite
matrices: a linear map of all its elements at the memory of two small factors. Both start as the identity, so training
starts from MAML. The transform is learn2learn's.

Deviations: those of MAML. The meta-optimizer is one linear layer without bias, as in the authors' examples, which,
however, adapt it too within a task; here it is the same in all tasks.
"""

from typing import Any

from lightning_meta.algorithms.initialize.maml import MAML
from lightning_meta.backbones import Backbone
from lightning_meta.interop.learn2learn import TransformedSGD, import_learn2learn


class KFO(MAML):
    """MAML with a Kronecker-factored transform of the gradient of each weight tensor. Needs learn2learn.

    Args:
        backbone, n_way, inner_lr: of `MAML`.
        **kwargs: of `MAML`.
    """

    def __init__(self, backbone: Backbone, n_way: int | None = None, inner_lr: float = 0.4, **kwargs: Any) -> None:
        super().__init__(backbone, n_way, inner_lr, inner_optimizer=None, **kwargs)
        l2l = import_learn2learn()
        transform = l2l.optim.KroneckerTransform(l2l.nn.KroneckerLinear)
        self.inner_optimizer = TransformedSGD(self.theta(), inner_lr, transform)
