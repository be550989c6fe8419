"""RENet: images are compared by how their parts relate, within each of them and between the two.

Kang, Kwon, Min, Cho: "Relational Embedding for Few-Shot Classification" (2021), arXiv:2108.09666.

Within an image, each place's descriptor is multiplied, channel by channel, with those around it; convolutions over this
window of products find patterns, which are added to the descriptor. Between a query and a support image the cosines of
all pairs of places are refined by convolutions in four dimensions, and their softmax is an attention over the places of
both. Training also names the examples among all classes of meta-training.

Deviations: a query's and a support image's cosines are refined in both orders, as in the authors' code, but the two are
normalised together. What is named are the examples of the episode; the authors draw a batch of its own for it too.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from lightning_meta.algorithms.compare.can import by_label
from lightning_meta.algorithms.compare.dn4 import map_shape
from lightning_meta.backbones import Backbone, EpisodicBatchNorm2d, support_statistics
from lightning_meta.backbones.norm import NormProtocol
from lightning_meta.core import Batch, Params, TaskOutput
from lightning_meta.errors import ConfigError
from lightning_meta.modules import NamingModule

WINDOW = 5  # places on a side that are related to the one in its middle: what two unpadded convolutions reduce to one


class Related(NamedTuple):
    """Relational maps of the support set `(S, D, H, W)` and its labels `(S,)`.

    With them statistics for the query's normalisation: within images, between them, and of what is compared.
    """

    maps: Tensor
    labels: Tensor
    within: Params
    reduced: Params
    between: Params


class RENet(NamingModule[Related]):
    """Logits are cosines, over a temperature, of the means of two maps, each under attention to the other.

    Shapes: `M` places of a query's map, `P` those of a support image's; the rest as in `core/episode.py`. The way is
    read from the episode, so it may differ between training and testing.

    Args:
        backbone: the embedding. Its features are read as maps of the shape `backbone.map_shape` (see `Conv4`), which
            must have more than one place.
        n_classes: of `NamingModule`.
        hidden: channels of the convolutions within images, and of what is compared between them.
        attention_temperature: of the attention. The authors have 2 and 5.
        temperature: of the logits.
        episode_weight: in training, of the loss of the episode against that of naming (the paper's lambda).
        norm: whose statistics normalise in the relational parts, see `EpisodicBatchNorm2d`. For `inductive` they are
            those of the support set and of its pairs.
        **kwargs: of `NamingModule`.
    """

    def __init__(
        self,
        backbone: Backbone,
        n_classes: int | None = None,
        hidden: int = 64,
        attention_temperature: float = 5.0,
        temperature: float = 0.2,
        episode_weight: float = 0.5,
        norm: NormProtocol = "transductive",
        **kwargs: Any,
    ) -> None:
        super().__init__(backbone, n_classes, **kwargs)
        self.map_shape = map_shape(self.backbone)
        channels, height, width = self.map_shape
        if height * width < 2:
            raise ConfigError(
                f"RENet relates the places of maps, but those of {type(self.backbone).__name__} have one place; take "
                "larger maps, such as Conv4 with halvings=3."
            )
        if min(attention_temperature, temperature) <= 0:
            raise ConfigError(f"{attention_temperature=} and {temperature=} must be positive.")
        self.attention_temperature, self.temperature = attention_temperature, temperature
        self.episode_weight = episode_weight
        self.within = SelfCorrelation(channels, hidden, norm)
        self.reduce = nn.Sequential(
            nn.Conv2d(channels, hidden, 1, bias=False), EpisodicBatchNorm2d(hidden, norm), nn.ReLU()
        )
        self.between = nn.Sequential(Separable4d(1, 16, norm), nn.ReLU(), Separable4d(16, 1, norm))

    @property
    def classified_features(self) -> int:
        return map_shape(self.backbone)[0]

    def correlations(self, query: Tensor, support: Tensor) -> Tensor:
        """Cosines of all places of reduced maps, as `between` takes them: `(Q * S, 1, H, W, H, W)`, and reversed."""
        query, support = F.normalize(query, dim=1), F.normalize(support, dim=1)
        pairs = torch.einsum("sdij,qdkl->qsijkl", support, query).flatten(0, 1)[:, None]
        return torch.cat([pairs, pairs.permute(0, 1, 4, 5, 2, 3)])

    def adapt_head(self, support: Batch) -> Related:
        maps = support.x.unflatten(1, self.map_shape)
        within = support_statistics(self.within, {}, maps)
        maps = self.within(maps)
        reduced = support_statistics(self.reduce, {}, centred(maps))
        small = self.reduce(centred(maps))
        between = support_statistics(self.between, {}, self.correlations(small, small))
        return Related(maps, support.y, within, reduced, between)

    def head_loss(self, support: Related, query: Batch) -> TaskOutput:
        """In training with the loss of naming, and predictions among all classes; in evaluation the plain loss."""
        maps = functional_call(self.within, support.within, (query.x.unflatten(1, self.map_shape),))
        small = functional_call(self.reduce, support.reduced, (centred(maps),))
        both = self.correlations(small, self.reduce(centred(support.maps)))
        there, back = functional_call(self.between, support.between, (both,)).chunk(2)
        refined = (there + back.permute(0, 1, 4, 5, 2, 3)).view(len(maps), len(support.maps), *there.shape[2:])
        refined_QSPM = refined.flatten(4).flatten(2, 3)
        attended_QSD = torch.einsum("qsp,sdp->qsd", self.attention(refined_QSPM), centred(support.maps).flatten(2))
        queries_QSD = torch.einsum("qsm,qdm->qsd", self.attention(refined_QSPM.mT), centred(maps).flatten(2))
        # Of several shots the means, before the cosine.
        same_SS = (support.labels[:, None] == support.labels).to(maps.dtype)
        mean_SS = same_SS / same_SS.sum(1, keepdim=True)
        attended_QSD, queries_QSD = mean_SS @ attended_QSD, mean_SS @ queries_QSD
        scores_QS = F.cosine_similarity(attended_QSD, queries_QSD, dim=2) / self.temperature
        labels = self.trained_classifier.out_features if self.training else len(support.labels)
        logits_QC = by_label(scores_QS, support.labels, labels)
        loss = F.cross_entropy(logits_QC, query.y)
        if not self.training:
            return TaskOutput(loss, logits_QC)
        named_BC = self.class_logits(torch.cat([support.maps, maps]).mean((2, 3)))
        naming = F.cross_entropy(named_BC, torch.cat([support.labels, query.y]))
        return TaskOutput(naming + self.episode_weight * loss, logits_QC, {"naming": naming.detach()})

    def attention(self, refined: Tensor) -> Tensor:
        """Over the places P of one map, from refined cosines `(..., P, M)`: the mean of what each of the other says."""
        variance, mean = torch.var_mean(refined, -2, keepdim=True)
        standard = (refined - mean) / (variance + 1e-5).sqrt()
        return (standard / self.attention_temperature).softmax(-2).mean(-1)


class SelfCorrelation(nn.Module):
    """Of maps `(B, D, H, W)`: themselves and the patterns of their places' products with those around, rectified."""

    def __init__(self, channels: int, hidden: int, norm: NormProtocol) -> None:
        super().__init__()
        self.patterns = nn.Sequential(
            *convolution(channels, hidden, (1, 1, 1), norm), nn.ReLU(),
            *convolution(hidden, hidden, (1, 3, 3), norm, padded=False), nn.ReLU(),
            *convolution(hidden, hidden, (1, 3, 3), norm, padded=False), nn.ReLU(),
            *convolution(hidden, channels, (1, 1, 1), norm),
        )  # fmt: skip

    def forward(self, maps: Tensor) -> Tensor:
        unit = F.normalize(maps.relu(), dim=1)
        around = F.unfold(unit, WINDOW, padding=WINDOW // 2).view(*unit.shape[:2], WINDOW**2, -1)
        products = (around * unit.flatten(2)[:, :, None]).mT.unflatten(3, (WINDOW, WINDOW))
        return (maps + self.patterns(products).view_as(maps)).relu()


class Separable4d(nn.Module):
    """A 3x3x3x3 convolution of `(B, C, H, W, H, W)` as one over the first two axes of places and one over the last two.

    Then the channels are mixed.
    """

    def __init__(self, channels: int, outputs: int, norm: NormProtocol) -> None:
        super().__init__()
        self.first = nn.Sequential(*convolution(channels, channels, (3, 3, 1), norm), nn.ReLU())
        self.last = nn.Sequential(*convolution(channels, channels, (1, 3, 3), norm))
        self.mix = nn.Sequential(*convolution(channels, outputs, (1, 1, 1), norm))

    def forward(self, x: Tensor) -> Tensor:
        first, last = x.shape[2:4], x.shape[4:]
        x = self.first(x.flatten(4)).unflatten(4, last)
        x = self.last(x.flatten(2, 3))
        return self.mix(x).unflatten(2, first)


def convolution(
    inputs: int, outputs: int, kernel: tuple[int, int, int], norm: NormProtocol, padded: bool = True
) -> list[nn.Module]:
    """And the normalisation of its output."""
    first, second, third = (side // 2 if padded else 0 for side in kernel)
    return [
        nn.Conv3d(inputs, outputs, kernel, padding=(first, second, third), bias=False),
        EpisodicBatchNorm2d(outputs, norm),
    ]


def centred(maps: Tensor) -> Tensor:
    """Less the mean of the channels at each place."""
    return maps - maps.mean(1, keepdim=True)
