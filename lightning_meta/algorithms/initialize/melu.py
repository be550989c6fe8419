"""MeLU: predict what a new user likes from a few ratings, by a network whose upper layers adapt to the user.

Lee, Im, Jang, Cho, Chung: "MeLU: Meta-Learned User Preference Estimator for Cold-Start Recommendation" (2019), KDD,
arXiv:1908.00413: the vectors of attributes of users and items stay, the decision layers move in the inner loop, and all
are meta-learned.

Deviations: all attributes have vectors in one space, in which they are added up; the paper has one for each attribute,
side by side, which is a case of it. The squared error is a mean over ratings.

With `inner_steps: 0` it is a joint model of all users, which `eval_inner_steps` fine-tunes on a new one.
"""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from lightning_meta.algorithms.initialize.anil import ANIL
from lightning_meta.backbones import MLP, Backbone
from lightning_meta.core import SGD, InnerOptimizer
from lightning_meta.metrics import EpisodicMAE, EpisodicMetric
from lightning_meta.modules.learned_rates import inner_optimizer_for


class MeLU(ANIL):
    """ANIL whose head has hidden layers: the decision layers.

    Args:
        backbone: vectors of the attributes of user and item, such as `MLP` with one layer without activation.
        n_way: must be 1.
        hidden: sizes of the decision layers before the last.
        inner_lr, inner_steps: of the inner loop; 0 steps are a joint model of all users.
        loss_fn: of predicted and true ratings.
        inner_optimizer: see `MAML`.
        metric: None: `EpisodicMAE`.
        **kwargs: of `MAML`.
    """

    fewest_steps: ClassVar[int] = 0

    def __init__(
        self,
        backbone: Backbone,
        n_way: int = 1,
        hidden: Sequence[int] = (64, 64),
        inner_lr: float = 0.05,
        inner_steps: int = 1,
        loss_fn: Callable[[Tensor, Tensor], Tensor] = F.mse_loss,
        inner_optimizer: Callable[[float], InnerOptimizer] | None = None,
        metric: EpisodicMetric | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            backbone, n_way, inner_lr, inner_steps, loss_fn=loss_fn, metric=metric or EpisodicMAE(), **kwargs
        )
        decision = MLP(self.backbone.out_features, hidden)
        self.learner[1] = nn.Sequential(decision, nn.Linear(decision.out_features, self.n_way))
        self.inner_optimizer = inner_optimizer_for(self.theta, inner_lr, inner_optimizer or SGD)
