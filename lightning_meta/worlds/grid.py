"""Find a cell of a grid that is not shown, and go back to it.

Zintgraf, Shiarlis, Igl, Schulze, Gal, Hofmann, Whiteson: "VariBAD: A Very Good Method for Bayes-Adaptive Deep RL via
Meta-Learning" (2020), arXiv:1910.08348, section 5.1: 5 x 5 cells, walks of 15 steps from a corner, four of which are a
trial; each step on the goal pays 1, any other costs 0.1. As in the authors' code, the goal is none of the four cells
at the corner.

Shapes: `C` cells that may be the goal.
"""

import numpy as np
import torch
from torch import Tensor

from lightning_meta.core.sampling import Keys, whole
from lightning_meta.errors import require_at_least
from lightning_meta.worlds.actions import Discrete, one_hot
from lightning_meta.worlds.base import World

ON_GOAL, ELSEWHERE = 1.0, -0.1
MOVES = ((0, 0), (0, 1), (1, 0), (0, -1), (-1, 0))  # stay, up, right, down, left


class Grid(World):
    """Walks from the corner (0, 0) of a square; at its border one stays. What is seen is the cell, one of all.

    Args:
        side: of the square, in cells.
        horizon: steps of a walk.
    """

    dice, actions = 1, Discrete(len(MOVES))

    def __init__(self, side: int = 5, horizon: int = 15) -> None:
        require_at_least(3, side=side)
        require_at_least(1, horizon=horizon)
        self.side, self.horizon, self.seen_size = side, horizon, side**2
        self.name = f"{side} x {side} grid"

    @property
    def goals(self) -> list[int]:
        """The C cells that may be the goal; a cell (x, y) has the number `x * side + y`."""
        return [cell for cell in range(self.seen_size) if max(divmod(cell, self.side)) > 1]

    def draw(self, keys: Keys) -> Tensor:
        """The cells `(T,)` of the goals."""
        return torch.tensor(self.goals)[torch.from_numpy(whole(keys, 0, len(self.goals) - 1))]

    def start(self, task: Tensor, dice: Tensor) -> Tensor:
        return torch.zeros_like(dice[:, 0], dtype=torch.long)

    def seen(self, state: Tensor) -> Tensor:
        return one_hot(state, self.seen_size)

    def step(self, task: Tensor, state: Tensor, action: Tensor, dice: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        moves_A2 = torch.tensor(MOVES, device=state.device)
        place_B2 = torch.stack([state // self.side, state % self.side], dim=-1) + moves_A2[action]
        x_B, y_B = place_B2.clamp(0, self.side - 1).unbind(-1)
        state = x_B * self.side + y_B
        reward_B = torch.where(state == task, ON_GOAL, ELSEWHERE).to(dice.dtype)
        return state, reward_B, torch.zeros_like(reward_B)

    def best(self, task: Tensor, seen: Tensor, left: int) -> Tensor:
        """First up or down, then to a side; there one stays."""
        cell_B = seen.argmax(-1)
        right_B, up_B = task // self.side - cell_B // self.side, task % self.side - cell_B % self.side
        sideways_B = torch.where(right_B > 0, 2, torch.where(right_B < 0, 4, 0))
        return torch.where(up_B > 0, 1, torch.where(up_B < 0, 3, sideways_B))


def bayes_optimal_return(side: int = 5, horizon: int = 15, walks: int = 4) -> float:
    """The largest expected return of all walks of a trial together that any strategy can have: a bound.

    Nothing is learned before the goal is found but where it is not, and all after, so a strategy is an order in which
    cells are searched. The best one is found by backward induction over the step, the cell, and the set of the cells
    where the goal may be: 2^C of them, half a minute and some hundred megabytes for 21.
    """
    require_at_least(1, horizon=horizon, walks=walks)
    world = Grid(side, horizon)
    bits = {cell: bit for bit, cell in enumerate(world.goals)}
    away = [sum(divmod(cell, side)) for cell in range(side**2)]  # steps from the corner
    unknown_M = np.array([0], dtype=np.float32)  # how many cells a set has
    for _ in bits:
        unknown_M = np.concatenate([unknown_M, unknown_M + 1])
    straight = [horizon - max(far - 1, 0) * (ON_GOAL - ELSEWHERE) for far in away]  # the return of who knows the goal

    def beside(cell: int) -> list[int]:
        x, y = divmod(cell, side)
        places = ((x + right, y + up) for right, up in MOVES[1:])
        return [right * side + up for right, up in places if 0 <= right < side and 0 <= up < side]

    # The sum, over the goals that there may be, of the return of the whole trial.
    begun_M = ELSEWHERE * walks * horizon * unknown_M
    for walk in range(walks - 1, -1, -1):
        values = [begun_M] * side**2
        for step in range(horizon - 1, -1, -1):
            # To stay, or to run into the border, only puts off what comes; so the step tells odd cells from even ones.
            entered: dict[int, np.ndarray] = {}
            for cell in (cell for cell in range(side**2) if away[cell] <= step + 1 and (away[cell] - step) % 2):
                entered[cell] = values[cell]
                if cell in bits:
                    found = ELSEWHERE * (walk * horizon + step) + ON_GOAL * (horizon - step)
                    found += (walks - walk - 1) * straight[cell]
                    without = values[cell].reshape(-1, 2, 2 ** bits[cell])[:, 0]
                    entered[cell] = np.stack([without, without + np.float32(found)], axis=1).ravel()
            values = [
                np.maximum.reduce([entered[near] for near in beside(cell)])
                if away[cell] <= step and not (away[cell] - step) % 2 else begun_M
                for cell in range(side**2)
            ]  # fmt: skip
        begun_M = values[0]
    return float(begun_M[-1]) / len(bits)
