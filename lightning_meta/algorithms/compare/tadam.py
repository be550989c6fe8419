"""TADAM: a Prototypical Network whose features depend on the task as a whole.

Oreshkin, Rodriguez, Lacoste: "TADAM: Task dependent adaptive metric for improved few-shot learning" (2018),
arXiv:1805.10123.

The mean of a task's prototypes says what the task is about. From it small networks make a scale and a shift for each
channel after each normalisation layer, with which support and query are embedded anew. Learned strengths, which start
at 0 and are kept small by a penalty, say how much a layer is conditioned. Distances have a learned scale.

Deviations: no auxiliary classification of all training classes. The scale of distances is learned; the paper sets it by
validation.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from lightning_meta.backbones import Backbone, as_backbone, support_statistics
from lightning_meta.backbones.norm import batch_norm_layers
from lightning_meta.core import Batch, Params, TaskOutput
from lightning_meta.core.inner_optimizer import module_key
from lightning_meta.core.prototypes import class_means, exclude_absent, squared_distances
from lightning_meta.errors import ConfigError
from lightning_meta.modules import EpisodicModule


class Conditioned(NamedTuple):
    """What a task changes in the backbone: scales and shifts of normalisation, and statistics for the query's.

    With them the class means `(C, D)` of its features, and which class slots have one `(C,)`.
    """

    params: Params
    means: Tensor
    present: Tensor


class TADAM(EpisodicModule[Conditioned]):
    """Logits are negative squared distances to class means, times a learned scale, of features made for the task.

    The way is read from the episode, so it may differ between training and testing.

    Args:
        backbone: the embedding; its `EpisodicBatchNorm2d` layers are conditioned.
        scale: of the distances before training (alpha).
        depth: layers of the networks that make scales and shifts.
        strength_penalty: in training, weight of the squared strengths.
        **kwargs: of `EpisodicModule`.
    """

    def __init__(
        self,
        backbone: Backbone,
        scale: float = 1.0,
        depth: int = 3,
        strength_penalty: float = 0.01,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if scale <= 0 or depth < 1:
            raise ConfigError(f"scale={scale} must be positive, and depth={depth} at least 1.")
        self.backbone, self.strength_penalty = as_backbone(backbone, norm="inductive"), strength_penalty
        layers = batch_norm_layers(self.backbone)
        if not layers:
            raise ConfigError(
                f"TADAM conditions normalisation layers (EpisodicBatchNorm2d), of which {type(backbone).__name__} has "
                "none; take Conv4 or ResNet12, or an algorithm that conditions nothing, such as ProtoNet."
            )
        self.log_scale = nn.Parameter(torch.tensor(scale).log())
        self.conditions = nn.ModuleDict()
        for name, layer in layers.items():
            self.conditions[module_key(name)] = Condition(self.backbone.out_features, len(layer.weight), depth)

    def conditioned(self, task_D: Tensor) -> Params:
        """Scale and shift of each normalisation layer for a task: its own, then those of the task."""
        params: Params = {}
        for name, layer in batch_norm_layers(self.backbone).items():
            scale, shift = self.conditions[module_key(name)](task_D)
            params |= {f"{name}.weight": layer.weight * scale, f"{name}.bias": layer.bias * scale + shift}
        return params

    def adapt(self, support: Batch) -> Conditioned:
        means_CD, present_C = class_means(self.backbone(support.x), support.y)
        params = self.conditioned(means_CD.sum(0) / present_C.sum())
        params |= support_statistics(self.backbone, params, support.x)
        features_SD = functional_call(self.backbone, params, (support.x,))
        return Conditioned(params, *class_means(features_SD, support.y))

    def query_loss(self, task: Conditioned, query: Batch) -> TaskOutput:
        """In training with the penalty, in evaluation the plain loss."""
        features_QD = functional_call(self.backbone, task.params, (query.x,))
        logits_QC = -self.log_scale.exp() * squared_distances(features_QD, task.means)
        logits_QC = exclude_absent(logits_QC, task.present)
        loss = F.cross_entropy(logits_QC, query.y)
        if self.training:
            named = self.conditions.named_parameters()
            strengths = torch.cat([value for name, value in named if name.endswith("strengths")])
            loss = loss + self.strength_penalty * strengths.square().sum()
        return TaskOutput(loss, logits_QC)


class Condition(nn.Module):
    """Scale, about 1, and shift, about 0, of a layer's channels for a task `(D,)`."""

    def __init__(self, features: int, channels: int, depth: int) -> None:
        super().__init__()
        self.scale, self.shift = (residual_network(features, channels, depth) for _ in range(2))
        self.strengths = nn.Parameter(torch.zeros(2))

    def forward(self, task_D: Tensor) -> tuple[Tensor, Tensor]:
        return 1 + self.strengths[0] * self.scale(task_D), self.strengths[1] * self.shift(task_D)


def residual_network(inputs: int, width: int, depth: int) -> nn.Sequential:
    """Linear layers with rectifiers between them; all but the first add to what they are given."""
    return nn.Sequential(nn.Linear(inputs, width), *(Residual(width) for _ in range(depth - 1)))


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.linear(x.relu())
