"""MAML: learn an initialisation from which a few gradient steps solve a new task.

Finn, Abbeel, Levine: "Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks" (2017), arXiv:1703.03400.
`first_order=True` is FOMAML (section 5.2 of the paper).

Deviations: the convolutions of `Conv4` carry no bias (normalisation cancels it). Normalisation has a scale and a shift
that are adapted like all weights; in the authors' code it has no scale, and its shift is meta-learned only. On Omniglot
they draw the head's weights from a unit normal (`head_init`); torch's narrower draw is the default here. Everything
else, such as schedules and the number of query examples, is a setting and stands in the configs.
"""

from collections.abc import Callable
from typing import Any, ClassVar, cast

from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from lightning_meta.backbones import Backbone, as_backbone, support_statistics
from lightning_meta.core import SGD, Batch, InnerOptimizer, Params, TaskOutput, trainable, unroll
from lightning_meta.core.episode import EpisodeShape, Split
from lightning_meta.errors import ConfigError
from lightning_meta.modules import FixedWayModule
from lightning_meta.modules.learned_rates import inner_optimizer_for


class MAML(FixedWayModule[Params]):
    """Adapt all weights by gradient descent on the support loss; meta-learn where the descent starts.

    Args:
        backbone: feature extractor; a linear head is added. Any network that is no `Backbone` is `Wrapped`, with the
            protocol `transductive`.
        n_way: outputs of the head: classes per episode, or 1 for scalar regression. On the command line it follows
            `data.n_way`. A backbone that reads tokens has an output for each that may come next instead.
        inner_lr: step size of the inner loop (alpha).
        inner_steps: adaptation steps in training.
        eval_inner_steps: adaptation steps in validation and test. None: as in training.
        first_order: drop second derivatives.
        loss_fn: support and query loss of predictions and targets.
        inner_optimizer: makes the inner optimizer from the step size, such as `LearnedRates`. None: `SGD`.
        freeze: the layers of the backbone up to this one, `layer3` say, keep their weights in the inner loop and in the
            outer update; `backbone`: all of them.
        head_init: draws the weights of the head, in place, with biases of 0, such as `torch.nn.init.xavier_uniform_`
            (Reptile's authors) or `torch.nn.init.normal_` (MAML's, on Omniglot). None: as `nn.Linear`.
        **kwargs: of `EpisodicModule`.
    """

    fewest_steps: ClassVar[int] = 1  # in training

    def __init__(
        self,
        backbone: Backbone,
        n_way: int | None = None,
        inner_lr: float = 0.4,
        inner_steps: int = 1,
        eval_inner_steps: int | None = None,
        first_order: bool = False,
        loss_fn: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
        inner_optimizer: Callable[[float], InnerOptimizer] | None = None,
        head_init: Callable[[Tensor], Any] | None = None,
        freeze: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if min(inner_steps, eval_inner_steps or 0) < 0:
            raise ConfigError(
                f"inner_steps={inner_steps} and eval_inner_steps={eval_inner_steps} must not be negative."
            )
        self.n_way = self.required_way(n_way)
        self.inner_steps, self.first_order, self.loss_fn = inner_steps, first_order, loss_fn
        self.eval_inner_steps = inner_steps if eval_inner_steps is None else eval_inner_steps
        extractor = as_backbone(backbone, norm="transductive")
        if freeze is not None:
            freeze_up_to(extractor, freeze)
        self.learner = nn.Sequential(
            extractor, linear(extractor.out_features, extractor.outputs or self.n_way, head_init)
        )
        self.inner_optimizer = inner_optimizer_for(self.theta, inner_lr, inner_optimizer or SGD)

    @property
    def backbone(self) -> Backbone:
        return cast(Backbone, self.learner[0])

    def theta(self) -> Params:
        """Where the inner loop starts: the parameters of the learner that it moves, by name; none that are frozen."""
        return trainable(self.learner)

    @property
    def steps(self) -> int:
        """Adaptation steps of the current mode, training or evaluation."""
        return self.inner_steps if self.training else self.eval_inner_steps

    def loss(self, params: Params, batch: Batch) -> Tensor:
        """Loss of the learner under `params`; parameters that are not named there keep their meta-learned values."""
        return self.loss_fn(functional_call(self.learner, params, (batch.x,)), batch.y)

    def adapt(self, support: Batch) -> Params:
        """Fast weights phi by parameter name (with the support's statistics where the norm protocol asks for them)."""
        phi = unroll(
            lambda params: self.loss(params, support), self.theta(), self.inner_optimizer, self.steps, self.first_order
        )
        return phi | support_statistics(self.learner, phi, support.x)

    def query_loss(self, phi: Params, query: Batch) -> TaskOutput:
        preds = functional_call(self.learner, phi, (query.x,))
        return TaskOutput(self.loss_fn(preds, query.y), preds)

    def check_task(self, shape: EpisodeShape, split: Split) -> None:
        super().check_task(shape, split)
        if split == "train" and self.inner_steps < self.fewest_steps:
            raise ConfigError(
                f"inner_steps=0 would train {type(self).__name__} without adaptation; take at least 1. (To evaluate "
                "without adaptation: eval_inner_steps=0.)"
            )
        if not self.theta():
            raise ConfigError(
                f"all parameters that the inner loop of {type(self).__name__} could move are frozen; leave "
                "requires_grad of some, or take an algorithm without an inner loop, such as ProtoNet."
            )


def freeze_up_to(backbone: Backbone, name: str) -> None:
    """Freeze the layers of a backbone up to the layer `name`, in the order in which it has them; `backbone`: all."""
    named = [key for key, _ in backbone.inner.named_parameters()]
    of_layer = [place for place, key in enumerate(named) if f"{key}.".startswith(f"{name}.")]
    if name != "backbone" and not of_layer:
        layers = ", ".join(dict.fromkeys(key.partition(".")[0] for key in named))
        raise ConfigError(
            f"freeze={name}: the backbone has no such layer with weights; it has {layers} and those within."
        )
    for key in named[: len(named) if name == "backbone" else of_layer[-1] + 1]:
        backbone.inner.get_parameter(key).requires_grad_(False)


def linear(in_features: int, out_features: int, init: Callable[[Tensor], Any] | None = None) -> nn.Linear:
    """A linear layer, its weights drawn by `init` and its biases 0; None: drawn as torch does."""
    layer = nn.Linear(in_features, out_features)
    if init:
        init(layer.weight)
        nn.init.zeros_(layer.bias)
    return layer


def refuse_to_learn(module: MAML) -> None:
    """Raise `ConfigError` when the inner optimizer learns, for algorithms without a gradient through inner steps."""
    if isinstance(module.inner_optimizer, nn.Module):
        name = type(module).__name__
        raise ConfigError(
            f"{name} takes no gradient through its inner steps, from which {type(module.inner_optimizer).__name__} "
            f"would learn; give {name} an inner optimizer without parameters, such as SGD or Adam, or take MAML."
        )
