"""How many steps of a world does a CPU core make in a second? A table in Markdown, beside gymnasium.

python -m lightning_meta benchmark world_steps [NAME ...] [--tasks T] [--trajectories B] [--horizon H]

Actions are those of chance, and of a policy of 64-64 units with weights of its own for each task, as after adaptation.
Gymnasium steps its own environment, one by one and in its vectorised form, where it has that world and all that it
needs for it. Seconds are those of a core, so that other work on the machine counts little; the fastest of some turns
counts.
"""

import argparse
from collections.abc import Callable, Sequence
from time import process_time
from typing import Any, Literal, NamedTuple

import torch

from lightning_meta.algorithms import MAMLRL, Random
from lightning_meta.cli.names import suggestion
from lightning_meta.core import map_tasks
from lightning_meta.datamodules.trials.rollouts import Dice, Rollouts
from lightning_meta.errors import ConfigError, UserError, require_at_least
from lightning_meta.modules import RolloutModule
from lightning_meta.worlds import Bandits, CartPole, HalfCheetahDirection, Navigation, TabularMDP, World

TURNS = 3
GYM_STEPS, GYM_ROUNDS, GYM_MOST = 2000, 20, 100  # of gymnasium: one by one, of its vectors, and how long these are
HEADER = (
    "| world | chance, vmap | policy, vmap | policy, loop | gymnasium | gymnasium, vectors |\n|---|---|---|---|---|---|"
)

COLUMNS = 5  # of rates


class Kind(NamedTuple):
    """A world of a horizon, and the id that gymnasium knows it by, if it does."""

    make: Callable[[int], World]
    gym: str = ""


WORLDS: dict[str, Kind] = {
    "bandits": Kind(lambda horizon: Bandits(5, horizon)),
    "tabular_mdp": Kind(lambda horizon: TabularMDP(horizon=horizon)),
    "navigation": Kind(Navigation),
    "cart_pole": Kind(lambda horizon: CartPole(horizon=horizon), "CartPole-v1"),
    "half_cheetah": Kind(HalfCheetahDirection, "HalfCheetah-v5"),
}


def fastest(steps: int, play: Callable[[], Any]) -> float:
    """Steps per second of a core, of what makes so many."""
    times = []
    for _ in range(TURNS):
        start = process_time()
        play()
        times.append(process_time() - start)
    return steps / min(times)


def of_world(world: World, tasks: int, trajectories: int) -> list[float]:
    """Steps per second by chance, and of a policy by both ways to map tasks."""
    data = Rollouts(world, rounds=0, trajectories=trajectories)
    trials = data.dataset("train").__getitems__(range(tasks))
    steps = tasks * trajectories * world.horizon

    def rate(module: RolloutModule, actors: Any, mode: Literal["vmap", "loop"]) -> float:
        def returns(task: Any, actor: Any, of_world: Any, of_actor: Any) -> Any:
            return module.collect(actor, task, Dice(of_world, of_actor)).rewards.sum(0)

        module.world = world
        return fastest(steps, lambda: map_tasks(returns, trials.task, actors, *trials.query, mode=mode))

    chance, policy = Random(world.seen_size, world.actions), MAMLRL(world.seen_size, world.actions, hidden=(64, 64))
    weights = {name: p.detach().expand(tasks, *p.shape).clone() for name, p in policy.theta().items()}
    nobody = torch.zeros(tasks)
    return [rate(chance, nobody, "vmap"), rate(policy, weights, "vmap"), rate(policy, weights, "loop")]


def of_gymnasium(named: str, count: int) -> list[float]:
    """Steps per second one by one, and of so many at once, or as many as can be held; nothing where a package lacks."""
    import gymnasium

    count = min(count, GYM_MOST)
    try:
        single, many = gymnasium.make(named), gymnasium.make_vec(named, num_envs=count)
    except ImportError:
        return []
    single.action_space.seed(0)
    many.action_space.seed(0)
    actions = [single.action_space.sample() for _ in range(GYM_STEPS)]
    together = [many.action_space.sample() for _ in range(GYM_ROUNDS)]

    def one_by_one() -> None:
        single.reset(seed=0)
        for action in actions:
            _, _, terminated, truncated, _ = single.step(action)
            if terminated or truncated:
                single.reset()

    def at_once() -> None:
        many.reset(seed=0)
        for action in together:
            many.step(action)

    rates = [fastest(GYM_STEPS, one_by_one), fastest(GYM_ROUNDS * count, at_once)]
    single.close()
    many.close()
    return rates


def row(name: str, tasks: int, trajectories: int, horizon: int) -> str:
    """Of the table; what is not there is a dash."""
    kind = WORLDS[name]
    rates = of_world(kind.make(horizon), tasks, trajectories)
    rates += of_gymnasium(kind.gym, tasks * trajectories) if kind.gym else []
    cells = [f"{rate:,.0f}" for rate in rates]
    return f"| {name} | {' | '.join(cells + ['-'] * (COLUMNS - len(cells)))} |"


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        "python -m lightning_meta benchmark world_steps",
        description="Measure steps per second of a core: all tasks at once, task by task, and of gymnasium.",
    )
    parser.add_argument("name", nargs="*", metavar="NAME", help=f"of worlds ({', '.join(WORLDS)})")
    parser.add_argument("--tasks", type=int, default=20, metavar="T", help="(20)")
    parser.add_argument("--trajectories", type=int, default=20, metavar="B", help="of each task (20)")
    parser.add_argument("--horizon", type=int, default=50, metavar="H", help="steps of each (50)")
    given = parser.parse_args(arguments)
    require_at_least(1, **{"--tasks": given.tasks, "--trajectories": given.trajectories, "--horizon": given.horizon})
    for name in given.name:
        if name not in WORLDS:
            raise ConfigError(f"there is no world {name}.{suggestion(name, WORLDS)} There are: {', '.join(WORLDS)}.")
    print(f"{given.tasks} tasks x {given.trajectories} trajectories x {given.horizon} steps, "
          f"{torch.get_num_threads()} threads; steps per second of a core\n\n{HEADER}")  # fmt: skip
    for name in given.name or WORLDS:
        try:
            print(row(name, given.tasks, given.trajectories, given.horizon), flush=True)
        except UserError as error:
            if given.name:
                raise
            print(f"| {name} | {error} |{' - |' * (COLUMNS - 1)}")
