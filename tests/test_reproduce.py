"""`reproduce`: which experiments it chooses, and which results it takes for done."""

import json
from pathlib import Path
from typing import Any

import pytest

from lightning_meta.errors import ConfigError
from lightning_meta.reproduce import Run, find_runs

CONFIG = """# An experiment.
trainer: {max_steps: 4}
data: {init_args: {n_way: 5, test_episodes: 7}}
model: {init_args: {inner_lr: 0.1}}
"""


def runs(folder: Path, *patterns: str, seeds: tuple[int, ...] = (0,), extra: tuple[str, ...] = ()) -> list[Run]:
    return find_runs(patterns, folder, folder / "runs", folder / "results", seeds, extra)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("maml_a", "maml_b", "protonet_a"):
        (tmp_path / f"{name}.yaml").write_text(CONFIG)
    return tmp_path


def test_experiments_are_named_by_patterns_and_seeds(folder: Path) -> None:
    assert [run.name for run in runs(folder)] == ["maml_a", "maml_b", "protonet_a"]
    assert [run.name for run in runs(folder, "protonet_a", "maml_*")] == ["protonet_a", "maml_a", "maml_b"]
    assert [run.name for run in runs(folder, "maml_a", seeds=(0, 1))] == ["maml_a", "maml_a_seed1"]
    with pytest.raises(ConfigError, match=r"no experiment of .* is named mmal_a; near: maml_a"):
        runs(folder, "mmal_a")


def written(run: Run, **changes: Any) -> Run:
    """The run with a result file."""
    command = f"python -m lightning_meta fit --config {run.config}"
    result = {"command": command, "outer_steps": 3, "trained_steps": 4, "episodes": 7}
    run.result_file.parent.mkdir(exist_ok=True)
    run.result_file.write_text(json.dumps(result | changes))
    return run


def test_a_result_counts_when_it_is_of_the_whole_training_with_the_same_settings(folder: Path) -> None:
    (run,) = runs(folder, "maml_a")
    assert run.result() is None
    assert written(run).result(), "the best checkpoint was not the last one"
    command = f"python -m lightning_meta fit --config {run.config}"
    assert written(run, command=f"{command} --trainer.logger csv.yaml --trainer.accelerator cpu").result()
    assert written(run, command=f"{command} --data.n_way 5 --model.init_args.inner_lr=0.1").result(), "as the config"
    assert written(run, trained_steps=3).result() is None
    assert written(run, episodes=6).result() is None
    assert written(run, command=f"{command} --data.n_way 20").result() is None
    (shorter,) = runs(folder, "maml_a", extra=("--trainer.max_steps", "3"))
    assert written(run, trained_steps=3).result() is None
    assert shorter.result()
    (other,) = runs(folder, "maml_a", extra=("--data.n_way=20",))
    assert other.result() is None
    assert written(other, command=f"{command} --data.n_way 20").result()
