"""FIGR: a generative adversarial network, from which a few steps on a few images make one of their class.

Clouatre, Demers: "FIGR: Few-shot Image Generation with Reptile" (2019), arXiv:1901.02199.

A critic and a generator, a Wasserstein GAN with gradient penalty (Gulrajani et al. 2017, arXiv:1704.00028), are trained
on the K images of a class: in each inner step the critic, then the generator, against the critic as it is by then. What
both start from moves towards where both have ended: Reptile on two networks at once. As in `reptile.py`, its step is
the gradient of half the squared distance, so that any meta-optimizer may take it.

A classifier judges the images where no other is at hand: queries are given the class whose generated images have the
nearest mean. The loss of an evaluation is the squared distance of a query to the mean of its own class, per pixel.

Deviations: an episode has several classes, each with networks of its own, that start alike. Networks are small and
without normalisation; the step sizes are chosen here. Evaluation draws its noise once for all, so that results repeat.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad

from lightning_meta.algorithms.generation.neural_statistician import check_images
from lightning_meta.core import Adam, Batch, InnerOptimizer, Params, Progress, TaskOutput, descend, detach, trainable
from lightning_meta.core.image_networks import image_painter, image_reader
from lightning_meta.core.prototypes import squared_distances
from lightning_meta.core.sampling import episode_keys, normal, uniform
from lightning_meta.errors import ConfigError, require_at_least
from lightning_meta.modules import FixedWayModule


class Players(NamedTuple):
    """Weights of both networks by name; of an episode, those of each class `(N, ...)`."""

    critic: Params
    generator: Params


class Dice(NamedTuple):
    """What is drawn for a step, of K images each: noise for the critic's step and the generator's, shares of a mix."""

    z_critic_KZ: Tensor
    z_generator_KZ: Tensor
    share_K: Tensor


class FIGR(FixedWayModule[Players]):
    """Learn where a GAN starts that has only a few images of a class.

    Shapes of one task: `N` classes, `K` images of each, `M` generated, `Z` numbers of noise.

    Args:
        n_way: classes per episode. On the command line it follows `data.n_way`.
        image_size, channels: of the images, whose values are between 0 and 1.
        hidden: channels of the networks' outer convolutions.
        noise_size: Z.
        inner_lr: step size of both networks' inner loops.
        inner_optimizer: makes the inner optimizer from the step size. Default: Adam with the betas (0, 0.9).
        inner_steps: steps of each network on the images of a class.
        eval_inner_steps: the same in validation and test. None: as in training.
        penalty: weight of the gradient penalty.
        samples: M, of which the mean stands for a class.
        **kwargs: of `EpisodicModule`.
    """

    def __init__(
        self,
        n_way: int | None = None,
        image_size: int = 28,
        channels: int = 1,
        hidden: int = 16,
        noise_size: int = 32,
        inner_lr: float = 0.001,
        inner_optimizer: Callable[[float], InnerOptimizer] | None = None,
        inner_steps: int = 10,
        eval_inner_steps: int | None = None,
        penalty: float = 10.0,
        samples: int = 16,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        require_at_least(1, noise_size=noise_size, inner_steps=inner_steps, samples=samples)
        require_at_least(0, eval_inner_steps=eval_inner_steps)
        if penalty < 0:
            raise ConfigError(f"penalty={penalty} must not be negative; 0 leaves the gradient penalty out.")
        self.n_way, self.penalty, self.samples = self.required_way(n_way), penalty, samples
        self.image_shape = (channels, image_size, image_size)
        self.critic = image_reader(image_size, channels, hidden, 1)
        self.generator = nn.Sequential(image_painter(noise_size, image_size, channels, hidden), nn.Sigmoid())
        self.noise_size, self.inner_steps = noise_size, inner_steps
        self.eval_inner_steps = inner_steps if eval_inner_steps is None else eval_inner_steps
        self.inner_optimizer = (inner_optimizer or partial(Adam, betas=(0.0, 0.9)))(inner_lr)
        if isinstance(self.inner_optimizer, nn.Module):
            raise ConfigError(
                f"{type(self).__name__} takes no gradient through its inner steps, from which "
                f"{type(self.inner_optimizer).__name__} would learn; give it an inner optimizer without parameters, "
                "such as SGD or Adam."
            )

    # ---- the two hooks ------------------------------------------------------------------------------------------

    def adapt(self, support: Batch) -> Players:
        """Both networks for each class, constant in what they start from."""
        return self.trained_on(support, detached(self.theta()))

    def query_loss(self, phi: Players, query: Batch) -> TaskOutput:
        out = self.judged(phi, query)
        if not self.training:
            return out
        pairs = [
            (theta[name], value)
            for theta, ended in zip(self.theta(), phi, strict=True)
            for name, value in ended.items()
        ]
        squares = [(start - end).square().sum() / self.n_way for start, end in pairs]
        return TaskOutput(torch.stack(squares).sum() / 2, out.preds, {"distance": out.loss.detach()})

    # ---- the game -----------------------------------------------------------------------------------------------

    def theta(self) -> Players:
        """What both networks start from."""
        return Players(trainable(self.critic), trainable(self.generator))

    def trained(self, theta: Players, x_K: Tensor, dice: Dice) -> Players:
        """Both networks after inner steps on the images of one class; first order in `theta`."""
        critic, generator = (Progress(params, self.inner_optimizer.init(params)) for params in theta)
        for step in range(self.steps):
            drawn = Dice(*(part[step] for part in dice))
            loss = partial(self.critic_loss, generator=detach(generator.params), x_K=x_K, dice=drawn)
            critic = descend([loss], critic, self.inner_optimizer, first_order=True)
            loss = partial(self.generator_loss, critic=detach(critic.params), dice=drawn)
            generator = descend([loss], generator, self.inner_optimizer, first_order=True)
        return Players(critic.params, generator.params)

    def critic_loss(self, critic: Params, generator: Params, x_K: Tensor, dice: Dice) -> Tensor:
        """How much higher false images score than true ones, and how far slopes between them are from 1."""
        false_K = self.paint(generator, dice.z_critic_KZ)
        share_K = dice.share_K[:, None, None, None]
        mixed_K = share_K * x_K + (1 - share_K) * false_K
        slope_K = grad(lambda x: self.score(critic, x).sum())(mixed_K).flatten(1).square().sum(1)
        penalty = (slope_K.clamp_min(1e-12).sqrt() - 1).square().mean()
        return self.score(critic, false_K).mean() - self.score(critic, x_K).mean() + self.penalty * penalty

    def generator_loss(self, generator: Params, critic: Params, dice: Dice) -> Tensor:
        return -self.score(critic, self.paint(generator, dice.z_generator_KZ)).mean()

    def score(self, critic: Params, x_K: Tensor) -> Tensor:
        return functional_call(self.critic, critic, (x_K,))[:, 0]

    def paint(self, generator: Params, z_KZ: Tensor) -> Tensor:
        return functional_call(self.generator, generator, (z_KZ,))

    def trained_on(self, support: Batch, theta: Players) -> Players:
        x_NK = self.of_each_class(support)
        return torch.vmap(partial(self.trained, theta))(x_NK, self.dice(x_NK, self.steps))

    def of_each_class(self, examples: Batch) -> Tensor:
        return examples.x[examples.y.argsort(stable=True)].unflatten(0, (self.n_way, -1))

    def dice(self, x_NK: Tensor, steps: int) -> Dice:
        """What is drawn for each step `(N, steps, K, ...)`: anew in training, else the same for each class."""
        (n, k), z = x_NK.shape[:2], self.noise_size
        shapes = [(n, steps, k, z), (n, steps, k, z), (n, steps, k)]
        if self.training:
            first, second, third = (x_NK.new_zeros(shape) for shape in shapes)
            return Dice(torch.randn_like(first), torch.randn_like(second), torch.rand_like(third))
        keys = episode_keys(0, 0, range(steps))
        drawn = normal(keys, 2 * k * z).reshape(steps, 2, k, z)
        fixed = [drawn[:, 0], drawn[:, 1], uniform(keys, k)]
        parts = zip(fixed, shapes, strict=True)
        return Dice(*(torch.from_numpy(part).to(x_NK).expand(shape) for part, shape in parts))

    @property
    def steps(self) -> int:
        """Inner steps of the current mode, training or evaluation."""
        return self.inner_steps if self.training else self.eval_inner_steps

    # ---- what has been learned ----------------------------------------------------------------------------------

    def generate(self, phi: Players, count: int) -> Tensor:
        """New images `(N, count, channels, size, size)` of each class of one task."""
        z_MZ = next(iter(phi.generator.values())).new_zeros(count, self.noise_size)
        if self.training:
            z_MZ = torch.randn_like(z_MZ)
        else:
            z_MZ = torch.from_numpy(normal(episode_keys(0, 1, range(count)), self.noise_size)).to(z_MZ)
        return torch.vmap(partial(self.paint, z_KZ=z_MZ))(phi.generator)

    def judged(self, phi: Players, query: Batch) -> TaskOutput:
        """Minus the mean squared difference of each query and the mean of each class's generated images."""
        means_N = self.generate(detached(phi), self.samples).mean(1)
        preds_QN = -squared_distances(query.x.flatten(1), means_N.flatten(1)) / means_N[0].numel()
        own_QN = query.y[:, None] == torch.arange(self.n_way, device=query.y.device)
        return TaskOutput(-torch.where(own_QN, preds_QN, 0).sum(1).mean(), preds_QN)

    def check_shots(self, shots: Any) -> None:
        raise ConfigError(f"{type(self).__name__} trains on as many images of each class; leave data.variable out.")

    def check_input_shape(self, shape: Any, source: str) -> None:
        check_images(self, self.image_shape, shape, source)


def detached(phi: Players) -> Players:
    return Players(*map(detach, phi))
