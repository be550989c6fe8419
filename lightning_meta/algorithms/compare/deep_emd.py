"""DeepEMD: how much it costs to move the places of one image onto those of another, the earth mover's distance.

Zhang, Cai, Lin, Shen: "DeepEMD: Few-Shot Image Classification with Differentiable Earth Mover's Distance and Structured
Classifiers" (2020), arXiv:2003.06777. Its DeepEMD-FCN, on the places of feature maps.

The cheapest plan moves the weights of one image's places to those of the other; a unit costs 1 less the cosine of the
two places. A place weighs as much as it is like the mean of the other image, so that backgrounds weigh little. A class
is a map too, the mean of its images' or, for several shots, what gradient descent on the support set makes of it (the
paper's structured fully connected layer).

Gradients are those of the optimum: with respect to costs the plan, with respect to weights the prices of the dual
problem. The paper has them from the conditions of optimality of the same linear programme.

Deviations: unless `solver` is `exact`, the programme is regularised by entropy, and its prices are those of the
regularised one. No pre-training. The descent takes the whole support set in each step, and has no momentum.
"""

from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_meta.algorithms.compare.dn4 import descriptors, map_shape
from lightning_meta.backbones import Backbone
from lightning_meta.core import SGD, Batch, Params, TaskOutput, unroll
from lightning_meta.core.prototypes import class_means, exclude_absent
from lightning_meta.errors import ConfigError
from lightning_meta.extras import check
from lightning_meta.modules import EmbeddingModule

LEAST = 1e-3  # that a place weighs, before weights are made to sum to one


class ClassMaps(NamedTuple):
    """Maps of the classes `(C, P, D)`, and which class slots have one `(C,)`."""

    maps: Tensor
    present: Tensor


class Transport(NamedTuple):
    """Plans `(..., M, P)`, and the prices `(..., M)` and `(..., P)` of a unit of weight on both sides."""

    plan: Tensor
    source_prices: Tensor
    target_prices: Tensor


class DeepEMD(EmbeddingModule[ClassMaps]):
    """Logits are the cosines of matched places, weighted by the cheapest plan, at a temperature.

    Shapes: `M` places of a query's map, `P` those of a class's; the rest as in `core/episode.py`. The way is read from
    the episode, so it may differ between training and testing.

    Args:
        backbone: the embedding. Its features are read as maps of the shape `backbone.map_shape` (see `Conv4`), which
            must have more than one place.
        temperature: factor on the logits.
        solver: `sinkhorn`, or `exact` by the package POT, on the CPU and one pair of maps at a time.
        regularisation: weight of the entropy for `sinkhorn`, where costs are from 0 to 2.
        transport_steps: of Sinkhorn's algorithm.
        class_steps, class_lr: of the descent on class maps. With 0 they are means, as the paper has it for one shot;
            for five its code takes 100.
        **kwargs: of `EmbeddingModule`.
    """

    def __init__(
        self,
        backbone: Backbone,
        temperature: float = 12.5,
        solver: Literal["sinkhorn", "exact"] = "sinkhorn",
        regularisation: float = 0.05,
        transport_steps: int = 50,
        class_steps: int = 0,
        class_lr: float = 0.1,
        **kwargs: Any,
    ) -> None:
        super().__init__(backbone, **kwargs)
        self.map_shape = map_shape(self.backbone)
        if self.map_shape[1] * self.map_shape[2] < 2:
            raise ConfigError(
                f"DeepEMD matches the places of maps, but those of {type(self.backbone).__name__} have one place; take "
                "larger maps, such as Conv4 with halvings=3."
            )
        if regularisation < 0.01:
            raise ConfigError(
                f"regularisation={regularisation} must be at least 0.01; for the limit of none: solver=exact."
            )
        if solver == "exact":
            check("POT", "solver=exact")
        self.temperature, self.solver, self.regularisation = temperature, solver, regularisation
        self.transport_steps, self.class_steps, self.inner_optimizer = transport_steps, class_steps, SGD(class_lr)

    def _mode(self, x: Tensor) -> Literal["vmap", "loop"]:
        return "loop" if self.solver == "exact" and self.task_mode == "auto" else super()._mode(x)

    def adapt_head(self, support: Batch) -> ClassMaps:
        means_CX, present_C = class_means(support.x, support.y)
        maps_CPD = descriptors(means_CX, self.map_shape)
        if self.class_steps == 0:
            return ClassMaps(maps_CPD, present_C)
        examples_SMD = descriptors(support.x, self.map_shape).detach()

        def loss(moved: Params) -> Tensor:
            return F.cross_entropy(self.logits(ClassMaps(moved["maps"], present_C), examples_SMD), support.y)

        start = {"maps": maps_CPD.detach()}
        moved = unroll(loss, start, self.inner_optimizer, self.class_steps, first_order=True)
        return ClassMaps(moved["maps"].detach(), present_C)

    def logits(self, classes: ClassMaps, maps_QMD: Tensor) -> Tensor:
        """`(Q, C)`, from maps of queries."""
        cosines_QCMP = torch.einsum("qmd,cpd->qcmp", centred(maps_QMD), centred(classes.maps))
        query_weights_QCM = weights(torch.einsum("qmd,cd->qcm", maps_QMD, classes.maps.mean(1)))
        class_weights_QCP = weights(torch.einsum("cpd,qd->qcp", classes.maps, maps_QMD.mean(1)))
        matched_QC = self.matched(cosines_QCMP, query_weights_QCM, class_weights_QCP)
        return exclude_absent(self.temperature * matched_QC, classes.present)

    def matched(self, cosines: Tensor, source: Tensor, target: Tensor) -> Tensor:
        """Cosines `(..., M, P)` under the cheapest plan between weights `(..., M)` and `(..., P)`: 1 less its cost."""
        with torch.no_grad():
            given = (1 - cosines).double(), source.double(), target.double()
            found = exact(*given) if self.solver == "exact" else self.sinkhorn(*given)
            plan, source_prices, target_prices = (values.to(cosines.dtype) for values in found)
        # The second term is 0. Its gradient is what the optimum owes to the weights.
        prices = ((source - source.detach()) * source_prices).sum(-1)
        prices = prices + ((target - target.detach()) * target_prices).sum(-1)
        return (plan * cosines).sum((-2, -1)) - prices

    def sinkhorn(self, costs: Tensor, source: Tensor, target: Tensor) -> Transport:
        """Of the programme with entropy. The plan has the weights of `source`, and once converged those of `target`."""
        kernel = (-costs / self.regularisation).exp()
        columns = torch.ones_like(target)
        for _ in range(self.transport_steps):
            rows = source / (kernel @ columns[..., None])[..., 0]
            columns = target / (kernel.mT @ rows[..., None])[..., 0]
        rows = source / (kernel @ columns[..., None])[..., 0]
        plan = rows[..., None] * kernel * columns[..., None, :]
        return Transport(plan, self.regularisation * rows.log(), self.regularisation * columns.log())

    def head_loss(self, classes: ClassMaps, query: Batch) -> TaskOutput:
        logits_QC = self.logits(classes, descriptors(query.x, self.map_shape))
        return TaskOutput(F.cross_entropy(logits_QC, query.y), logits_QC)


def centred(maps_BMD: Tensor) -> Tensor:
    """Descriptors less the mean of their channels, as in the authors' code, at length one."""
    return F.normalize(maps_BMD - maps_BMD.mean(-1, keepdim=True), dim=-1)


def weights(likeness: Tensor) -> Tensor:
    """Of the places of a map `(..., M)`, which sum to one."""
    positive = likeness.relu() + LEAST
    return positive / positive.sum(-1, keepdim=True)


def exact(costs: Tensor, source: Tensor, target: Tensor) -> Transport:
    """Of the linear programme itself, by the network simplex of POT."""
    import ot

    pairs = (x.flatten(0, -dims - 1).cpu().numpy() for x, dims in ((source, 1), (target, 1), (costs, 2)))
    plans, source_prices, target_prices = [], [], []
    for a, b, cost in zip(*pairs, strict=True):
        plan, log = ot.emd(a / a.sum(), b / b.sum(), cost, log=True)
        plans.append(plan)
        source_prices.append(log["u"])
        target_prices.append(log["v"])
    solved = ((plans, costs), (source_prices, source), (target_prices, target))
    return Transport(*(torch.from_numpy(np.stack(found)).view(like.shape).to(like) for found, like in solved))
