"""Bandits whose arms share one chance to pay: the better one is, the worse are the others.

Those of Sung, Zhang, Xiang, Hospedales, Yang: "Learning to Learn: Meta-Critic Networks for Sample Efficient Learning"
(2017), arXiv:1706.09529, section 4.2.
"""

import numpy as np
import torch
from torch import Tensor

from lightning_meta.core.sampling import Keys, uniform
from lightning_meta.worlds.bandits import Bandits


class DirichletBandits(Bandits):
    """Arms whose chances sum to 1, by a flat Dirichlet distribution.

    Args:
        arms: K.
        pulls: of a trajectory.
    """

    def __init__(self, arms: int = 2, pulls: int = 10) -> None:
        super().__init__(arms, pulls)
        self.name = f"{arms} Dirichlet arms"

    def draw(self, keys: Keys) -> Tensor:
        """The chances `(T, K)`: exponential numbers in parts of their sum."""
        parts_TK = torch.from_numpy(-np.log1p(-uniform(keys, self.actions.n)))
        return (parts_TK / parts_TK.sum(-1, keepdim=True)).float()
