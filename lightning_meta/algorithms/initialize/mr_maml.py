"""MR-MAML: pay for what the weights know, so that the network reads the support set instead of memorising the tasks.

Yin, Tucker, Zhou, Levine, Finn: "Meta-Learning without Memorization" (2020), arXiv:1912.03820. Where the input alone
tells the task, MAML can ignore the support set. Here an encoder g, which never adapts, turns x into a code z; only what
follows adapts, at no charge. The information that passes the encoder is charged by a KL divergence to N(0, 1), of the
encoder's weights or of the code (sections 4.1 and 4.2, as MR-MAML (W) and (A)).

Deviations: the encoder's weights are drawn once for each task, and serve its support and query set. As in the authors'
code, kernels are drawn, and biases and the parameters of normalisation are not; the code of the support set is drawn
once for all inner steps. Evaluation takes means; their test draws. The KL of the code is summed over its elements,
theirs is averaged. Their posteriors of weights start at a standard deviation of about 1e-7, ours at `initial_std`.
"""

from collections.abc import Callable
from math import log
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from lightning_meta.algorithms.initialize.maml import MAML, linear
from lightning_meta.backbones import Backbone, support_statistics
from lightning_meta.core import SGD, Batch, InnerOptimizer, Params, TaskOutput, trainable, unroll
from lightning_meta.errors import ConfigError
from lightning_meta.modules.learned_rates import inner_optimizer_for


class MRMAML(MAML):
    """MAML on a code of the input, whose encoder does not adapt and is charged for the information that it passes.

    The learner is encoder (backbone and a linear layer), decoder and head. Its parameters are the means of what is
    drawn in training, so that as it stands it is the network of evaluation.

    Args:
        backbone: first part of the encoder.
        n_way: of `MAML`.
        decoder: network between the code and the head, adapted with the head; its `in_shape` is the size of the code.
            None: the head adapts alone, on a code as large as the backbone's features.
        regularize: `weights`: the encoder's kernels have normal posteriors. `activations`: the code has one, whose mean
            and standard deviation the encoder computes.
        beta: weight of the KL divergence in the training loss.
        initial_std: standard deviation of the posteriors of weights before training.
        inner_lr, inner_optimizer, head_init: of `MAML`.
        **kwargs: of `MAML`.
    """

    def __init__(
        self,
        backbone: Backbone,
        n_way: int | None = None,
        decoder: Backbone | None = None,
        regularize: Literal["weights", "activations"] = "weights",
        beta: float = 1e-4,
        initial_std: float = 1e-2,
        inner_lr: float = 0.4,
        inner_optimizer: Callable[[float], InnerOptimizer] | None = None,
        head_init: Callable[[Tensor], Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(backbone, n_way, inner_lr, **kwargs)
        if min(beta, initial_std) < 0 or initial_std == 0:
            raise ConfigError(f"beta={beta} must not be negative and initial_std={initial_std} must be positive.")
        if decoder is not None and len(decoder.in_shape) != 1:
            raise ConfigError(f"a code is a vector, but the decoder expects {decoder.in_shape}; take an MLP.")
        self.regularize, self.beta = regularize, beta
        extractor = self.backbone
        code_size = decoder.in_shape[0] if decoder else extractor.out_features
        to_code: list[nn.Module] = (
            [nn.Linear(extractor.out_features, code_size)]
            if regularize == "weights"
            else [nn.Linear(extractor.out_features, 2 * code_size), Mean()]
        )
        head = linear(decoder.out_features if decoder else code_size, self.n_way, head_init)
        self.learner = nn.Sequential(extractor, *to_code, *([decoder] if decoder else []), head)
        drawn = self.encoder.named_parameters() if regularize == "weights" else []
        self.kernels = {name: kernel.shape for name, kernel in drawn if kernel.ndim > 1}
        self.log_stds = nn.ParameterList(torch.full(shape, log(initial_std)) for shape in self.kernels.values())
        self.inner_optimizer = inner_optimizer_for(self.theta, inner_lr, inner_optimizer or SGD)

    @property
    def encoder(self) -> nn.Sequential:
        return self.learner[:2]

    @property
    def decoder(self) -> nn.Sequential:
        return self.learner[3 if self.regularize == "activations" else 2 :]

    def theta(self) -> Params:
        return trainable(self.decoder)

    def posteriors(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Mean and standard deviation of each of the encoder's kernels, by name; none when activations are charged."""
        means = dict(self.encoder.named_parameters())
        return {name: (means[name], log_std.exp()) for name, log_std in zip(self.kernels, self.log_stds, strict=True)}

    def adapt(self, support: Batch) -> Params:
        """Fast weights of the decoder, and the drawn weights of the encoder (with the support's statistics)."""
        drawn = {name: self.draw(mean, std) for name, (mean, std) in self.posteriors().items()}
        code, _ = self.encode(drawn, support.x)
        phi = unroll(
            lambda params: self.loss_fn(functional_call(self.decoder, params, (code,)), support.y),
            self.theta(),
            self.inner_optimizer,
            self.steps,
            self.first_order,
        )
        return phi | drawn | support_statistics(self.learner, drawn, support.x)

    def query_loss(self, adapted: Params, query: Batch) -> TaskOutput:
        phi = {name: adapted[name] for name in self.theta()}
        code, kl = self.encode({name: value for name, value in adapted.items() if name not in phi}, query.x)
        preds = functional_call(self.decoder, phi, (code,))
        loss = self.loss_fn(preds, query.y)
        return TaskOutput(loss + self.beta * kl, preds, {"kl": kl}) if self.training else TaskOutput(loss, preds)

    def encode(self, weights: Params, x: Tensor) -> tuple[Tensor, Tensor]:
        """The code of each example under the encoder's `weights`, and the KL divergence that is charged for it."""
        code = functional_call(self.encoder, weights, (x,))
        if self.regularize == "weights":
            return code, torch.stack([divergence(*posterior).sum() for posterior in self.posteriors().values()]).sum()
        mean, spread = code.chunk(2, dim=-1)
        std = F.softplus(spread)
        return self.draw(mean, std), divergence(mean, std).sum(-1).mean()

    def draw(self, mean: Tensor, std: Tensor) -> Tensor:
        """A draw of N(mean, std^2) in training; its mean in evaluation."""
        return mean + std * torch.randn_like(mean) if self.training else mean


class Mean(nn.Module):
    """Of an encoding `(B, 2D)`, means and spreads side by side, the means."""

    def forward(self, encoding: Tensor) -> Tensor:
        return encoding.chunk(2, dim=-1)[0]


def divergence(mean: Tensor, std: Tensor) -> Tensor:
    """KL(N(mean, std^2) || N(0, 1)) of each element."""
    return (mean.square() + std.square() - 1) / 2 - std.log()
