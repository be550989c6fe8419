"""Balance a pole on a cart, whose length differs from task to task.

The cart of Barto, Sutton, Anderson: "Neuronlike Adaptive Elements That Can Solve Difficult Learning Control Problems"
(1983), as gymnasium's `CartPole-v1`, step by step; with poles of other lengths as in Sung, Zhang, Xiang, Hospedales,
Yang: "Learning to Learn: Meta-Critic Networks for Sample Efficient Learning" (2017), arXiv:1706.09529.
"""

import math

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from lightning_meta.core.sampling import Keys, uniform
from lightning_meta.errors import ConfigError, require_at_least
from lightning_meta.worlds.actions import Discrete
from lightning_meta.worlds.base import World

GRAVITY, FORCE, TICK = 9.8, 10.0, 0.02  # m/s^2, N, s
CART, POLE = 1.0, 0.1  # masses in kg
EDGE, LEAN = 2.4, 12 * 2 * math.pi / 360  # m of the track, and how far the pole may lean: beyond is the end
SCALE, WIDTH, HEIGHT = 40, 240, 160  # of pictures: pixels per metre, and pixels
APART = 0.05  # the four numbers of a state begin so near to 0, at most
# Weights of somebody who can balance: of the place of the cart, of its speed, and of the time a pole takes to fall.
HOME, BRAKE, FALL = 0.01, 0.08, 1.2


class CartPole(World):
    """Push the cart to the left (0) or to the right (1); each step pays 1, until the pole falls or the cart leaves.

    What is seen: the place of the cart, its speed, the angle of the pole, its angular speed. Not the length.

    Args:
        shortest: half the length of a pole in metres, at least; gymnasium's is 0.5.
        longest: the same, at most. Between them lengths are uniform.
        horizon: steps at most.
    """

    seen_size, dice, actions = 4, 4, Discrete(2)

    def __init__(self, shortest: float = 0.5, longest: float = 5.0, horizon: int = 200) -> None:
        require_at_least(1, horizon=horizon)
        if not 0 < shortest <= longest:
            raise ConfigError(f"shortest={shortest} must be above 0 and at most longest={longest}.")
        self.shortest, self.longest, self.horizon = shortest, longest, horizon
        self.name = f"poles of half-length {shortest:g} to {longest:g}"

    def draw(self, keys: Keys) -> Tensor:
        """Half the lengths `(T,)`."""
        return torch.from_numpy(uniform(keys, 1, self.shortest, self.longest)[:, 0]).float()

    def start(self, task: Tensor, dice: Tensor) -> Tensor:
        return (2 * dice - 1) * APART

    def seen(self, state: Tensor) -> Tensor:
        return state

    def step(self, task: Tensor, state: Tensor, action: Tensor, dice: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, x_speed, angle, angle_speed = state.unbind(-1)
        sine, cosine = angle.sin(), angle.cos()
        push = (FORCE * (2 * action - 1) + POLE * task * angle_speed.square() * sine) / (CART + POLE)
        lever = task * (4 / 3 - POLE * cosine.square() / (CART + POLE))
        angle_change = (GRAVITY * sine - cosine * push) / lever
        x_change = push - POLE * task * angle_change * cosine / (CART + POLE)
        state = state + TICK * torch.stack([x_speed, x_change, angle_speed, angle_change], dim=-1)
        over = (state[..., 0].abs() > EDGE) | (state[..., 2].abs() > LEAN)
        return state, torch.ones_like(x), over

    def best(self, task: Tensor, seen: Tensor, left: int) -> Tensor:
        """Push to where the pole is falling: it stays up for all steps."""
        x, x_speed, angle, angle_speed = seen.unbind(-1)
        falling = angle + FALL * (4 / 3 * task / GRAVITY).sqrt() * angle_speed
        return (falling + HOME * x + BRAKE * x_speed > 0).long()

    def picture(self, task: Tensor, state: Tensor) -> np.ndarray:
        """The cart on its track, and the pole in its length; what is above the picture is cut."""
        x, _, angle, _ = state[0].tolist()
        image = Image.new("RGB", (WIDTH, HEIGHT), "white")
        draw, ground = ImageDraw.Draw(image), HEIGHT - 20
        middle, reach = WIDTH / 2 + SCALE * x, 2 * SCALE * float(task)
        draw.line([WIDTH / 2 - SCALE * EDGE, ground, WIDTH / 2 + SCALE * EDGE, ground], fill="#8A8A8A", width=2)
        draw.rectangle([middle - 14, ground - 14, middle + 14, ground], fill="#222222")
        top = (middle + reach * math.sin(angle), ground - 14 - reach * math.cos(angle))
        draw.line([middle, ground - 14, *top], fill="#D55E00", width=5)
        return np.asarray(image)
