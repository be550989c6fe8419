import json
from pathlib import Path

from lightning_meta.benchmark.results_table import row, table

RESULT = {
    "experiment": "maml_glyphs_5w1s",
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


def test_row_states_score_interval_and_protocol() -> None:
    assert row(RESULT) == (
        "| `maml_glyphs_5w1s` | 89.71 ± 0.59 % | 600 episodes, 5-way 1-shot, 15 query per class | transductive | 3 "
        "| 400 | 2 min | a CPU |"
    )
    regression = RESULT | {"metric": "mse", "mse": 0.5662, "mse_ci95": 0.0405, "n_way": 1, "fit_seconds": None}
    assert "| 0.566 ± 0.041 mse | 600 episodes, 1-shot, 15 query points |" in row(regression)


def test_table_has_a_row_for_each_committed_result() -> None:
    """The table in the results page is what the command in it makes."""
    folder = Path(__file__).parents[2] / "configs" / "experiment"
    paths = sorted((folder / "results").glob("*.json"))
    assert paths
    made = table(paths)
    assert len(made.splitlines()) == 2 + len(paths)
    assert made in (folder / "README.md").read_text()
    for path in paths:
        assert (folder / f"{json.loads(path.read_text())['experiment']}.yaml").is_file()
