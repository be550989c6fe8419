"""FEAT: class prototypes look at one another, by self-attention, before queries are compared with them.

Ye, Hu, Zhan, Sha: "Few-Shot Learning via Embedding Adaptation with Set-to-Set Functions" (2020),
arXiv:1812.03664. The set-to-set function is their Transformer: one head, a residual connection, layer normalisation.

In training a second loss keeps the examples of a class together: support and query examples of each class are adapted
as a set, and all examples are to be nearest to the mean of their own class's.

Deviations: dropout follows the attention's output only; the authors' code has it on its weights too (0.1). One learning
rate for all; theirs, on a backbone that is pre-trained, is ten times larger for the Transformer.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_meta.backbones import Backbone
from lightning_meta.core import Batch, TaskOutput
from lightning_meta.core.prototypes import class_means, exclude_absent, squared_distances
from lightning_meta.errors import ConfigError
from lightning_meta.modules import EmbeddingModule


class AdaptedPrototypes(NamedTuple):
    """Adapted class means `(C, D)`, which class slots have one `(C,)`, and the support set's features and labels."""

    means: Tensor
    present: Tensor
    support: Batch


class FEAT(EmbeddingModule[AdaptedPrototypes]):
    """Logits are negative squared distances to adapted prototypes, divided by a temperature.

    The way is read from the episode, so it may differ between training and testing.

    Args:
        backbone: the embedding.
        temperature: of the logits.
        contrastive_weight: in training, of the second loss (the paper's lambda).
        contrastive_temperature: of its logits.
        dropout: probability of dropping a feature of the attention's output.
        **kwargs: of `EmbeddingModule`.

    The defaults are those of the authors' code for one shot and a Conv4.
    """

    def __init__(
        self,
        backbone: Backbone,
        temperature: float = 64.0,
        contrastive_weight: float = 1.0,
        contrastive_temperature: float = 16.0,
        dropout: float = 0.5,
        **kwargs: Any,
    ) -> None:
        super().__init__(backbone, **kwargs)
        if min(temperature, contrastive_temperature) <= 0:
            raise ConfigError(f"{temperature=} and {contrastive_temperature=} must be positive.")
        self.temperature, self.contrastive_temperature = temperature, contrastive_temperature
        self.contrastive_weight = contrastive_weight
        self.set_to_set = SetToSet(self.backbone.out_features, dropout)

    def adapt_head(self, support: Batch) -> AdaptedPrototypes:
        means_CD, present_C = class_means(support.x, support.y)
        return AdaptedPrototypes(self.set_to_set(means_CD, present_C.expand(len(means_CD), -1)), present_C, support)

    def head_loss(self, prototypes: AdaptedPrototypes, query: Batch) -> TaskOutput:
        """In training with the second loss, in evaluation the plain loss."""
        logits_QC = exclude_absent(-squared_distances(query.x, prototypes.means) / self.temperature, prototypes.present)
        loss = F.cross_entropy(logits_QC, query.y)
        if not self.training:
            return TaskOutput(loss, logits_QC)
        contrastive = self.contrastive_loss(
            Batch(*(torch.cat(both) for both in zip(prototypes.support, query, strict=True)))
        )
        return TaskOutput(loss + self.contrastive_weight * contrastive, logits_QC, {"contrastive": contrastive})

    def contrastive_loss(self, examples: Batch) -> Tensor:
        """Of the features and labels of all examples of an episode."""
        same_BB = examples.y[:, None] == examples.y
        centres_CD, present_C = class_means(self.set_to_set(examples.x, same_BB), examples.y)
        distances_BC = squared_distances(examples.x, centres_CD)
        return F.cross_entropy(exclude_absent(-distances_BC / self.contrastive_temperature, present_C), examples.y)


class SetToSet(nn.Module):
    """Self-attention over a set, added to its members, and layer normalisation. Blind to their order."""

    def __init__(self, features: int, dropout: float) -> None:
        super().__init__()
        self.queries, self.keys, self.values = (nn.Linear(features, features, bias=False) for _ in range(3))
        self.out, self.norm = nn.Linear(features, features), nn.LayerNorm(features)
        self.dropout = nn.Dropout(dropout)
        for layer in (self.queries, self.keys, self.values, self.out):
            nn.init.xavier_normal_(layer.weight)

    def forward(self, x_BD: Tensor, seen_BB: Tensor) -> Tensor:
        """The set `(B, D)`; which members (columns) each one sees `(B, B)`."""
        scores_BB = self.queries(x_BD) @ self.keys(x_BD).T / x_BD.shape[1] ** 0.5
        read_BD = torch.where(seen_BB, scores_BB, -torch.inf).softmax(1) @ self.values(x_BD)
        return self.norm(x_BD + self.dropout(self.out(read_BD)))
