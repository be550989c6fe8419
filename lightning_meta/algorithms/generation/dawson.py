"""DAWSON: few-shot generation by MAML on both networks of a GAN.

Liang, Liu, Liu: "DAWSON: A Domain Adaptive Few Shot Generation Framework" (2020), arXiv:2001.00576.

A generator has no loss of its own on query images: a GAN has no likelihood. What it has is the critic. So both are
asked at the weights to which the inner loop has come, the critic to tell query images from false ones, the generator to
please that critic, and the gradients there move what both start from.

Deviations: those of `figr.py`, of which this is the same game with another outer loss; gradients are of first order
(FOMAML). The paper's framework takes any GAN and several meta-learners, and its example is music.
"""

import torch
from torch import Tensor

from lightning_meta.algorithms.generation.figr import FIGR, Dice, Players
from lightning_meta.core import Batch, TaskOutput, detach


class DAWSON(FIGR):
    """FIGR's game, judged on query images.

    Args:
        **kwargs: of `FIGR`.
    """

    def adapt(self, support: Batch) -> Players:
        """Both networks for each class; as functions of what they start from they have the slope 1."""
        return self.trained_on(support, self.theta())

    def query_loss(self, phi: Players, query: Batch) -> TaskOutput:
        out = self.judged(phi, query)
        if not self.training:
            return out
        x_NK = self.of_each_class(query)
        critic, generator = (loss_N.mean() for loss_N in torch.vmap(self.losses)(phi, x_NK, self.dice(x_NK, 1)))
        logs = {"critic": critic.detach(), "generator": generator.detach(), "distance": out.loss.detach()}
        return TaskOutput(critic + generator, out.preds, logs)

    def losses(self, phi: Players, x_K: Tensor, dice: Dice) -> tuple[Tensor, Tensor]:
        """Each player's, the other one being constant."""
        drawn = Dice(*(part[0] for part in dice))
        return (
            self.critic_loss(phi.critic, detach(phi.generator), x_K, drawn),
            self.generator_loss(phi.generator, detach(phi.critic), drawn),
        )
