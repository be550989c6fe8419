"""Meta-SGD: learn the initialisation and, for every single parameter, the rate of its update.

Li, Zhou, Chen, Li: "Meta-SGD: Learning to Learn Quickly for Few-Shot Learning" (2017), arXiv:1707.09835.

Deviations: the rates start at one value, `inner_lr`; the paper draws them from [0.005, 0.1]. They are trained by the
meta-optimizer with the learning rate of everything else.
"""

from functools import partial
from typing import Any

from lightning_meta.algorithms.initialize.maml import MAML
from lightning_meta.backbones import Backbone
from lightning_meta.modules.learned_rates import LearnedRates


class MetaSGD(MAML):
    """MAML with a learned rate for each element of each weight (equation 2: `theta - alpha * gradient`).

    Args:
        backbone, n_way: of `MAML`.
        inner_lr: value of all rates before training.
        **kwargs: of `MAML`.
    """

    def __init__(self, backbone: Backbone, n_way: int | None = None, inner_lr: float = 0.1, **kwargs: Any) -> None:
        super().__init__(backbone, n_way, inner_lr, inner_optimizer=partial(LearnedRates, per="element"), **kwargs)
