"""Runs from another machine: what is packed, taken over and refused, and that a training goes on exactly."""

import csv
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lightning_meta import cli
from lightning_meta.reproduce.command import main
from lightning_meta.reproduce.exchange import LOG_TAIL, find, pack
from lightning_meta.reproduce.runs import Run, find_runs
from tests.conftest import write_checkpoint
from tests.modules.test_resume import assert_equal
from tests.reproduce.test_runs import CONFIG, RESULT


def experiments(folder: Path, **configs: str) -> Path:
    (folder / "experiments").mkdir(parents=True)
    for name, config in configs.items():
        (folder / f"experiments/{name}.yaml").write_text(config)
    return folder / "experiments"


def machine(folder: Path, experiments: Path, seed: int = 0) -> list[Run]:
    """The runs of a machine that has its files in `folder`."""
    return find_runs([], experiments, folder / "runs", folder / "results", [seed], [])


def take_over(folder: Path, experiments: Path, source: Path, *words: str) -> int:
    """Exit status of `reproduce --import` on a machine."""
    places = {"--experiments": experiments, "--runs": folder / "runs", "--results": folder / "results"}
    with pytest.raises(SystemExit) as end:
        main(["--import", str(source), *(str(word) for pair in places.items() for word in pair), *words])
    return end.value.code


def leave(path: Path, **changes: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    name = RESULT["experiment"] if "experiment" not in changes else changes["experiment"]
    command = f"python -m lightning_meta fit --config configs/experiment/{name}.yaml"
    path.write_text(json.dumps(RESULT | {"command": command} | changes))


# ---- packed ---------------------------------------------------------------------------------------------------------


def packed(file: Path) -> dict[str, bytes]:
    with tarfile.open(file) as archive:
        return {member.name: archive.extractfile(member).read() for member in archive.getmembers()}


@pytest.fixture
def trained(tmp_path: Path) -> list[Run]:
    """Three runs with checkpoints of 3, 2 and 1 hundred thousand bytes that cannot be compressed."""
    runs = machine(tmp_path, experiments(tmp_path, a=CONFIG, b=CONFIG, c=CONFIG))
    generator = torch.Generator().manual_seed(0)
    for run, size in zip(runs, (300_000, 200_000, 100_000), strict=True):
        version = run.folder / "version_0"
        for name, score in (("best-step=2.ckpt", 0.9), ("last.ckpt", None)):
            weights = torch.randint(256, (size,), dtype=torch.uint8, generator=generator)
            write_checkpoint(version / "checkpoints" / name, 2, score, weights)
        for name in ("metrics.csv", "config.yaml", "test_episodes.csv"):
            (version / name).write_text(f"{name} of {run.name}")
        (run.folder / "log.txt").write_text("old " * LOG_TAIL + "new")
    return runs


SMALL = {f"{name}/{file}" for name in "abc" for file in ("version_0/metrics.csv", "version_0/config.yaml", "log.txt")}
LAST, BEST = ({f"{name}/version_0/checkpoints/{file}" for name in "abc"} for file in ("last.ckpt", "best-step=2.ckpt"))


@pytest.mark.parametrize(
    ("most", "checkpoints"),
    [
        (float("inf"), LAST | BEST),
        (1_200_000, LAST | {f"{run}/version_0/checkpoints/best-step=2.ckpt" for run in "cb"}),
        (500_000, {f"{run}/version_0/checkpoints/last.ckpt" for run in "cb"}),
        (280_000, {"c/version_0/checkpoints/last.ckpt"}),
    ],
)
def test_as_much_is_packed_as_there_is_room_for(
    most: float, checkpoints: set[str], trained: list[Run], tmp_path: Path
) -> None:
    left_out = pack(trained, tmp_path / "runs", tmp_path / "runs.tgz", most)
    content = packed(tmp_path / "runs.tgz")
    assert set(content) == SMALL | checkpoints
    assert len(left_out) == 6 - len(checkpoints)
    assert (tmp_path / "runs.tgz").stat().st_size <= most
    assert all(content[name] == (tmp_path / "runs" / name).read_bytes() for name in checkpoints)
    assert content["a/log.txt"] == (b"old " * LOG_TAIL + b"new")[-LOG_TAIL:]


def test_the_checkpoint_of_a_training_in_progress_is_left_out(trained: list[Run], tmp_path: Path) -> None:
    with trained[1].lock():
        left_out = pack(trained, tmp_path / "runs", tmp_path / "runs.tgz", float("inf"))
    assert left_out == [f"{trained[1].folder}: is being trained; stop it for its checkpoint"]
    assert set(packed(tmp_path / "runs.tgz")) == SMALL | {name for name in LAST | BEST if name[0] != "b"}


# ---- results --------------------------------------------------------------------------------------------------------


@pytest.fixture
def recipes(tmp_path: Path) -> Path:
    also = f"# Also:     5_shot: --data.k_shot 5\n{CONFIG}"
    return experiments(tmp_path, maml_a=also, maml_b=CONFIG, maml_c=CONFIG)


def test_results_are_taken_over_from_folders_and_from_single_files(recipes: Path, tmp_path: Path) -> None:
    there, here = tmp_path / "there", tmp_path / "here"
    command = "python -m lightning_meta test --config maml_a.yaml --data.k_shot 5 --ckpt_path best.ckpt"
    leave(there / "deep/maml_a/version_0/result.json")
    leave(there / "deep/maml_a/version_1/result.json", command=command, k_shot=5)
    leave(there / "maml_b.result.json", experiment="maml_b", trained_steps=2)
    seeded = "python -m lightning_meta fit --config configs/experiment/maml_c.yaml --seed_everything 3"
    leave(there / "seed_3/maml_c/version_0/result.json", experiment="maml_c", command=seeded, seed=3)
    assert take_over(here, recipes, there, "--seeds", "0,3") == 0
    found = {path.name: json.loads(path.read_text()) for path in (here / "results").iterdir()}
    assert {name: (result["k_shot"], result["trained_steps"]) for name, result in found.items()} == {
        "maml_a.json": (1, 4), "maml_a_5_shot.json": (5, 4), "maml_b.json": (1, 2), "maml_c_seed3.json": (1, 4),
    }  # fmt: skip
    first, second, third = machine(here, recipes)
    assert first.missing() == []
    assert second.result() is None, "a part of a training"
    assert third.result() is None


def test_what_is_of_other_settings_is_refused_by_name_and_the_others_come(
    recipes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there, here = tmp_path / "there", tmp_path / "here"
    leave(there / "maml_a/version_0/result.json", n_way=20)
    other = yaml.safe_load(CONFIG)
    other["model"]["init_args"] |= {"inner_lr": 0.5, "first_order": False}
    leave(there / "maml_b/version_0/result.json", experiment="maml_b")
    (there / "maml_b/version_0/config.yaml").write_text(yaml.safe_dump(other))
    leave(there / "maml_c.result.json", experiment="maml_c")
    (there / "broken.result.json").write_text("{")
    (there / "maml_c").mkdir()
    (there / "maml_c/version_0").mkdir()
    (there / "maml_c/version_0/result.json").write_text('{"acc": 1}')
    assert take_over(here, recipes, there) == 1
    errors = [line for line in capsys.readouterr().out.splitlines() if line.startswith("error: ")]
    assert errors == [
        f"error: {there}/broken.result.json: broken is no experiment here; --seeds names seeds.",
        f"error: {there}/maml_a/version_0/result.json is not of {recipes}/maml_a.yaml as it is now: n_way 20 -> 5.",
        f"error: {there}/maml_b/version_0/result.json is not of {recipes}/maml_b.yaml as it is now: "
        "--model.inner_lr 0.5 -> 0.1.",
        f"error: {there}/maml_c/version_0/result.json is not what a run leaves: KeyError 'command'.",
    ]
    assert [path.name for path in (here / "results").iterdir()] == ["maml_c.json"]


def test_a_score_that_is_no_number_is_refused(
    recipes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    leave(tmp_path / "there/maml_a/version_0/result.json", acc=float("nan"))
    assert take_over(tmp_path / "here", recipes, tmp_path / "there") == 1
    assert "error: the acc of maml_a is nan, so it is no result." in capsys.readouterr().out
    assert not (tmp_path / "here/results").exists()


def test_a_result_that_is_there_stays(recipes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    there, here = tmp_path / "there", tmp_path / "here"
    for scores in (0.7, 0.8):
        leave(there / "maml_b.result.json", experiment="maml_b", acc=scores)
        assert take_over(here, recipes, there) == 0
    leave(there / "maml_b.result.json", experiment="maml_b", trained_steps=3)
    assert take_over(here, recipes, there, "maml_b") == 0
    assert json.loads((here / "results/maml_b.json").read_text())["acc"] == 0.7
    assert capsys.readouterr().out.count("is there already") == 2


def test_what_is_no_folder_and_no_archive_is_refused(recipes: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    for source in (tmp_path / "file", tmp_path / "nothing"):
        with pytest.raises(Exception, match=r"is no folder, and no .tgz that --export has made"):
            main(["--experiments", str(recipes), "--import", str(source)])


# ---- trainings ------------------------------------------------------------------------------------------------------

TINY = """
trainer:
  accelerator: cpu
  max_steps: 12
  max_epochs: -1
  num_sanity_val_steps: 0
  enable_model_summary: false
  log_every_n_steps: 1
  inference_mode: false
  callbacks:
    - class_path: lightning_meta.callbacks.EpisodicCheckpoint
    - class_path: lightning_meta.callbacks.RunSummary
data:
  class_path: tests.conftest.Blobs
  init_args: {n_way: 3, k_shot: 2, n_query: 2, steps_per_epoch: 2, val_episodes: 5, test_episodes: 7}
model:
  class_path: lightning_meta.algorithms.MAML
  init_args:
    backbone:
      class_path: lightning_meta.backbones.Conv4
      init_args: {image_size: 16, hidden: 6}
    inner_lr: 1e-1
    optimizer:
      class_path: torch.optim.Adam
      init_args: {lr: 0.03}
"""


def train(run: Run, *words: str) -> Path:
    """Begin or go on as the queue does, in this process; the newest folder of the run."""
    cli.main([*run.evaluations[0].command("cpu"), *words])
    return run.last_checkpoint.parent.parent


@pytest.fixture(scope="module")
def whole_and_stopped(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """The experiment, a whole training, and one stopped elsewhere in an epoch, after 7 of the 12 steps."""
    folder = tmp_path_factory.mktemp("machines")
    recipe = experiments(folder, tiny=TINY)
    for place, words in {"whole": [], "stopped": ["--trainer.max_steps", "7", "--test_after_fit", "false"]}.items():
        (run,) = machine(folder / place, recipe)
        run.check_settings()
        train(run, *words)
    return recipe, folder / "whole", folder / "stopped"


def load(version: Path) -> dict[str, Any]:
    return torch.load(version / "checkpoints/last.ckpt", weights_only=True)


def rows(version: Path) -> list[dict[str, str]]:
    with (version / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_training_goes_on_elsewhere_to_the_same_end(
    whole_and_stopped: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    """Weights, optimizer, logged numbers, the best checkpoint and its test: as if it had not been stopped or moved."""
    recipe, whole, stopped = whole_and_stopped
    pack(machine(stopped, recipe), stopped / "runs", tmp_path / "runs.tgz", float("inf"))
    assert take_over(tmp_path, recipe, tmp_path / "runs.tgz") == 0
    (run,), (there,) = machine(tmp_path, recipe), machine(whole, recipe)
    assert run.last_checkpoint == run.folder / "version_0/checkpoints/last.ckpt"
    moved, original = train(run), there.folder / "version_0"
    assert moved == run.folder / "version_0", "it goes on in its folder"
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "global_step"):
        assert_equal(load(moved)[part], load(original)[part], part)
    assert rows(moved) == rows(original)
    results = [json.loads((version / "result.json").read_text()) for version in (moved, original)]
    moved_result, result = ([found[key] for key in ("outer_steps", "acc", "acc_ci95")] for found in results)
    assert moved_result == result
    assert result[0] < 7, "the best checkpoint must be one that was moved, for this test"
    assert sorted(path.name for path in moved.glob("checkpoints/*")) == sorted(
        path.name for path in original.glob("checkpoints/*")
    )


def test_a_lone_checkpoint_goes_on_too(whole_and_stopped: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """Without its best one, which is then the best of the validations to come."""
    recipe, whole, stopped = whole_and_stopped
    (there,) = machine(stopped, recipe)
    (tmp_path / "flat").mkdir()
    shutil.copy(there.last_checkpoint, tmp_path / "flat/tiny.last.ckpt")
    assert take_over(tmp_path, recipe, tmp_path / "flat") == 0
    (run,) = machine(tmp_path, recipe)
    version = train(run)
    assert_equal(load(version)["state_dict"], load(machine(whole, recipe)[0].folder / "version_0")["state_dict"])
    assert json.loads((version / "result.json").read_text())["outer_steps"] in (8, 10, 12)


def test_a_checkpoint_is_refused_or_left_with_a_reason(
    whole_and_stopped: tuple[Path, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, whole, stopped = whole_and_stopped
    (there,) = machine(stopped, recipe)
    other = experiments(tmp_path, tiny=TINY.replace("inner_lr: 1e-1", "inner_lr: 0.2"))
    (tmp_path / "flat").mkdir()
    shutil.copy(there.last_checkpoint, tmp_path / "flat/tiny.last.ckpt")
    shutil.copytree(there.last_checkpoint.parents[1], tmp_path / "bare/tiny/version_0")
    assert (there.folder / "settings.json").is_file()
    for source in (stopped, tmp_path / "bare", tmp_path / "flat"):
        assert take_over(tmp_path, other, source) == 1
        assert "as it is now: --model.inner_lr 0.1 -> 0.2." in capsys.readouterr().out
    assert not machine(tmp_path, other)[0].last_checkpoint

    (tmp_path / "flat/tiny.last.ckpt").write_bytes(b"damaged")
    assert take_over(tmp_path, recipe, tmp_path / "flat") == 1
    assert "(7 bytes) cannot be read" in capsys.readouterr().out

    assert take_over(whole, recipe, stopped) == 0
    assert "stays, it is not behind step 7" in capsys.readouterr().out
    (run,) = machine(tmp_path, recipe)
    with run.lock():
        assert take_over(tmp_path, recipe, stopped) == 1
        assert "is being trained; stop that first." in capsys.readouterr().out
    for _ in range(2):
        assert take_over(tmp_path, recipe, stopped) == 0
    assert [path.name for path in run.folder.glob("version_*")] == ["version_0"]


def test_files_are_found_by_the_run_that_left_them(tmp_path: Path) -> None:
    for name in (
        "a/version_0/result.json", "a/version_0/checkpoints/last.ckpt", "a/settings.json", "a/version_0/pictures/x.png",
        "deep/seed_3/b/version_2/metrics.csv", "c.metrics.csv", "c.last.ckpt", "other.txt", "results/d.json",
    ):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert {left.name: sorted(left.files) for left in find(tmp_path)} == {
        "a": ["last.ckpt", "result.json", "settings.json"],
        "b_seed3": ["metrics.csv"],
        "c": ["last.ckpt", "metrics.csv"],
    }
