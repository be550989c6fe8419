"""Run with the half-cheetah of MuJoCo, in a direction or at a speed that is not told.

Finn, Abbeel, Levine: "Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks" (2017), arXiv:1703.03400,
section 5.3.2. The body and the 17 numbers that are seen of it are those of gymnasium's `HalfCheetah-v5`; the cost of
control is that of the code of MAML's authors.

MuJoCo steps all trajectories of all tasks at once. A step is a function of the place and the speed of the body alone:
it starts its solver anew, where gymnasium keeps what it had found before. So one step is the same but for rounding, and
a run is another one after a hundred.
"""

from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from lightning_meta.core.sampling import Keys, uniform
from lightning_meta.errors import require_at_least
from lightning_meta.extras import check, need
from lightning_meta.worlds.actions import Continuous
from lightning_meta.worlds.base import World

JOINTS = 9  # numbers of the place of the body, and as many of its speed
MOTORS = 6
TICKS, TICK = 5, 0.01  # of the simulation in a step, and how many seconds each is
APART = 0.1  # how far a body may be from its place at rest when it starts
SCALE, WIDTH, HEIGHT = 80, 320, 160  # of pictures: pixels per metre, and pixels


class HalfCheetah(World):
    """Base of its tasks: a subclass draws them and says what a speed is worth.

    The state is the time, the place and the speed of the body `(B, 19)`, in 64 bits. Actions are cut at -1 and 1.

    Args:
        horizon: steps, each of 0.05 seconds.
        control_cost: of the sum of squared actions; gymnasium's is 0.1.
        threads: that MuJoCo steps with. Whatever their number, results are the same.
    """

    seen_size, dice, actions = 2 * JOINTS - 1, 2 * JOINTS, Continuous(MOTORS)

    def __init__(self, horizon: int = 200, control_cost: float = 0.05, threads: int = 1) -> None:
        require_at_least(1, horizon=horizon, threads=threads)
        check("mujoco", type(self).__name__)
        self.horizon, self.control_cost, self.threads = horizon, control_cost, threads

    def worth(self, task: Tensor, speed: Tensor) -> Tensor:
        """The reward of a speed `(B,)` in metres per second."""
        raise NotImplementedError

    def start(self, task: Tensor, dice: Tensor) -> Tensor:
        chance = dice.double()
        place, speed = (2 * chance[:, :JOINTS] - 1) * APART, torch.special.ndtri(chance[:, JOINTS:]) * APART
        return torch.cat([torch.zeros_like(chance[:, :1]), place, speed], dim=-1)

    def seen(self, state: Tensor) -> Tensor:
        return state[..., 2:]  # all but the time and how far it has come

    def step(self, task: Tensor, state: Tensor, action: Tensor, dice: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        action = action.double().clamp(-1, 1)
        after = _Simulated.apply(state, action, self.threads)
        speed = (after[..., 1] - state[..., 1]) / (TICKS * TICK)
        reward = self.worth(task, speed) - self.control_cost * action.square().sum(-1)
        return after, reward.to(dice.dtype), torch.zeros_like(dice[..., 0])

    def picture(self, task: Tensor, state: Tensor) -> np.ndarray:
        """The limbs from the side, in the middle of the picture; marks on the ground are a metre apart."""
        mujoco, model, (data, *_) = _simulator(self.threads)
        data.qpos[:] = state[0, 1 : 1 + JOINTS].cpu().numpy()
        mujoco.mj_kinematics(model, data)
        here, ground = float(data.qpos[0]), HEIGHT - 30
        image = Image.new("RGB", (WIDTH, HEIGHT), "white")
        draw = ImageDraw.Draw(image)
        draw.line([0, ground, WIDTH, ground], fill="#8A8A8A", width=2)
        for metre in range(int(here) - 4, int(here) + 5):
            mark = WIDTH / 2 + SCALE * (metre - here)
            draw.line([mark, ground, mark, ground + 8], fill="#8A8A8A", width=2)
        for limb in np.flatnonzero(model.geom_type == mujoco.mjtGeom.mjGEOM_CAPSULE):
            radius, half = model.geom_size[limb, :2]
            axis = data.geom_xmat[limb].reshape(3, 3)[:, 2] * half
            ends = [data.geom_xpos[limb] + sign * axis - [here, 0, 0] for sign in (-1, 1)]
            line = [(WIDTH / 2 + SCALE * x, ground - SCALE * z) for x, _, z in ends]
            draw.line(line, fill="#0072B2", width=int(2 * SCALE * radius))
        return np.asarray(image)


class HalfCheetahDirection(HalfCheetah):
    """Forwards or backwards, as fast as it goes."""

    name = "half-cheetah, direction"

    def draw(self, keys: Keys) -> Tensor:
        """1 or -1, `(T,)`."""
        return torch.from_numpy(np.where(uniform(keys, 1)[:, 0] < 0.5, 1.0, -1.0)).float()

    def worth(self, task: Tensor, speed: Tensor) -> Tensor:
        return task * speed


class HalfCheetahVelocity(HalfCheetah):
    """Forwards at a speed; each metre per second too much or too little costs 1.

    Args:
        fastest: metres per second. Speeds are uniform between 0 and it.
        **kwargs: of `HalfCheetah`.
    """

    name = "half-cheetah, velocity"

    def __init__(self, fastest: float = 2.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.fastest = fastest

    def draw(self, keys: Keys) -> Tensor:
        """The speeds `(T,)`."""
        return torch.from_numpy(uniform(keys, 1, 0, self.fastest)[:, 0]).float()

    def worth(self, task: Tensor, speed: Tensor) -> Tensor:
        return -(speed - task).abs()


@cache
def _simulator(threads: int) -> tuple[Any, Any, list[Any]]:
    """MuJoCo, the body, and what each thread works in."""
    import gymnasium  # which has the body, and takes a while

    mujoco = need("mujoco", "HalfCheetah")
    import_module("mujoco.rollout")
    body = Path(gymnasium.__file__).parent / "envs" / "mujoco" / "assets" / "half_cheetah.xml"
    mujoco.set_mju_user_warning(lambda text: None)  # of a setting in it that will be called otherwise one day
    model = mujoco.MjModel.from_xml_path(str(body))
    mujoco.set_mju_user_warning(None)
    return mujoco, model, [mujoco.MjData(model) for _ in range(threads)]


class _Simulated(torch.autograd.Function):
    """The states after a step, `(..., 19)`: one call of MuJoCo, over tasks too. Nothing is differentiated."""

    @staticmethod
    def forward(state: Tensor, action: Tensor, threads: int) -> Tensor:
        mujoco, model, workers = _simulator(threads)
        states, controls = (
            np.ascontiguousarray(part.detach().cpu().flatten(0, -2).numpy()) for part in (state, action)
        )
        after, _ = mujoco.rollout.rollout(
            model, workers, states, controls[:, None], nstep=TICKS, persistent_pool=threads > 1
        )
        return torch.from_numpy(after[:, -1]).view_as(state).to(state)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], state: Tensor, action: Tensor, threads: int) -> Any:
        parts = zip((state, action), in_dims, strict=False)
        together = [
            part.expand(info.batch_size, *part.shape) if dim is None else part.movedim(dim, 0) for part, dim in parts
        ]
        return _Simulated.apply(*together, threads), 0
