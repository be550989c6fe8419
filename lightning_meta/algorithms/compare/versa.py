"""VERSA: a network reads the mean feature of a class and says what the weights of a classifier for it may be.

Gordon, Bronskill, Bauer, Nowozin, Turner: "Meta-Learning Probabilistic Inference for Prediction" (2019),
arXiv:1805.09921.

Weights have normal distributions, each class by itself. Training minimises the negative logarithm of the mean
probability of the right class over draws, not a bound on it. As in the authors' code, what is drawn for each query are
the logits, whose distribution follows from that of the weights.

Deviations: evaluation takes the means of the weights; the paper draws there too. No dropout in the backbone. Whose
statistics normalise is a setting; the authors' code takes those of the images at hand, in testing too (`norm:
transductive`), where it has as many queries of a class as shots.
"""

from math import log
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_meta.algorithms.compare.r2d2 import with_ones
from lightning_meta.backbones import Backbone
from lightning_meta.core import Batch, TaskOutput
from lightning_meta.core.gaussian import Gaussian
from lightning_meta.core.prototypes import class_means, exclude_absent
from lightning_meta.errors import ConfigError
from lightning_meta.modules import EmbeddingModule


class ClassWeights(NamedTuple):
    """Distribution of each class's weights `(C, D + 1)`, the last a bias; which class slots have one `(C,)`."""

    distribution: Gaussian
    present: Tensor


class VERSA(EmbeddingModule[ClassWeights]):
    """A linear classifier with weights from what an amortised posterior says of each class.

    Predictions are log-probabilities. The way is read from the episode, so it may differ between training and testing.

    Args:
        backbone: the embedding.
        draws: of the logits, in training (the paper's L).
        **kwargs: of `EmbeddingModule`.
    """

    def __init__(self, backbone: Backbone, draws: int = 10, **kwargs: Any) -> None:
        super().__init__(backbone, **kwargs)
        if draws < 1:
            raise ConfigError(f"draws={draws} must be at least 1.")
        self.draws, size = draws, self.backbone.out_features
        self.weight_mean, self.weight_log_var = perceptron(size, size), perceptron(size, size)
        self.bias_mean, self.bias_log_var = perceptron(size, 1), perceptron(size, 1)

    def adapt_head(self, support: Batch) -> ClassWeights:
        means_CD, present_C = class_means(support.x, support.y)
        mean = torch.cat([self.weight_mean(means_CD), self.bias_mean(means_CD)], dim=1)
        log_var = torch.cat([self.weight_log_var(means_CD), self.bias_log_var(means_CD)], dim=1)
        return ClassWeights(Gaussian(mean, (log_var / 2).exp()), present_C)

    def head_loss(self, classes: ClassWeights, query: Batch) -> TaskOutput:
        x_QD, (mean_CD, std_CD) = with_ones(query.x), classes.distribution
        logits_LQC = (x_QD @ mean_CD.T)[None]
        if self.training:
            # Logits of normal weights are normal, and those of different classes are independent.
            std_QC = (x_QD.square() @ std_CD.square().T).sqrt()
            logits_LQC = logits_LQC + std_QC * torch.randn_like(logits_LQC.expand(self.draws, -1, -1))
        # Not -inf yet: for a class without examples the mean over draws would have the gradient nan.
        lowest = torch.finfo(logits_LQC.dtype).min
        log_probs_LQC = torch.where(classes.present, logits_LQC, lowest).log_softmax(-1)
        log_probs_QC = log_probs_LQC.logsumexp(0) - log(len(log_probs_LQC))
        log_probs_QC = exclude_absent(log_probs_QC, classes.present)
        return TaskOutput(F.nll_loss(log_probs_QC, query.y), log_probs_QC)


def perceptron(inputs: int, outputs: int) -> nn.Sequential:
    """Three layers, the first two as wide as the input."""
    hidden = (layer for _ in range(2) for layer in (nn.Linear(inputs, inputs), nn.ELU()))
    return nn.Sequential(*hidden, nn.Linear(inputs, outputs))
