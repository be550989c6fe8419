import json
from pathlib import Path

import pytest

from lightning_meta.results.table import options, row, table

RESULT = {
    "experiment": "maml_glyphs_5w1s",
    "command": "python -m lightning_meta fit --config a.yaml --model.inner_steps 3 --trainer.logger csv.yaml",
    "metric": "acc",
    "acc": 0.89714,
    "acc_ci95": 0.0059,
    "episodes": 600,
    "n_way": 5,
    "k_shot": 1,
    "n_query": 15,
    "normalisation": "transductive",
    "eval_inner_steps": 3,
    "outer_steps": 400,
    "fit_seconds": 99.0,
    "hardware": "a CPU",
}


EXPERIMENT = "# MAML.\n# Paper:    98.7 (table 1)\ntrainer: {max_steps: 60000}\n"


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    (path := tmp_path / "maml_glyphs_5w1s.yaml").write_text(EXPERIMENT)
    return path


def test_row_states_score_interval_and_protocol(experiment: Path) -> None:
    assert row(RESULT, experiment) == (
        "| `maml_glyphs_5w1s` | `--model.inner_steps 3` | 89.71 ± 0.59 % | 98.7 (table 1) "
        "| 600 episodes, 5-way 1-shot, 15 query per class | transductive | 3 | 400 of 60,000 | 2 min | a CPU |"
    )
    regression = RESULT | {"metric": "mse", "mse": 0.5662, "mse_ci95": 0.0405, "n_way": 1, "fit_seconds": None}
    experiment.write_text(EXPERIMENT.replace("# Paper:", "# Title:"))
    assert "| 0.566 ± 0.041 mse | - | 600 episodes, 1-shot, 15 query points |" in row(regression, experiment)


def test_steps_are_those_of_the_training_not_of_its_best_checkpoint(experiment: Path) -> None:
    assert "| 1,500 of 60,000 |" in row(RESULT | {"trained_steps": 1500}, experiment)
    assert "| 3 | - | 2 min |" in row(RESULT | {"outer_steps": None, "trained_steps": None}, experiment), "untrained"


def test_options_are_what_a_command_changes() -> None:
    command = (
        "python -m lightning_meta test --config a.yaml --data.n_way 9 --ckpt_path b.ckpt --data.train '{n_way: 5}'"
    )
    assert options(command) == "--data.n_way 9 --data.train '{n_way: 5}'"


def test_experiments_without_a_result_are_named(experiment: Path, tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "a.json").write_text(json.dumps(RESULT))
    (tmp_path / "anil_glyphs_5w1s.yaml").write_text("# ANIL.\n")
    made = table(tmp_path)
    assert row(RESULT, experiment) in made
    assert made.endswith("Not run: `anil_glyphs_5w1s`.")


def test_table_has_a_row_for_each_committed_result() -> None:
    """The table in the results page is what the command in it makes."""
    folder = Path(__file__).parents[2] / "configs" / "experiment"
    made = table(folder)
    assert made in (folder / "README.md").read_text()
    assert made.count("\n| `") == len(list((folder / "results").glob("*.json"))) > 0
