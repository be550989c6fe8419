"""A trained policy in use: `play` earns what the test measured, and draws what the world shows."""

import csv
from itertools import pairwise
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from lightning_meta.cli import main, play
from lightning_meta.compat import tree_map
from lightning_meta.errors import ConfigError, DataError
from lightning_meta.modules.rollout import Trajectories
from lightning_meta.worlds import CartPole, GymWorld, Navigation
from tests.algorithms.rollout_cases import rollouts

TRAINER = {
    "accelerator": "cpu", "max_steps": 1, "max_epochs": -1, "num_sanity_val_steps": 0, "enable_progress_bar": False,
    "enable_model_summary": False,
    "logger": {"class_path": "pytorch_lightning.loggers.CSVLogger", "init_args": {"save_dir": "runs", "name": ""}},
    "callbacks": [{"class_path": "lightning_meta.callbacks.EpisodicCheckpoint"}],
}  # fmt: skip
ROLLOUTS = {"rounds": 2, "trajectories": 3, "meta_batch_size": 2, "steps_per_epoch": 1, "val_episodes": 2}
NAVIGATION = {
    "class_path": "lightning_meta.datamodules.Rollouts",
    "init_args": {
        "world": {"class_path": "lightning_meta.worlds.Navigation", "init_args": {"horizon": 7}},
        "test_episodes": 4, "eval_meta_batch_size": 3, **ROLLOUTS,
    },
}  # fmt: skip
ACTIONS = {"class_path": "lightning_meta.worlds.Continuous", "init_args": {"n": 2}}


def experiment(model: str, **settings: Any) -> str:
    init_args = {"seen_size": 2, "actions": ACTIONS, **settings}
    return yaml.safe_dump(
        {"trainer": TRAINER, "data": NAVIGATION,
         "model": {"class_path": f"lightning_meta.algorithms.{model}", "init_args": init_args}}
    )  # fmt: skip


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of MAML on navigation, one of a player without weights, and what the test of the former measured."""
    folder = tmp_path_factory.mktemp("play")
    (folder / "maml.yaml").write_text(experiment("MAMLRL", hidden=[8], inner_lr=5.0))
    (folder / "random.yaml").write_text(experiment("Random"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        cli = main(["fit", "--config", "maml.yaml"])
        (folder / "tested.yaml").write_text(
            yaml.safe_dump({k: v.item() for k, v in cli.trainer.callback_metrics.items()})
        )
        main(["test", "--config", "random.yaml"])
    return folder


@pytest.fixture
def at_work(work: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(work)
    return work


@pytest.fixture
def unseen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is drawn, which takes longer than all else."""
    monkeypatch.setattr(play, "moving", lambda *_: [])


def table(path: str) -> list[dict[str, str]]:
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file))


def test_it_earns_what_the_test_of_the_run_measured(at_work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    play.main(["maml", "--tasks", "4", "--out", "same"])
    rows = table("same/returns.csv")
    assert [*rows[0]] == ["task", "round", "trajectory", "return", "steps"] and len(rows) == 4 * 3 * 3
    tested = yaml.safe_load(Path("tested.yaml").read_text())
    for number in range(3):
        mean = np.mean([float(row["return"]) for row in rows if row["round"] == str(number)])
        assert mean == pytest.approx(tested[f"test/return_{number}"], abs=1e-5)
    said = capsys.readouterr().out
    assert said.startswith("MAMLRL on 2-D navigation: runs/maml/version_0/checkpoints/")
    assert f"round 2       {tested['test/return_2']:.3f} ± " in said and "same/returns.csv, play.gif" in said
    with Image.open("same/play.gif") as film:
        assert film.n_frames == 8
        frames = [np.asarray(film.convert("RGB")) for place in range(8) if film.seek(place) is None]
    assert all((one != two).any() for one, two in pairwise(frames))


@pytest.mark.usefixtures("unseen")
def test_other_tasks_and_rounds_are_played_when_asked_for(at_work: Path) -> None:
    play.main(["maml", "--tasks", "2", "--rounds", "1", "--seed", "5", "--out", "other"])
    play.main(["runs/maml/version_0", "--tasks", "1", "--rounds", "0"])
    rows, (alone, *_) = table("other/returns.csv"), table("runs/maml/version_0/play/returns.csv")
    assert len(rows) == 2 * 2 * 3 and {row["round"] for row in rows} == {"0", "1"}
    assert rows[0]["return"] != alone["return"]


@pytest.mark.usefixtures("unseen")
def test_a_player_without_weights_needs_no_checkpoint(at_work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    play.main(["random", "--tasks", "1", "--out", "by_chance"])
    said = capsys.readouterr().out
    assert said.startswith("Random on 2-D navigation: no weights\n") and "(2-D navigation cannot be drawn)" in said


@pytest.mark.usefixtures("unseen")
def test_another_world_is_one_of_the_same_actions(at_work: Path) -> None:
    longer = NAVIGATION | {"init_args": NAVIGATION["init_args"] | {"world": {
        "class_path": "lightning_meta.worlds.Navigation", "init_args": {"horizon": 9}}}}  # type: ignore[operator]  # fmt: skip
    Path("longer.yaml").write_text(yaml.safe_dump(longer))
    play.main(["maml", "--world", "longer.yaml", "--tasks", "2", "--out", "longer"])
    assert max(int(row["steps"]) for row in table("longer/returns.csv")) == 9


def test_what_cannot_be_played_is_told(at_work: Path) -> None:
    (at_work / "runs/images/version_0").mkdir(parents=True, exist_ok=True)
    config = {"model": {"class_path": "lightning_meta.algorithms.ProtoNet", "init_args": {
        "backbone": {"class_path": "lightning_meta.backbones.Conv4", "init_args": {}}}}, "data": {}}  # fmt: skip
    (at_work / "runs/images/version_0/config.yaml").write_text(yaml.safe_dump(config))
    for words, error, message in [
        (["images"], ConfigError, r"images/version_0 is a run of ProtoNet, which acts in no world; play is for reinf"),
        (["mamll"], DataError, r"mamll does not exist; give the folder of a training run: .*Did you mean maml\?"),
        (["maml", "--world", "world_navigatio"], ConfigError, r"world_navigatio is no file .* mean world_navigation\?"),
        (["maml", "--world", "omniglot"], ConfigError, r"--world omniglot is Omniglot, which has no world"),
        (
            ["maml", "--world", "world_bandits_k5_n10"],
            ConfigError,
            r"MAMLRL takes actions Continuous\(n=2\), but those",
        ),
        (["maml", "--tasks", "0"], ConfigError, r"--tasks=0 must be at least 1"),
        (["maml", "--rounds", "-1"], ConfigError, r"--rounds=-1 must be at least 0"),
    ]:
        with pytest.raises(error, match=message) as told:
            play.main(words)
        assert "\n" not in str(told.value)


# ---- pictures -------------------------------------------------------------------------------------------------------


class Lamp(gymnasium.Env):
    """One whose picture is as bright as its level is high, and as green as its task says."""

    observation_space = gymnasium.spaces.Box(0, 99, (1,))
    action_space = gymnasium.spaces.Discrete(2)
    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012 - as gymnasium has it

    def __init__(self, green: float, render_mode: str | None = None) -> None:
        self.green, self.render_mode = green, render_mode

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.level = int(self.np_random.integers(10))
        return np.float32([self.level]), {}

    def step(self, action: Any) -> Any:
        self.level += int(action)
        return np.float32([self.level]), 1.0, self.level > 11, False, {}

    def render(self) -> Any:
        return np.full((4, 6, 3), [self.level, int(self.green), 0], dtype=np.uint8)


def recorded(world: Any) -> tuple[Any, list[Trajectories]]:
    """Two tasks, a round before and one after, in which everybody takes the last action."""
    data = rollouts(world, rounds=1, trajectories=2)
    trials = data.dataset("test").__getitems__([0, 1])
    shape = trials.query.world.shape[:3]
    actions = torch.ones(shape, dtype=torch.long)
    played = Trajectories((), None, actions, torch.ones(shape), torch.ones(shape))  # type: ignore[arg-type]
    return trials, [played, played]


def test_the_pictures_are_those_that_the_environment_draws() -> None:
    world = GymWorld(Lamp, {"green": [50, 200]}, horizon=3)
    trials, rounds = recorded(world)
    frames = play.moving(world, trials, rounds, "")
    assert len(frames) == 4 and frames[0].size == (12, 16 + 8)
    for number, frame in enumerate(frames):
        pixels = np.asarray(frame)[16:]
        for row, column in np.ndindex(2, 2):
            dice = (trials.query if column else tree_map(lambda leaf: leaf[:, 0], trials.support)).world
            lamp = Lamp(float(trials.task["green"][row]))
            lamp.reset(seed=int(dice[row, 0, 0, 0].item() * 2**24))
            shown = pixels[4 * row + 2, 6 * column + 3]
            assert shown.tolist() == [lamp.level + number, int(trials.task["green"][row]), 0]


def test_a_world_that_nobody_drew_has_no_film() -> None:
    class Dark(Lamp):
        metadata = {"render_modes": []}  # noqa: RUF012

    world = GymWorld(Dark, {"green": [50, 200]}, horizon=3)
    assert play.moving(world, *recorded(world), "") == []


def test_a_pole_is_drawn_as_long_and_as_oblique_as_it_is() -> None:
    world, state = CartPole(), torch.tensor([[0.5, 0.0, 0.2, 0.0]])
    rows, columns = np.where((world.picture(torch.tensor(0.75), state) == [213, 94, 0]).all(-1))
    ground, middle = 160 - 20 - 14, 120 + 40 * 0.5
    assert ground - rows.min() == pytest.approx(2 * 0.75 * 40 * np.cos(0.2), abs=3)
    assert columns.max() - middle == pytest.approx(2 * 0.75 * 40 * np.sin(0.2), abs=4)
    assert Navigation().picture(None, None) is None
