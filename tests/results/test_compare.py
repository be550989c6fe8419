"""Comparison of runs, on result files whose answers are known."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lightning_meta.errors import DataError
from lightning_meta.results.compare import comparison, folders, load, main, pool, rows

A, B = [0.5, 0.7, 0.9, 0.6], [0.6, 0.7, 1.0, 0.8]


def run(root: Path, name: str, scores: list[float], **changes: Any) -> Path:
    folder = root / name
    folder.mkdir(parents=True)
    result = dict(
        experiment="maml_glyphs_5w1s", command="python -m lightning_meta fit --config configs/experiment/x.yaml",
        data="Glyphs", metric="acc", n_way=5, k_shot=1, n_query=15, episode_seed=0, seed=0, episodes=len(scores),
        episodes_digest="5f3a",
    ) | changes  # fmt: skip
    (folder / "result.json").write_text(json.dumps(result))
    with (folder / "test_episodes.csv").open("w", newline="") as file:
        rows_of_file = [[i, score, 1.0] for i, score in enumerate(scores)]
        csv.writer(file).writerows([["episode", result["metric"], "loss"], *rows_of_file])
    return folder


def ci95(values: list[float]) -> float:
    return 1.96 * np.std(values, ddof=1) / len(values) ** 0.5


def test_difference_is_paired_over_episodes(tmp_path: Path) -> None:
    folders = [run(tmp_path, "a", A), run(tmp_path, "b", B, experiment="protonet_glyphs_5w1s")]
    first, second = rows(pool([load(folder) for folder in folders]))
    assert (first.mean, first.ci95) == pytest.approx((np.mean(A), ci95(A)))
    assert first.difference is None
    differences = [b - a for a, b in zip(A, B, strict=True)]
    assert (second.difference, second.difference_ci95) == pytest.approx((np.mean(differences), ci95(differences)))
    assert second.difference_ci95 < 0.5 * (first.ci95**2 + second.ci95**2) ** 0.5  # pairing pays: the runs correlate


def test_seeds_of_one_method_are_pooled(tmp_path: Path) -> None:
    command = "python -m lightning_meta fit --config x.yaml --seed_everything 1"
    (row,) = rows(pool([load(run(tmp_path, "a", A)), load(run(tmp_path, "b", B, seed=1, command=command))]))
    episodes = [(a + b) / 2 for a, b in zip(A, B, strict=True)]
    assert row.seeds == 2
    assert (row.mean, row.ci95) == pytest.approx((np.mean(episodes), ci95(episodes)))
    assert row.seeds_ci95 == pytest.approx(12.7062 / 1.96 * ci95([np.mean(A), np.mean(B)]), rel=1e-5), "Student's t"


@pytest.mark.parametrize("option", ["--model.inner_steps 5", "--model.inner_steps=5"])
def test_other_settings_are_another_method(option: str, tmp_path: Path) -> None:
    command = f"python -m lightning_meta fit --config x.yaml {option}"
    methods = pool([load(run(tmp_path, "a", A)), load(run(tmp_path, "b", B, command=command))])
    assert [method.name for method in methods] == ["maml_glyphs_5w1s", "maml_glyphs_5w1s --model.inner_steps 5"]


def test_other_episodes_have_no_difference_and_it_is_said_why(tmp_path: Path) -> None:
    _, second = rows(pool([load(run(tmp_path, "a", A)), load(run(tmp_path, "b", B, n_query=1, episode_seed=3))]))
    assert second.difference is None
    assert second.why_no_difference == "n_query 1 against 15, episode_seed 3 against 0"


def test_other_data_under_the_same_settings_are_not_paired(tmp_path: Path) -> None:
    """As after `--data.root` or `--data.image_size`, which no other fact tells."""
    other = run(tmp_path, "b", B, episodes_digest="91bc")
    _, second = rows(pool([load(run(tmp_path, "a", A)), load(other)]))
    assert second.difference is None
    assert second.why_no_difference == "other episodes of the same shape: other data, or other settings of them"


def test_a_result_without_a_digest_is_neither_paired_nor_pooled(tmp_path: Path) -> None:
    old = [run(tmp_path, name, B, episodes_digest=None, seed=seed) for seed, name in enumerate("bc", 1)]
    first, *others = rows(pool([load(folder) for folder in (run(tmp_path, "a", A), *old)]))
    assert [row.seeds for row in (first, *others)] == [1, 1, 1]
    for row, folder in zip(others, old, strict=True):
        assert row.difference is None
        assert row.why_no_difference == f"not known to be the same episodes: no digest of them in {folder}; test again"


def test_rows_are_joined_by_episode_not_by_place(tmp_path: Path) -> None:
    folder = run(tmp_path, "b", B, experiment="protonet_glyphs_5w1s")
    head, *lines = (folder / "test_episodes.csv").read_text().splitlines()
    (folder / "test_episodes.csv").write_text("\n".join([head, *reversed(lines)]) + "\n")
    _, second = rows(pool([load(run(tmp_path, "a", A)), load(folder)]))
    assert second.difference_ci95 == pytest.approx(ci95([b - a for a, b in zip(A, B, strict=True)]))
    assert (second.episodes, second.seeds) == (4, 1)
    (folder / "test_episodes.csv").write_text("\n".join([head, *lines[:3], lines[0]]) + "\n")
    with pytest.raises(DataError, match=r"4 rows of 3 episodes, result\.json 4"):
        load(folder)


def test_command_writes_table_csv_and_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [run(tmp_path, "a", A), run(tmp_path, "b", B, experiment="protonet_glyphs_5w1s")]
    main([*map(str, folders), "--out", str(tmp_path / "out")])
    printed = capsys.readouterr().out
    assert "| `protonet_glyphs_5w1s` | 1 | 4 | 77.50 ± 16.74 | - | 10.00 ± 8.00 |" in printed
    assert (tmp_path / "out" / "comparison.md").read_text() in printed + "\n"
    with (tmp_path / "out" / "comparison.csv").open(newline="") as file:
        assert [float(row["mean"]) for row in csv.DictReader(file)] == pytest.approx([0.675, 0.775])
    assert (tmp_path / "out" / "comparison.png").stat().st_size > 5000


def test_figure_marks_each_mean_and_difference(tmp_path: Path) -> None:
    folders = [run(tmp_path, "a", A), run(tmp_path, "b", B, experiment="protonet_glyphs_5w1s")]
    means, differences = comparison(rows(pool([load(folder) for folder in folders])), "acc").axes
    assert [container.lines[0].get_xdata()[0] for container in means.containers] == pytest.approx([67.5, 77.5])
    assert [container.lines[0].get_xdata()[0] for container in differences.containers] == pytest.approx([10.0])


def test_the_figure_has_no_side_for_differences_where_there_are_none(tmp_path: Path) -> None:
    (means,) = comparison(rows(pool([load(run(tmp_path, "a", A))])), "acc").axes
    assert len(means.containers) == 1


def test_the_seeds_of_a_group_that_is_not_finished_are_those_that_were_tested(tmp_path: Path) -> None:
    (tmp_path / "group" / "seed_1" / "version_0").mkdir(parents=True)
    with pytest.raises(DataError, match=r"group: none of its 1 seeds has been tested; wait"):
        folders(tmp_path / "group")
    tested = run(tmp_path / "group" / "seed_0", "version_0", A)
    assert folders(tmp_path / "group") == [tested]


def test_mistakes_are_named(tmp_path: Path) -> None:
    good = run(tmp_path, "a", A)
    with pytest.raises(DataError, match=r"nowhere does not exist; give the folder of a run"):
        load(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"no result\.json and no test_episodes\.csv"):
        load(tmp_path)
    with pytest.raises(DataError, match=r"4 rows of 4 episodes, result\.json 9"):
        load(run(tmp_path, "b", A, episodes=9))
    with pytest.raises(DataError, match=r"2 times, with training seeds \[0, 0\]"):
        pool([load(good), load(good)])
    with pytest.raises(DataError, match="acc and mse"):
        main([str(good), str(run(tmp_path, "c", A, metric="mse"))])
