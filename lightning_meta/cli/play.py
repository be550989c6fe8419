"""A trained policy in use: let it adapt to new tasks of a world, and look at what it does.

python -m lightning_meta play RUN [--world NAME] [--tasks T] [--rounds R] [--seed S] [--out FOLDER]

RUN is the folder of a run of reinforcement learning. What it plays are the first tasks of its test, with the same dice,
unless `--seed` asks for others. `returns.csv` has what every trajectory of every round earned, and `play.gif` shows the
first round beside the last, where the world can be drawn.
"""

import argparse
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from pytorch_lightning.cli import instantiate_module
from torch import Tensor

from lightning_meta import checkpoints
from lightning_meta.cli.composition import compose
from lightning_meta.cli.names import found, run_folder
from lightning_meta.cli.predict import config_of, data_of, load_module, trained_run
from lightning_meta.compat import tree_map
from lightning_meta.core.statistics import mean_and_ci95_over
from lightning_meta.datamodules.trials.rollouts import Rollouts, RolloutTrial
from lightning_meta.errors import ConfigError, require_at_least
from lightning_meta.modules import MetaModule, RolloutModule
from lightning_meta.modules.rollout import Trajectories
from lightning_meta.reports.animation import growing, save_gif, side_by_side
from lightning_meta.reports.tables import write_csv
from lightning_meta.reports.walks import places, walks
from lightning_meta.worlds import Navigation, World

SHOWN = 3  # tasks of a moving picture, at most
WALKS = 5  # of each task and round, in the plane


def load_player(run: Path, checkpoint: Path | None = None) -> tuple[RolloutModule, dict[str, Any], str]:
    """The module of a run, the config of its data, and where its weights are from. One without weights needs no file.

    Raises `ConfigError` where it is no run of reinforcement learning.
    """
    config = config_of(run)
    model, source = config["model"], "no weights"
    module: Any = instantiate_module(MetaModule, {"_class_path": model["class_path"]} | model["init_args"])
    if not isinstance(module, RolloutModule):
        raise ConfigError(
            f"{run} is a run of {type(module).__name__}, which acts in no world; play is for reinforcement learning, "
            "predict for images, texts and tables."
        )
    if checkpoint or any(True for _ in module.parameters()):
        source = str(checkpoint := checkpoint or checkpoints.best_or_last(run))
        module, _ = load_module(model["class_path"], checkpoint)
    return module.eval(), config["data"], source


def world_data(named: str) -> dict[str, Any]:
    """A config of `configs/data/`, by name or file."""
    return compose(found("data", named))


def played(module: RolloutModule, data: Rollouts, tasks: int) -> tuple[RolloutTrial, list[Trajectories]]:
    """The first test trials, and what was recorded of each round."""
    trials = data.dataset("test").__getitems__(range(tasks))
    with torch.no_grad():
        return trials, module.record(trials)


def returns_of(rounds: Sequence[Trajectories]) -> Tensor:
    """What each trajectory earned, `(T, R, B)`."""
    return torch.stack([played.rewards.sum(1) for played in rounds], dim=1)


def film(world: World, task: Any, dice: Tensor, actions: Tensor, steps: int) -> list[np.ndarray] | None:
    """The first trajectory again, with its dice `(H, B, D)`: what it looks like at the start and after each step."""
    first, state = slice(0, 1), world.start(task, dice[0, :1])
    pictures = [world.picture(task, state)]
    for number in range(steps if pictures[0] is not None else 0):
        state, _, _ = world.step(task, state, actions[number, first], dice[number, first])
        pictures.append(world.picture(task, state))
    return None if any(picture is None for picture in pictures) else pictures  # type: ignore[return-value]


def moving(world: World, trials: RolloutTrial, rounds: Sequence[Trajectories], title: str) -> list[Image.Image]:
    """Frames of the first round beside the last, for the first tasks; empty where nothing can be drawn."""
    last = len(rounds) - 1
    names = dict.fromkeys(["before adaptation", f"after {last} round{'s' * (last > 1)}"][: 1 + (last > 0)])
    numbers = [0, last][: len(names)]
    tasks = range(min(SHOWN, len(trials.query.world)))
    if isinstance(world, Navigation):
        shown = [tree_map(lambda leaf: leaf[: len(tasks)], rounds[number]) for number in numbers]
        came_by = {name: places(of_round, WALKS) for name, of_round in zip(names, shown, strict=True)}
        return growing(walks(trials.task[: len(tasks)], came_by, title))
    world, films = world.with_pictures(), []
    for place, number in product(tasks, numbers):
        of_round, task = rounds[number], tree_map(lambda leaf, place=place: leaf[place], trials.task)
        dice = trials.query.world[place] if number == last else trials.support.world[place, number]
        steps = int(of_round.alive[place, :, 0].sum())
        one = film(world, task, dice, of_round.actions[place], steps)
        if one is None:
            return []
        films.append(one)
    return side_by_side([films[row : row + len(names)] for row in range(0, len(films), len(names))], [*names])


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        "python -m lightning_meta play",
        description="Let a trained policy adapt to tasks of a world; write what it earned, and a moving picture.",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a training run, or its experiment's name")
    parser.add_argument("--world", metavar="NAME", help="other data to play: a name of configs/data, or a file")
    parser.add_argument("--tasks", type=int, default=20, metavar="T", help="how many (20)")
    parser.add_argument("--rounds", type=int, metavar="R", help="of adaptation (as in the run's test)")
    parser.add_argument("--seed", type=int, metavar="S", help="of the tasks (that of the run's test)")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where the files go (RUN/play)")
    parser.add_argument("--ckpt_path", type=Path, metavar="FILE", help="checkpoint (the run's best one)")
    given = parser.parse_args(arguments)
    require_at_least(1, **{"--tasks": given.tasks})
    require_at_least(0, **{"--rounds": given.rounds, "--seed": given.seed})
    run = run_folder(given.run) if given.ckpt_path else trained_run(given.run)
    module, data_config, source = load_player(run, given.ckpt_path)
    data: Any = data_of(world_data(given.world) if given.world else data_config)
    if not isinstance(data, Rollouts):
        raise ConfigError(f"--world {given.world} is {type(data).__name__}, which has no world; take data of Rollouts.")
    data.eval_rounds = data.eval_rounds if given.rounds is None else given.rounds
    data.seed = data.seed if given.seed is None else given.seed
    module.check_world(data.world)
    module.world = data.world
    trials, rounds = played(module, data, given.tasks)
    returns_TRB, out = returns_of(rounds), given.out or run / "play"
    alive = torch.stack([of_round.alive.sum(1) for of_round in rounds], dim=1)
    places_of = product(*map(range, returns_TRB.shape))
    rows = [
        {"task": t, "round": r, "trajectory": b, "return": returns_TRB[t, r, b].item(), "steps": int(alive[t, r, b])}
        for t, r, b in places_of
    ]
    write_csv(out / "returns.csv", rows)
    title = f"{type(module).__name__} on {data.name}"
    frames, files = moving(data.world, trials, rounds, title), "returns.csv"
    if frames:
        save_gif(out / "play.gif", frames)
        files += ", play.gif"
    means_R, ci95_R = mean_and_ci95_over(returns_TRB.mean(-1))
    facts = [
        (f"round {number}", f"{mean:.3f}" + f" ± {ci95:.3f}, over {given.tasks} tasks" * (given.tasks > 1))
        for number, (mean, ci95) in enumerate(zip(means_R.tolist(), ci95_R.tolist(), strict=True))
    ]
    facts.append(("files", f"{out}/{files}" + ("" if frames else f" ({data.name} cannot be drawn)")))
    print("\n".join([f"{title}: {source}", *(f"{name:<13} {fact}" for name, fact in facts)]))
