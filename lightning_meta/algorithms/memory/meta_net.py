"""Meta Networks: networks turn the gradients of support losses into fast weights, which join slow ones in each layer.

Munkhdalai, Yu: "Meta Networks" (2017), arXiv:1703.00837.

Names as in the paper: the representation u has slow weights Q, the base learner b has W; d and m make fast weights Q*
and W* of gradients. A support example's W* is stored in a memory under its representation; a query example reads it by
attention.

Deviations: only fully connected layers have fast weights: the last one of u, and both of b (the paper's are the last
three of each network, convolutions among them). b reads the representation, which the paper names as an alternative to
the image, so there is one convolutional network, not two. The representation loss is the cross-entropy of b's
prediction (the paper also has a contrastive loss). d reads the gradients of the whole support set in the order of the
stream, not those of a random sample of it. Gradients are inputs: nothing is differentiated through them. Only d and m
start from the paper's uniform distribution on [-0.1, 0.1].
"""

from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from lightning_meta.backbones import Backbone
from lightning_meta.backbones.recurrent import LSTMCell
from lightning_meta.compat import tree_map
from lightning_meta.core import Batch, Params, TaskOutput, detach
from lightning_meta.core.preprocessing import log_and_sign
from lightning_meta.core.prototypes import cosine_similarities
from lightning_meta.modules import EmbeddingModule, FixedWayModule, StreamModule

P = 7.0  # gradients from e^-7 to 1 become numbers of the size of 1


class FastWeights(NamedTuple):
    """Q* by name; the memory: W* of every support example by name, `(S, ...)`, and their representations `(S, R)`."""

    representation: Params
    base: Params
    keys: Tensor


class MetaNet(EmbeddingModule[FastWeights], StreamModule, FixedWayModule):
    """Fast weights of the representation for the task, and of the base learner for each query example.

    Shape letters: `R` features of the representation, `H` hidden units of the base learner.

    Args:
        backbone: the convolutional part of u.
        n_way: classes per episode. On the command line it follows `data.n_way`.
        features: R.
        hidden: H.
        meta_hidden: units of the networks d and m, which treat every weight alike.
        **kwargs: of `EmbeddingModule`.
    """

    def __init__(
        self,
        backbone: Backbone,
        n_way: int | None = None,
        features: int = 64,
        hidden: int = 64,
        meta_hidden: int = 20,
        **kwargs: Any,
    ) -> None:
        super().__init__(backbone, **kwargs)
        n_way = self.n_way = self.required_way(n_way)
        self.representation = nn.Linear(self.backbone.out_features, features)
        self.base = nn.Sequential(nn.Linear(features, hidden), nn.Linear(hidden, n_way))
        self.d = GradientLSTM(meta_hidden)
        self.m = GradientMLP(meta_hidden)

    def represent(self, features_BD: Tensor, fast: Params | None = None, slow: Params | None = None) -> Tensor:
        """u after its convolutions, `(B, R)`: with fast weights, layer augmentation.

        Linear, so that keys may point in opposite directions. After a ReLU their cosines would not be negative, and
        of five classes none could have more than e / (e + 4) = 40 % of the attention.
        """
        r_BR = functional_call(self.representation, slow or {}, (features_BD,))
        return r_BR if fast is None else r_BR + F.linear(features_BD, fast["weight"], fast["bias"])

    def logits(self, r_BR: Tensor, fast: Params | None = None, slow: Params | None = None) -> Tensor:
        """b, `(B, N)`; fast weights are those of each example, `(B, ...)`."""
        weights = dict(self.base.named_parameters()) if slow is None else slow
        hidden_BH = F.relu(F.linear(r_BR, weights["0.weight"], weights["0.bias"]))
        if fast is not None:
            hidden_BH = hidden_BH + F.relu(linear_each(r_BR, fast["0.weight"], fast["0.bias"]))
        logits_BN = F.linear(hidden_BH, weights["1.weight"], weights["1.bias"])
        return logits_BN if fast is None else logits_BN + linear_each(hidden_BH, fast["1.weight"], fast["1.bias"])

    def adapt_head(self, support: Batch) -> FastWeights:
        def representation_loss(slow: Params, features_D: Tensor, label: Tensor) -> Tensor:
            return F.cross_entropy(self.logits(self.represent(features_D[None], slow=slow)), label[None])

        def task_loss(slow: Params, r_R: Tensor, label: Tensor) -> Tensor:
            return F.cross_entropy(self.logits(r_R[None], slow=slow), label[None])

        gradients_S = each_gradient(representation_loss, self.representation, support.x, support.y)
        fast_representation = tree_map(self.d, gradients_S)
        r_SR = self.represent(support.x, fast_representation)
        gradients_S = each_gradient(task_loss, self.base, r_SR, support.y)
        return FastWeights(fast_representation, tree_map(self.m, gradients_S), r_SR)

    def head_loss(self, fast: FastWeights, query: Batch) -> TaskOutput:
        r_QR = self.represent(query.x, fast.representation)
        attention_QS = cosine_similarities(r_QR, fast.keys).softmax(1)
        weights = {name: (attention_QS @ w.flatten(1)).unflatten(1, w.shape[1:]) for name, w in fast.base.items()}
        logits_QN = self.logits(r_QR, weights)
        return TaskOutput(F.cross_entropy(logits_QN, query.y), logits_QN)


def each_gradient(loss: Any, layers: nn.Module, inputs_SD: Tensor, labels_S: Tensor) -> Params:
    """Gradient of each example's loss with respect to the parameters of `layers`, by name, `(S, ...)`."""
    slow = dict(layers.named_parameters())
    return detach(vmap(grad(loss), in_dims=(None, 0, 0))(slow, inputs_SD, labels_S))


def linear_each(x_BD: Tensor, weight_BED: Tensor, bias_BE: Tensor) -> Tensor:
    """A linear map of its own for each example, `(B, E)`."""
    return (weight_BED @ x_BD[..., None]).squeeze(-1) + bias_BE


class GradientMLP(nn.Module):
    """m: a fast weight from its gradient, `(...)` to `(...)`."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(2, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 1)
        )
        start_uniformly(self)

    def forward(self, gradient: Tensor) -> Tensor:
        return self.layers(log_and_sign(gradient, P)).squeeze(-1)


class GradientLSTM(nn.Module):
    """d: a fast weight from a sequence of gradients, `(S, ...)` to `(...)`."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.cell, self.output = LSTMCell(2, hidden), nn.Linear(hidden, 1)
        start_uniformly(self)

    def forward(self, gradients_S: Tensor) -> Tensor:
        inputs_S2 = log_and_sign(gradients_S, P)
        state = self.cell.zero_state(inputs_S2[0])
        for t in range(len(inputs_S2)):
            state = self.cell(inputs_S2[t], state)
        return self.output(state[0]).squeeze(-1)


def start_uniformly(network: nn.Module) -> None:
    for parameter in network.parameters():
        nn.init.uniform_(parameter, -0.1, 0.1)
