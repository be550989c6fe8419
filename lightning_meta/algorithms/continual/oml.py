"""OML: features on which a linear layer learns one class after another without forgetting the first ones.

Javed, White: "Meta-Learning Representations for Continual Learning" (2019), arXiv:1905.12588.

An episode is a life: its classes come one after another, each example once, and a step on it moves the head alone.
Then all classes of the life are asked for. The features, and where the head starts, are meta-learned.

Deviations: those of MAML. The head is one linear layer; the paper has two. All rows of the head start from the same
learned one, so that no class is told by when it comes; the authors draw the rows of a life anew. They judge a training
life by it and by a random batch of all classes, here by the queries of its own classes.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor
from torch.func import functional_call

from lightning_meta.algorithms.continual.online import Online, one_by_one
from lightning_meta.algorithms.initialize.anil import ANIL
from lightning_meta.algorithms.initialize.maml import linear
from lightning_meta.backbones import Backbone, support_statistics
from lightning_meta.core import SGD, Batch, InnerOptimizer, Params, TaskOutput
from lightning_meta.modules.learned_rates import inner_optimizer_for

PART = 5  # of the classes, the first and the last fifth


class OML(Online, ANIL):
    """The head learns from a stream of classes, in the order of the episode.

    Logs the accuracy of the fifth of the classes that came first, `acc_oldest`, and of the last, `acc_newest`.

    Args:
        backbone: the representation.
        n_way: classes of a life.
        inner_lr: of the head.
        inner_optimizer, head_init: of `MAML`; the latter draws the one row.
        **kwargs: of `MAML`.
    """

    needs = frozenset()  # class after class, not a random order

    def __init__(
        self,
        backbone: Backbone,
        n_way: int | None = None,
        inner_lr: float = 0.03,
        inner_optimizer: Callable[[float], InnerOptimizer] | None = None,
        head_init: Callable[[Tensor], Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(backbone, n_way, inner_lr, **kwargs)
        self.learner[1] = linear(self.backbone.out_features, 1, head_init)
        self.inner_optimizer = inner_optimizer_for(self.theta, inner_lr, inner_optimizer or SGD)

    def theta(self) -> Params:
        """The learned row of the head, once for each class."""
        return {name: p.expand(self.n_way, *p.shape[1:]) for name, p in super().theta().items()}

    def adapt(self, support: Batch) -> Params:
        features = Batch(self.backbone(support.x), support.y)  # they do not change, so they are computed at once
        phi = self.stream([partial(self.head_loss, batch=one) for one in one_by_one(features)])
        return phi | support_statistics(self.learner, {}, support.x)

    def head_loss(self, phi: Params, batch: Batch) -> Tensor:
        """Of features."""
        return self.loss_fn(self.scores(phi, batch.x), batch.y)

    def scores(self, phi: Params, features: Tensor) -> Tensor:
        named = {name.removeprefix("1."): value for name, value in phi.items() if name.startswith("1.")}
        return functional_call(self.head, named, (features,))

    def query_loss(self, phi: Params, query: Batch) -> TaskOutput:
        statistics = {name.removeprefix("0."): value for name, value in phi.items() if name.startswith("0.")}
        preds = self.scores(phi, functional_call(self.backbone, statistics, (query.x,)))
        return TaskOutput(self.loss_fn(preds, query.y), preds, self.by_age(preds, query.y))

    def by_age(self, preds: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Accuracy of the classes that came first and last."""
        part, right = max(self.n_way // PART, 1), (preds.argmax(-1) == y).to(preds.dtype)
        groups = {"acc_oldest": y < part, "acc_newest": y >= self.n_way - part}
        return {name: (right * there).sum() / there.sum().clamp_min(1) for name, there in groups.items()}
