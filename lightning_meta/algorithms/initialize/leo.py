"""LEO: adapt a classifier by gradient descent on a low-dimensional code from which its weights are decoded.

Rusu, Rao, Sygnowski, Vinyals, Pascanu, Osindero, Hadsell: "Meta-Learning with Latent Embedding Optimization" (2019),
arXiv:1807.05960.

As in the authors' code (github.com/deepmind/leo), features have length 1, and the inner loss is the sum over classes of
their examples' mean losses; the learned rates depend on both. (There, each of the K examples of a class has a copy of
the class's code, which gets 1 / K of the gradient of the sum over all examples.) KL, stop-gradient and orthogonality
penalty are means over their entries, so that their weights do not depend on sizes. Evaluation uses means, not samples.

Deviations: the backbone is trained with everything else; the paper's features are pre-trained and fixed (for that, pass
a pre-trained backbone and `freeze`). One code is drawn for a class, not K copies. The networks give the logarithm of a
standard deviation, and that of a class weight is relative to a Glorot-initialised classifier's; the authors' give u, of
which they take exp(u) - 1, plus that classifier's for a weight, at least 1e-10. A step on the codes may carry that
exponential beyond all numbers: where a loss or gradient is not a number, the authors leave out the meta-batch; ours
is at most e^10. The weight penalty (lambda_1) is the meta-optimizer's `weight_decay`.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from lightning_meta.backbones import Backbone
from lightning_meta.core import Batch, TaskOutput, unroll
from lightning_meta.core.gaussian import Gaussian, kl_divergence
from lightning_meta.core.prototypes import class_means
from lightning_meta.errors import ConfigError
from lightning_meta.modules import EmbeddingModule, FixedWayModule
from lightning_meta.modules.learned_rates import LearnedRates

MOST_LOG_STD = 10.0  # of a class weight, relative to a Glorot-initialised classifier's: noise and nothing else


class Classifier(NamedTuple):
    """Class weights `(N, D)`, and penalties by name."""

    weights: Tensor
    penalties: dict[str, Tensor]


class LEO(EmbeddingModule[Classifier], FixedWayModule):
    """Encode the support set into a code per class, adapt the codes, decode class weights, fine-tune those.

    Shapes: `S` support size, `L` latent dimension; the rest as in `core/episode.py`.

    Args:
        backbone: feature extractor.
        n_way: classes per episode. On the command line it follows `data.n_way`.
        latent_dim: size of a class's code, to be smaller than the backbone's `out_features`.
        inner_steps: adaptation steps on the codes in training.
        eval_inner_steps: the same in validation and test. None: as in training.
        inner_lr: starting value of their learned rates (alpha), one for each latent dimension.
        finetune_steps: steps on the decoded class weights that follow.
        finetune_lr: starting value of their learned rates, one for each feature.
        kl_weight: of the codes' divergence from a standard normal distribution (beta).
        stop_gradient_weight: of the distance from the first codes to the adapted ones (gamma).
        orthogonality_weight: of the correlations between the decoder's rows (lambda_2).
        dropout: probability of dropping a feature, drawn anew wherever features are used.
        **kwargs: of `EmbeddingModule`.

    The default steps, rates and weights are those of the authors' code, and `trainer.gradient_clip_val` acts as there:
    see `configure_gradient_clipping`.
    """

    def __init__(
        self,
        backbone: Backbone,
        n_way: int | None = None,
        latent_dim: int = 64,
        inner_steps: int = 5,
        eval_inner_steps: int | None = None,
        inner_lr: float = 1.0,
        finetune_steps: int = 5,
        finetune_lr: float = 0.001,
        kl_weight: float = 1e-3,
        stop_gradient_weight: float = 1e-9,
        orthogonality_weight: float = 1e-3,
        dropout: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(backbone, **kwargs)
        if min(inner_steps, eval_inner_steps or 0, finetune_steps) < 0:
            raise ConfigError(
                f"inner_steps={inner_steps}, eval_inner_steps={eval_inner_steps} and finetune_steps={finetune_steps} "
                "must not be negative."
            )
        self.n_way = self.required_way(n_way)
        self.inner_steps, self.finetune_steps, self.dropout = inner_steps, finetune_steps, dropout
        self.eval_inner_steps = inner_steps if eval_inner_steps is None else eval_inner_steps
        self.penalty_weights = {
            "kl": kl_weight,
            "stop_gradient": stop_gradient_weight,
            "orthogonality": orthogonality_weight,
        }
        features = self.backbone.out_features
        self.encoder = _linear(features, latent_dim)
        self.relation = nn.Sequential(
            _linear(2 * latent_dim, 2 * latent_dim),
            nn.ReLU(),
            _linear(2 * latent_dim, 2 * latent_dim),
            nn.ReLU(),
            _linear(2 * latent_dim, 2 * latent_dim),
        )
        self.decoder = _linear(latent_dim, 2 * features)
        self.glorot_std = (2 / (features + self.n_way)) ** 0.5
        # Labels are arbitrary, so classes share their rates.
        self.latent_optimizer = LearnedRates(inner_lr, per="element").build({"z": torch.empty(latent_dim)})
        self.finetune_optimizer = LearnedRates(finetune_lr, per="element").build({"w": torch.empty(features)})

    def encode(self, features_SD: Tensor, labels_S: Tensor) -> Gaussian:
        """Distribution of each class's code, `(N, L)`: the mean relation of its examples to all examples."""
        codes_SL = self.encoder(features_SD)
        size = len(codes_SL)
        pairs = torch.cat([codes_SL[:, None].expand(-1, size, -1), codes_SL[None].expand(size, -1, -1)], dim=-1)
        relations, _ = class_means(self.relation(pairs).mean(1), labels_S)
        mean, log_std = relations[: self.n_way].chunk(2, dim=-1)
        return Gaussian(mean, log_std.exp())

    def decode(self, z_NL: Tensor) -> Tensor:
        """Class weights `(N, D)`, drawn from the distribution that the codes stand for."""
        mean, log_std = self.decoder(z_NL).chunk(2, dim=-1)
        return self.sample(Gaussian(mean, self.glorot_std * log_std.clamp(max=MOST_LOG_STD).exp()))

    def sample(self, gaussian: Gaussian) -> Tensor:
        if not self.training:
            return gaussian.mean
        return gaussian.mean + gaussian.std * torch.randn_like(gaussian.mean)

    def prepare(self, features_BD: Tensor) -> Tensor:
        """Scale features to length 1, then in training drop some."""
        return F.dropout(F.normalize(features_BD, dim=1), self.dropout, self.training)

    def adapt_head(self, support: Batch) -> Classifier:
        def loss(weights_ND: Tensor) -> Tensor:
            return self.n_way * F.cross_entropy(self.prepare(support.x) @ weights_ND.T, support.y)

        codes = self.encode(self.prepare(support.x), support.y)
        first_NL = self.sample(codes)
        steps = self.inner_steps if self.training else self.eval_inner_steps
        z_NL = unroll(lambda params: loss(self.decode(params["z"])), {"z": first_NL}, self.latent_optimizer, steps)["z"]
        weights_ND = unroll(
            lambda params: loss(params["w"]), {"w": self.decode(z_NL)}, self.finetune_optimizer, self.finetune_steps
        )["w"]
        standard_normal = Gaussian(torch.zeros_like(codes.mean), torch.ones_like(codes.std))
        penalties = {
            "kl": kl_divergence(codes, standard_normal).mean(),
            "stop_gradient": (z_NL.detach() - first_NL).square().mean(),
            "orthogonality": correlation_penalty(self.decoder.weight.T),
        }
        return Classifier(weights_ND, penalties)

    def head_loss(self, classifier: Classifier, query: Batch) -> TaskOutput:
        """In training with the penalties, in evaluation the plain loss."""
        logits_QN = self.prepare(query.x) @ classifier.weights.T
        loss = F.cross_entropy(logits_QN, query.y)
        if self.training:
            for name, penalty in classifier.penalties.items():
                loss = loss + self.penalty_weights[name] * penalty
        return TaskOutput(loss, logits_QN, classifier.penalties)

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip each number of a gradient, then each tensor's norm. With an algorithm named, as the Trainer does."""
        if gradient_clip_algorithm is not None or not gradient_clip_val:
            return super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)
        for parameter in (p for group in optimizer.param_groups for p in group["params"] if p.grad is not None):
            nn.utils.clip_grad_value_(parameter, gradient_clip_val)
            nn.utils.clip_grad_norm_(parameter, gradient_clip_val)


def correlation_penalty(rows: Tensor) -> Tensor:
    """Mean squared difference of the cosines between all `rows` to the identity: zero when they are orthogonal."""
    directions = F.normalize(rows, dim=1)
    return (directions @ directions.T - torch.eye(len(rows), dtype=rows.dtype, device=rows.device)).square().mean()


def _linear(inputs: int, outputs: int) -> nn.Linear:
    """A linear map without bias, Glorot-initialised."""
    layer = nn.Linear(inputs, outputs, bias=False)
    nn.init.xavier_uniform_(layer.weight)
    return layer
