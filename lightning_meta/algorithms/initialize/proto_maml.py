"""Proto-MAML: MAML whose linear head starts in each task from the class prototypes.

Triantafillou, Zhu, Dumoulin, Lamblin, Evci, Xu, Goroshin, Gelada, Swersky, Manzagol, Larochelle: "Meta-Dataset: A
Dataset of Datasets for Learning to Learn from Few Examples" (2020), arXiv:1903.03096.

Before the first step the head has the weights `2 c` and the bias `-|c|^2` of a class with the mean feature c, with
which its logits are the negative squared distances of a Prototypical Network but for a number that all classes share.
Gradients flow through the prototypes into the initialisation. The paper's runs are of first order (`first_order`).

Deviations: those of MAML that concern normalisation and the backbone.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_meta.algorithms.initialize.maml import MAML
from lightning_meta.backbones import Backbone, support_statistics
from lightning_meta.core import SGD, Batch, InnerOptimizer, Params, unroll
from lightning_meta.core.episode import EpisodeShape, Split
from lightning_meta.core.prototypes import class_means, exclude_absent
from lightning_meta.modules.learned_rates import inner_optimizer_for


class ProtoMAML(MAML):
    """Adapt the backbone, and a head that the support set's prototypes make, by gradient descent on the support loss.

    The way is read from the episode, so it may differ between training and testing.

    Args:
        backbone: feature extractor.
        inner_lr: step size of the inner loop (alpha).
        inner_optimizer: of `MAML`. Rates that are learned for each element are the same for all classes.
        **kwargs: of `MAML`; there is no head to draw.
    """

    def __init__(
        self,
        backbone: Backbone,
        inner_lr: float = 0.1,
        inner_optimizer: Callable[[float], InnerOptimizer] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(backbone, n_way=1, inner_lr=inner_lr, **kwargs)
        features = self.backbone.out_features
        self.learner = nn.Sequential(self.backbone, EpisodeHead(features))
        of_a_class = {"1.weight": torch.zeros(features), "1.bias": torch.zeros(())}
        self.inner_optimizer = inner_optimizer_for(lambda: self.theta() | of_a_class, inner_lr, inner_optimizer or SGD)

    def adapt(self, support: Batch) -> Params:
        """Fast weights of backbone and head, and which class slots have examples."""
        means_CD, present_C = class_means(self.backbone(support.x), support.y)
        head = {"1.weight": 2 * means_CD, "1.bias": -means_CD.square().sum(1)}
        present = {"1.present": present_C}
        phi = unroll(
            lambda params: self.loss(params | present, support),
            self.theta() | head,
            self.inner_optimizer,
            self.steps,
            self.first_order,
        )
        phi |= present
        return phi | support_statistics(self.learner, phi, support.x)

    def check_task(self, shape: EpisodeShape, split: Split) -> None:
        """Any number of classes will do."""
        super().check_task(shape._replace(n_way=self.n_way), split)


class EpisodeHead(nn.Module):
    """A linear layer whose weights are those of an episode: given with each call by `functional_call`."""

    weight: Tensor
    bias: Tensor
    present: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(0, features), persistent=False)
        self.register_buffer("bias", torch.zeros(0), persistent=False)
        self.register_buffer("present", torch.zeros(0, dtype=torch.bool), persistent=False)

    def forward(self, features_BD: Tensor) -> Tensor:
        return exclude_absent(F.linear(features_BD, self.weight, self.bias), self.present)
