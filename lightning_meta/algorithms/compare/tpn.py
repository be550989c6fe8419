"""TPN: labels spread from the support set to all queries at once, over a graph that is learned to carry them.

Liu, Lee, Park, Kim, Yang, Hwang, Yang: "Learning to Propagate Labels: Transductive Propagation Network for Few-Shot
Learning" (2019), arXiv:1805.10002. The closed form of propagation is that of Zhou et al. (2004, NIPS).

Support and query examples are the nodes. A network gives each of them a length scale, by which its features are
divided before distances are taken. As in the authors' code, an edge stays if one of its ends has the other among its
nearest, nodes are their own neighbours, and in training support examples are to get their labels too.

Deviations: pools are not padded, and maps of one pixel are not pooled. Evaluation's loss is that of the queries.
"""

from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_meta.algorithms.compare.dn4 import map_shape
from lightning_meta.algorithms.compare.relation_net import convolution
from lightning_meta.backbones import Backbone, EpisodicBatchNorm2d
from lightning_meta.backbones.norm import NormProtocol
from lightning_meta.core import Batch, TaskOutput
from lightning_meta.core.prototypes import exclude_absent, squared_distances
from lightning_meta.errors import ConfigError
from lightning_meta.modules import EmbeddingModule

EPS = torch.finfo(torch.float64).eps  # on a length scale


class TPN(EmbeddingModule[Batch]):
    """Logits are what propagation brings to a node: `(I - alpha S)^-1 Y`, with the normalised adjacency S of the graph.

    A prediction depends on which queries are given together. The way is read from the episode, so it may differ between
    training and testing.

    Args:
        backbone: the embedding. Its features are read as maps of the shape `backbone.map_shape` if it has one (see
            `Conv4`), otherwise as maps of one pixel.
        neighbours: edges that each node asks for (the paper's k).
        alpha: how much of its labels a node has from others.
        norm: whose statistics normalise in the network of length scales, see `EpisodicBatchNorm2d`; it sees support and
            query together.
        **kwargs: of `EmbeddingModule`.
    """

    transductive = True

    def __init__(
        self,
        backbone: Backbone,
        neighbours: int = 20,
        alpha: float = 0.99,
        norm: NormProtocol = "transductive",
        **kwargs: Any,
    ) -> None:
        super().__init__(backbone, **kwargs)
        if neighbours < 1 or not 0 <= alpha < 1:
            raise ConfigError(f"neighbours={neighbours} must be at least 1, and alpha={alpha} from 0 to below 1.")
        self.neighbours, self.alpha, self.map_shape = neighbours, alpha, map_shape(self.backbone)
        channels, *size = self.map_shape
        layers: list[nn.Module] = []
        for outputs in (channels, 1):
            pool = [min(2, side) for side in size]
            layers += [convolution(channels, outputs, size), EpisodicBatchNorm2d(outputs, norm), nn.ReLU()]
            layers += [nn.MaxPool2d(tuple(pool))]
            size = [side // step for side, step in zip(size, pool, strict=True)]
        self.length_scale = nn.Sequential(*layers, nn.Flatten(), nn.Linear(prod(size), 8), nn.ReLU(), nn.Linear(8, 1))

    def adapt_head(self, support: Batch) -> Batch:
        """The support set's features and labels: without the queries there is no graph."""
        return support

    def head_loss(self, support: Batch, query: Batch) -> TaskOutput:
        features_BD = torch.cat([support.x, query.x])
        scales_B1 = self.length_scale(features_BD.unflatten(1, self.map_shape))
        graph_BB = nearest_neighbour_graph(features_BD / (scales_B1 + EPS), self.neighbours)
        labels_SC = F.one_hot(support.y, len(support.y))
        seeds_BC = F.pad(labels_SC, (0, 0, 0, len(query.x)))
        labels_BC = propagate(graph_BB, seeds_BC, self.alpha).to(features_BD.dtype)
        logits_BC = exclude_absent(labels_BC, labels_SC.any(0))
        logits_QC = logits_BC[len(support.x) :]
        if self.training:
            return TaskOutput(F.cross_entropy(logits_BC, torch.cat([support.y, query.y])), logits_QC)
        return TaskOutput(F.cross_entropy(logits_QC, query.y), logits_QC)


def nearest_neighbour_graph(nodes_BD: Tensor, neighbours: int) -> Tensor:
    """Weights `(B, B)` of edges, symmetric: Gaussian in the mean squared distance, 0 where neither end is near.

    In float64: a small length scale makes features large, and their distances coarse.
    """
    distances_BB = squared_distances(nodes_BD.double(), nodes_BD.double()).clamp_min(0)
    weights_BB = (distances_BB / (-2 * nodes_BD.shape[1])).exp()
    nearest = weights_BB.topk(min(neighbours, len(nodes_BD))).indices
    asked_BB = torch.zeros_like(weights_BB).scatter(1, nearest, 1.0)
    return weights_BB * torch.maximum(asked_BB, asked_BB.T)


def propagate(graph_BB: Tensor, seeds_BC: Tensor, alpha: float) -> Tensor:
    """Labels `(B, C)` where nothing changes any more: `alpha` of the neighbours' labels, and the seeds."""
    root_B = graph_BB.sum(1).rsqrt()
    adjacency_BB = root_B[:, None] * graph_BB * root_B
    eye_BB = torch.eye(len(graph_BB), dtype=graph_BB.dtype, device=graph_BB.device)
    # solve_ex: solve would wait for the GPU to see whether the matrix is singular.
    return torch.linalg.solve_ex(eye_BB - alpha * adjacency_BB, seeds_BC.to(graph_BB.dtype)).result
