import json
import re
from pathlib import Path

import pytest

from lightning_meta.errors import DataError
from lightning_meta.results.pages import EXPERIMENTS, PLACE, VALUE, main, pages, refreshed
from lightning_meta.results.table import Results, options, paper_figure, row, table

ROOT = Path(__file__).parents[2]

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
    assert row(RESULT | {"trained_with": "a GPU"}, experiment).endswith("| 2 min | a GPU |")
    regression = RESULT | {"metric": "mse", "mse": 0.5662, "mse_ci95": 0.0405, "n_way": 1, "fit_seconds": None}
    experiment.write_text(EXPERIMENT.replace("# Paper:", "# Title:"))
    assert "| 0.5662 ± 0.0405 mse | - | 600 episodes, 1-shot, 15 query points |" in row(regression, experiment)


def test_row_of_a_bilevel_problem_says_what_was_judged(experiment: Path) -> None:
    shape = ("n_way", "k_shot", "n_query")
    carried = {name: value for name, value in RESULT.items() if name not in shape}
    carried |= {"data": "TwoMoons", "episodes": 10, "judged_on": 1000, "inner_steps": None}
    assert "| 1000 examples of TwoMoons, 10 parts | transductive |" in row(carried, experiment)
    assert "| 1000 examples of TwoMoons, 10 trainings of 200 steps |" in row(carried | {"inner_steps": 200}, experiment)


def test_row_of_a_world_says_which_and_how_long(experiment: Path) -> None:
    shape = ("n_way", "k_shot", "n_query")
    played = {name: value for name, value in RESULT.items() if name not in shape}
    played |= {"world": "5 arms", "episodes": 50, "rounds": 0, "trajectories": 1, "horizon": 10}
    assert "| 50 tasks, 5 arms, 1 x 10 steps | transductive |" in row(played, experiment)
    assert "| 50 tasks, 5 arms, 2 of adaptation, 1 x 10 steps |" in row(played | {"rounds": 2}, experiment)


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
    made = table(Results(tmp_path))
    assert row(RESULT, experiment) in made
    assert made.endswith("Not run: `anil_glyphs_5w1s`.")


def test_a_table_is_of_all_families(experiment: Path, tmp_path: Path) -> None:
    """In the order of the names of result files."""
    text = experiment.read_text()
    for family, name in (("compare", "protonet"), ("memory", "mann")):
        (tmp_path / family / "results").mkdir(parents=True)
        (tmp_path / family / f"{name}.yaml").write_text(text)
        (tmp_path / family / "results" / f"{name}.json").write_text(json.dumps(RESULT | {"experiment": name}))
    lines = table(Results(tmp_path)).splitlines()
    assert [line.split(" | ")[0] for line in lines[2:4]] == ["| `mann`", "| `protonet`"]
    assert lines[-1] == "Not run: `maml_glyphs_5w1s`."


def test_a_figure_of_the_paper_belongs_to_a_way_and_a_shot(tmp_path: Path) -> None:
    header = "# Paper:    98.1 (table 1)\n# Paper 5w5s: 98.9\n"
    (config := tmp_path / "a.yaml").write_text(
        header + "data: {class_path: Omniglot, init_args: {n_way: 5, k_shot: 1, test: {n_query: 3}}}\n"
    )
    assert paper_figure(config, RESULT) == "98.1 (table 1)"
    assert paper_figure(config, RESULT | {"k_shot": 5}) == "98.9"
    assert paper_figure(config, RESULT | {"n_way": 20}) == "-"


@pytest.fixture
def folder(tmp_path: Path, experiment: Path) -> Path:
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "maml.json").write_text(json.dumps(RESULT))
    return tmp_path


PAGE = "Above.\n<!-- results: maml -->\nold\n<!-- end of results -->\nBelow.\n"


def test_a_page_has_the_rows_that_it_names(folder: Path) -> None:
    made = refreshed(PAGE, Results(folder))
    line = "| `maml` | 89.71 ± 0.59 % | 98.7 | transductive, 15 queries | 400 of 60,000 |\n"
    assert made.startswith("Above.\n<!-- results: maml -->\n\n| result |") and made.endswith(
        f"{line}\n<!-- end of results -->\nBelow.\n"
    )
    assert refreshed(made, Results(folder)) == made
    with pytest.raises(DataError, match=r"has no result file anil\.json"):
        refreshed(PAGE.replace("maml", "anil"), Results(folder))


def test_a_number_in_a_sentence_is_that_of_its_result(folder: Path) -> None:
    result = RESULT | {"logs": {"mse_5": 0.12345, "mse_5_ci95": 0.01, "acc_presentation_2": 0.5, "lr": 0.1}}
    (folder / "results" / "maml.json").write_text(json.dumps(result))
    sentence = "It reads <!-- value: maml -->1<!-- end -->, and <!-- value: maml mse_5 --><!-- end --> after five."
    assert refreshed(sentence, Results(folder)) == (
        "It reads <!-- value: maml -->89.71 ± 0.59 %<!-- end -->, "
        "and <!-- value: maml mse_5 -->0.1235 ± 0.0100<!-- end --> after five."
    )
    with pytest.raises(DataError, match=r"has no result file anil\.json"):
        refreshed(sentence.replace("maml", "anil"), Results(folder))
    with pytest.raises(DataError, match=r"maml\.json has no value lr with an interval; it has acc, mse_5\."):
        refreshed(sentence.replace("mse_5", "lr"), Results(folder))


def seeds(folder: Path, *accuracies: float, of: str = "maml{}.json", **changes: object) -> None:
    """Result files of a training with the seeds 0, 1, ..."""
    for seed, acc in enumerate(accuracies):
        command = f"{RESULT['command']} --seed_everything {seed}" if seed else RESULT["command"]
        own = {"acc": acc, "acc_ci95": 0.1, "seed": seed, "command": command, "outer_steps": 300 + seed}
        own |= {"trained_steps": 400, "fit_seconds": 60.0 + 60 * seed, "logs": {"ece": acc / 10, "ece_ci95": 0.5}}
        path = folder / "results" / of.format(f"_seed{seed}" if seed else "")
        path.write_text(json.dumps(RESULT | own | changes))


def test_the_seeds_of_a_training_are_one_row_with_the_interval_over_them(folder: Path, experiment: Path) -> None:
    """4.302653 is the published 97.5 % quantile of Student's t with two degrees of freedom."""
    seeds(folder, 0.88, 0.90, 0.92)
    half = f"{100 * 4.302653 * 0.02 / 3**0.5:.2f}"
    made = table(Results(folder))
    assert made.count("| `maml_glyphs_5w1s` |") == 1
    assert f"| `maml_glyphs_5w1s` | `--model.inner_steps 3` | 90.00 ± {half} % over 3 seeds |" in made
    assert "| 400 of 60,000 | 2 min |" in made
    page = PAGE + "<!-- value: maml --><!-- end --> <!-- value: maml_seed1 --><!-- end --> <!-- value: maml ece -->"
    page = refreshed(page + "<!-- end -->", Results(folder))
    assert f"| `maml` | 90.00 ± {half} % over 3 seeds | 98.7 |" in page
    assert f"90.00 ± {half} % over 3 seeds<!-- end --> <!-- value: maml_seed1 -->90.00 ± 10.00 %<!-- end -->" in page
    assert f"<!-- value: maml ece -->0.0900 ± {0.1 * 4.302653 * 0.02 / 3**0.5:.4f} over 3 seeds" in page

    seeds(folder, 0.7, 0.8, of="maml{}_5_shot.json", k_shot=5)
    assert {name: result.get("seeds") for name, result in Results(folder).over_seeds.items()} == {
        "maml": 3,
        "maml_5_shot": 2,
    }
    seeds(folder, 0.88, 0.90, trained_steps=200)
    names = ["maml", "maml_5_shot", "maml_seed1", "maml_seed2"]
    assert sorted(Results(folder).over_seeds) == names, "a shorter training is none of its seeds"


def test_every_interval_in_the_pages_is_a_result_file_s() -> None:
    """But for those of side measurements, which say that no file holds them, and what commands print or write."""
    written = re.compile(rf"{PLACE.pattern}|{VALUE.pattern}|<!-- heads: .*?<!-- end of heads -->|```.*?```", re.DOTALL)
    texts = {page: page.read_text() for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))}
    del texts[ROOT / "docs" / "side_measurements.md"]
    assert len(texts) > 15
    by_hand = {page.name: re.findall(r"\d ± \d\S*", written.sub("", text)) for page, text in texts.items()}
    assert {name: found for name, found in by_hand.items() if found} == {}


def test_pages_out_of_date_are_named_and_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (page := folder / "page.md").write_text(PAGE)
    monkeypatch.setattr("lightning_meta.results.pages.EXPERIMENTS", folder)
    with pytest.raises(DataError, match=r"page\.md: out of date"):
        main([str(page), "--check"])
    assert page.read_text() == PAGE
    main([str(page)])
    assert page.read_text() == refreshed(PAGE, Results(folder))
    main([str(page), "--check"])
    assert "as the results make them" in capsys.readouterr().out


def test_committed_pages_are_up_to_date(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert {page.name for page in pages()} >= {"README.md", "results.md"}
    main(["--check"])
    rows = Path("docs/results.md").read_text().count("\n| `")
    assert rows >= len(Results(EXPERIMENTS).over_seeds) > 0


def test_a_bilevel_row_says_what_it_was_judged_on() -> None:
    """Parts of the examples, or trainings from their beginning."""
    experiment = ROOT / "configs" / "experiment" / "bilevel" / "dada_moved_digits.yaml"
    result = json.loads((experiment.parent / "results" / "dada_moved_digits.json").read_text())
    assert "| 2000 examples of MNISTTest, 10 parts |" in row(result, experiment)
    anew = row(result | {"inner_steps": 50}, experiment)
    assert "| 2000 examples of MNISTTest, 10 trainings of 50 steps |" in anew
