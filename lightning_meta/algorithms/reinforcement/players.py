"""Players that learn nothing from trial to trial: what chance, good sense, and full knowledge of a task earn.

They are the rows beside any meta-learner, on the same tasks and dice; those that count what arms paid are for bandits.

Deviations: Thompson sampling draws no chances. It takes each arm as often as that is the best under the posterior,
which is the same, by integrals over a grid. UCB1 has a weight, since its authors' 1 explores far too much in short
trials.

Shapes: `B` trajectories, `K` arms, `G` points of a grid.
"""

from typing import Any

import torch
from torch import Tensor

from lightning_meta.datamodules.trials.rollouts import Dice
from lightning_meta.errors import ConfigError, require_at_least
from lightning_meta.modules.player import BanditModule, PlayerModule
from lightning_meta.modules.rollout import Told
from lightning_meta.worlds import World
from lightning_meta.worlds.bandits import gittins_indices


class Random(PlayerModule):
    """Any action, equally likely; continuous ones are standard normal.

    As in Finn, Abbeel, Levine: "Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks" (2017),
    arXiv:1703.03400, figure 4.
    """

    def act(self, actor: Tensor, memory: Any, told: Told, dice: Tensor) -> tuple[Tensor, Any]:
        return self.actions.draw(dice.new_zeros(len(dice), self.actions.scores), dice), memory


class Oracle(PlayerModule):
    """Knows the task: what nobody can earn more than who must find it out.

    As in Finn, Abbeel, Levine: "Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks" (2017),
    arXiv:1703.03400, figure 4.
    """

    def begin(self, task: Any, dice: Dice) -> Any:
        return task

    def act(self, task: Any, step: Any, told: Told, dice: Tensor) -> tuple[Tensor, Any]:
        world, step = self.played_world(), step or 0
        return world.best(task, told.seen, world.horizon - step), step + 1


class EpsilonGreedy(BanditModule):
    """The arm of the largest mean, where each was seen to pay once of two times before; at times, any.

    As in Duan, Schulman, Chen, Bartlett, Sutskever, Abbeel: "RL^2: Fast Reinforcement Learning via Slow Reinforcement
    Learning" (2016), arXiv:1611.02779, table 1.

    Args:
        epsilon: how often it is any arm.
        **kwargs: of `BanditModule`.
    """

    def __init__(self, arms: int, epsilon: float = 0.0, **kwargs: Any) -> None:
        super().__init__(arms, **kwargs)
        if not 0 <= epsilon <= 1:
            raise ConfigError(f"epsilon={epsilon} must lie between 0 and 1.")
        self.epsilon = epsilon

    def scores(self, won_BK: Tensor, lost_BK: Tensor, dice: Tensor) -> Tensor:
        mean_BK = (won_BK + 1) / (won_BK + lost_BK + 2)
        any_arm_B1 = (dice / self.epsilon * self.actions.n).long() if self.epsilon else torch.zeros_like(dice).long()
        any_arm_BK = torch.arange(self.actions.n, device=dice.device) == any_arm_B1
        return torch.where(dice < self.epsilon, any_arm_BK.to(mean_BK.dtype), mean_BK)


class UCB(BanditModule):
    """The arm of the largest mean plus what it may be more: `weight * sqrt(2 log t / pulls)`.

    Auer, Cesa-Bianchi, Fischer: "Finite-time Analysis of the Multiarmed Bandit Problem" (2002), Machine Learning.

    Args:
        weight: 1 in UCB1.
        **kwargs: of `BanditModule`.
    """

    def __init__(self, arms: int, weight: float = 0.2, **kwargs: Any) -> None:
        super().__init__(arms, **kwargs)
        self.weight = weight

    def scores(self, won_BK: Tensor, lost_BK: Tensor, dice: Tensor) -> Tensor:
        pulls_BK = won_BK + lost_BK + 2
        more_BK = (2 * pulls_BK.sum(-1, keepdim=True).log() / pulls_BK).sqrt()
        return (won_BK + 1) / pulls_BK + self.weight * more_BK


class Thompson(BanditModule):
    """Each arm as often as it is the best under the posterior of chances that were uniform.

    Thompson: "On the Likelihood that One Unknown Probability Exceeds Another in View of the Evidence of Two Samples"
    (1933), Biometrika.

    Args:
        grid: points of the integrals.
        **kwargs: of `BanditModule`.
    """

    def __init__(self, arms: int, grid: int = 256, **kwargs: Any) -> None:
        super().__init__(arms, **kwargs)
        require_at_least(2, grid=grid)
        self.grid = grid

    def chances(self, won_BK: Tensor, lost_BK: Tensor) -> Tensor:
        """That an arm is the best, `(B, K)`."""
        points_G = (torch.arange(self.grid, device=won_BK.device, dtype=won_BK.dtype) + 0.5) / self.grid
        density_BKG = (won_BK[..., None] * points_G.log() + lost_BK[..., None] * (-points_G).log1p()).softmax(-1)
        below_BKG = density_BKG.cumsum(-1) - density_BKG / 2  # half of what lies at the point itself
        others_BKG = below_BKG.clamp_min(torch.finfo(below_BKG.dtype).tiny).log()
        all_others_BKG = (others_BKG.sum(-2, keepdim=True) - others_BKG).exp()
        chances_BK = (density_BKG * all_others_BKG).sum(-1)
        return chances_BK / chances_BK.sum(-1, keepdim=True)

    def scores(self, won_BK: Tensor, lost_BK: Tensor, dice: Tensor) -> Tensor:
        drawn_B = self.actions.draw(self.chances(won_BK, lost_BK).log(), dice)
        return self.actions.encode(drawn_B)


class Gittins(BanditModule):
    """The arm of the largest Gittins index: the best that can be done where later rewards count less and less.

    Gittins: "Bandit Processes and Dynamic Allocation Indices" (1979), Journal of the Royal Statistical Society B.

    Args:
        pulls: of the world, for which indices are computed.
        discount: of later rewards.
        **kwargs: of `BanditModule`.
    """

    indices: Tensor

    def __init__(self, arms: int, pulls: int = 10, discount: float = 0.9, **kwargs: Any) -> None:
        super().__init__(arms, **kwargs)
        require_at_least(1, pulls=pulls)
        self.pulls = pulls
        self.register_buffer("indices", gittins_indices(pulls, discount), persistent=False)

    def scores(self, won_BK: Tensor, lost_BK: Tensor, dice: Tensor) -> Tensor:
        return self.indices[won_BK.long(), lost_BK.long()]

    def check_world(self, world: World) -> None:
        super().check_world(world)
        if world.horizon > self.pulls:
            raise ConfigError(
                f"Gittins has indices for pulls={self.pulls}, but {world.name} are pulled {world.horizon} times; set "
                f"model.pulls to {world.horizon}."
            )
