"""AutoAugment: a policy of augmentation, learned from how well networks do that were trained with samples of it.

Cubuk, Zoph, Mane, Vasudevan, Le: "AutoAugment: Learning Augmentation Policies from Data" (2019), arXiv:1805.09501.

T trainings draw a policy each; the probabilities of what was drawn rise with the accuracy on held-out images
(REINFORCE), as compared to that of the other trainings.

Deviations: a policy is one level of strength for each operation of `core.augment`, drawn independently; in the paper it
is a sequence of operations, probabilities and magnitudes, written by a recurrent network. The update is plain REINFORCE
with the mean of the other trainings as baseline; there, proximal policy optimization. Test trainings draw their policy
from what was learned; there, they join the best five.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_meta.backbones import Backbone
from lightning_meta.core import Batch, FirstOrder, Hypergradient, Params, Progress
from lightning_meta.core.augment import LARGEST, augment_within
from lightning_meta.core.sampling import subkeys, uniform
from lightning_meta.datamodules.bilevel.trials import BilevelDataModule, Trial
from lightning_meta.errors import ConfigError
from lightning_meta.modules.bilevel import BilevelModule
from lightning_meta.ranks import gather

POLICY = "policy"  # rides with the weights of a training: one-hot levels (K, L)
DRAWN = 2**33  # the index of the keys that policies are drawn from


class AutoAugment(BilevelModule):
    """A distribution over levels of strength for each operation, learned by REINFORCE.

    Args:
        backbone, n_classes: of `BilevelModule`.
        levels: of strength, at even distances from none to the largest (`core.augment.LARGEST`).
        hypergradient: of `BilevelModule`; there is nothing to differentiate in the inner steps.
        **kwargs: of `BilevelModule`.
    """

    def __init__(
        self,
        backbone: Backbone,
        n_classes: int = 10,
        levels: int = 5,
        hypergradient: Hypergradient = FirstOrder(),  # noqa: B008 - never mutated
        **kwargs: Any,
    ) -> None:
        super().__init__(backbone, n_classes, hypergradient=hypergradient, **kwargs)
        if levels < 2:
            raise ConfigError(f"levels={levels} of strength must be at least 2, of which the first is none.")
        self.scores_KL = nn.Parameter(torch.zeros(len(LARGEST), levels))

    @property
    def magnitudes(self) -> Tensor:
        """How strong an operation is in the mean over policies, `(K,)`."""
        return self.strengths(self.scores_KL.softmax(1))

    def strengths(self, policy_KL: Tensor) -> Tensor:
        """How strong each operation may be, `(K,)`."""
        levels_L = torch.linspace(0, 1, policy_KL.shape[-1], dtype=policy_KL.dtype, device=policy_KL.device)
        return (policy_KL @ levels_L) * policy_KL.new_tensor(list(LARGEST.values()))

    def begin(self, tasks: Trial) -> Progress:
        """New weights, and a policy for each training."""
        keys = subkeys(tasks.key.cpu().numpy().view(np.uint64), [DRAWN])[:, 0]
        draws = torch.from_numpy(uniform(keys, self.scores_KL.numel())).view(-1, *self.scores_KL.shape)
        below = self.scores_KL.detach().softmax(1).cumsum(1).cpu().double()[:, :-1]
        levels_TK = (draws[..., :1] >= below).sum(-1)
        policies = F.one_hot(levels_TK, self.scores_KL.shape[1]).to(self.scores_KL)
        weights = super().begin(tasks).params | {POLICY: policies}
        return Progress(weights, self._map(self.inner_optimizer.init, tasks, weights))

    def logits(self, weights: Params, x: Tensor) -> Tensor:
        return super().logits({name: value for name, value in weights.items() if name != POLICY}, x)

    def inner_loss(self, weights: Params, batch: Batch) -> Tensor:
        strengths_K = self.strengths(weights[POLICY].detach())
        x = augment_within(batch.x, dict(zip(LARGEST, strengths_K, strict=True)), self.key)
        return self.losses(weights, Batch(x, batch.y)).mean()

    def measure(self, tasks: Trial) -> tuple[dict[str, Tensor], dict[str, Any]]:
        values, others = super().measure(tasks)
        if self.training and isinstance(self.carried, Progress):
            reward_T = values[self.metric.name].detach()
            log_p_T = (self.carried.params[POLICY] * self.scores_KL.log_softmax(1)).sum((1, 2))
            all_rewards = torch.cat(gather(reward_T.cpu())).to(reward_T)
            values = values | {"query_loss": values["loss"], "loss": -advantage(reward_T, all_rewards) * log_p_T}
        return values, others

    def watch(self, weights: Params, batch: Batch, right_B: Tensor) -> dict[str, Tensor]:
        return {f"magnitude_{name}": m for name, m in zip(LARGEST, self.magnitudes, strict=True)}

    def check_trials(self, data: BilevelDataModule) -> None:
        super().check_trials(data)
        if data.meta_batch_size < 2 or not data.starts_anew:
            raise ConfigError(
                f"policies are compared by whole trainings, but meta_batch_size={data.meta_batch_size}, "
                f"truncation={data.truncation}, unroll_steps={data.unroll_steps} and evaluate={data.evaluate}; set two "
                "or more trainings, unroll_steps to truncation, and evaluate to retrained."
            )


def advantage(reward_T: Tensor, all_rewards: Tensor) -> Tensor:
    """By how much each training is better than the mean of all others, of this process and the rest."""
    others = (all_rewards.sum() - reward_T) / (len(all_rewards) - 1)
    return reward_T - others
