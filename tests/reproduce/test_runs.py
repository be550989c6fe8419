"""Which experiments are chosen, which results they owe, and which result files are taken for those."""

import json
from pathlib import Path
from typing import Any

import pytest

from lightning_meta.errors import ConfigError
from lightning_meta.reproduce.runs import (
    Evaluation,
    Run,
    contradictions,
    differences,
    find_runs,
    options,
    recipe_of,
    settings_of,
)
from lightning_meta.results.table import settings
from tests.conftest import write_checkpoint

CONFIG = """# An experiment.
trainer: {max_steps: 4}
data: {class_path: tests.conftest.Blobs, init_args: {n_way: 5, test_episodes: 7}}
model: {class_path: lightning_meta.algorithms.MAML, init_args: {inner_lr: 0.1}}
"""
RESULT = {
    "experiment": "maml_a", "command": "", "algorithm": "MAML", "metric": "acc", "acc": 0.5, "acc_ci95": 0.1,
    "episodes": 7, "n_way": 5, "k_shot": 1, "n_query": 15, "normalisation": "transductive", "eval_inner_steps": 1,
    "outer_steps": 3, "trained_steps": 4, "fit_seconds": 60.0, "hardware": "a CPU", "seed": 0,
}  # fmt: skip


def runs(folder: Path, *patterns: str, seeds: tuple[int, ...] = (0,), extra: tuple[str, ...] = ()) -> list[Run]:
    return find_runs(patterns, folder, folder / "runs", folder / "results", seeds, extra)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("maml_a", "maml_b", "protonet_a"):
        (tmp_path / f"{name}.yaml").write_text(CONFIG)
    return tmp_path


def result(evaluation: Evaluation, **changes: Any) -> dict[str, Any]:
    """What a whole run leaves, by default with the settings that are asked for."""
    words = ["--config", str(evaluation.run.config), *evaluation.run.extra, *evaluation.extra]
    command = f"python -m lightning_meta fit {' '.join(words)}"
    return RESULT | {"experiment": evaluation.run.config.stem, "command": command} | changes


def written(evaluation: Evaluation, **changes: Any) -> Evaluation:
    """It with a result file."""
    evaluation.result_file.parent.mkdir(exist_ok=True)
    evaluation.result_file.write_text(json.dumps(result(evaluation, **changes)))
    return evaluation


def test_experiments_are_named_by_patterns_and_seeds(folder: Path) -> None:
    assert [run.name for run in runs(folder)] == ["maml_a", "maml_b", "protonet_a"]
    assert [run.name for run in runs(folder, "protonet_a", "maml_*")] == ["protonet_a", "maml_a", "maml_b"]
    assert [run.name for run in runs(folder, "maml_a", seeds=(0, 1))] == ["maml_a", "maml_a_seed1"]
    with pytest.raises(ConfigError, match=r"named mmal_a\. Did you mean maml_a.*reproduce --list"):
        runs(folder, "mmal_a")


def test_the_header_names_the_seeds_and_the_command_line_others(folder: Path) -> None:
    (folder / "maml_b.yaml").write_text(f"# Seeds:    0,1,4\n{CONFIG}")
    place = folder, folder / "runs", folder / "results"
    stated = find_runs(["maml_*"], *place, None, [])
    assert [run.name for run in stated] == ["maml_a", "maml_b", "maml_b_seed1", "maml_b_seed4"]
    assert stated[2].extra == ("--seed_everything", "1")
    asked = find_runs(["maml_*"], *place, [0, 2], [])
    assert [run.name for run in asked] == ["maml_a", "maml_b", "maml_a_seed2", "maml_b_seed2"], "the first of all first"
    (folder / "maml_b.yaml").write_text(f"# Seeds:    0,0\n{CONFIG}")
    with pytest.raises(ConfigError, match=r"maml_b.yaml, '# Seeds:': --seeds 0,0: give different whole numbers"):
        find_runs(["maml_*"], *place, None, [])


def test_a_result_file_is_beside_its_experiment(tmp_path: Path) -> None:
    places = {"b": "compare", "a": "initialize", "c": "compare"}
    for name, family in places.items():
        (tmp_path / family).mkdir(exist_ok=True)
        (tmp_path / family / f"{name}.yaml").write_text(CONFIG)
    found = find_runs([], tmp_path, tmp_path / "runs", None, [0], [])
    assert {run.name: run.evaluations[0].result_file for run in found} == {
        name: tmp_path / family / "results" / f"{name}.json" for name, family in places.items()
    }
    assert [run.name for run in found] == ["a", "b", "c"]
    written(found[0].evaluations[0])
    assert [run.name for run in find_runs([], tmp_path, tmp_path / "runs", None, [0], []) if run.result()] == ["a"]


def test_every_training_has_a_folder_and_a_result_file_of_its_own(folder: Path) -> None:
    extra = ("--model.inner_lr", "0.2")
    variants = find_runs(["maml_a"], folder, folder / "runs", folder / "results", [0, 3], extra, "fast")
    all_runs = [*runs(folder, "maml_a", seeds=(0, 3)), *variants]
    assert [run.name for run in all_runs] == ["maml_a", "maml_a_seed3", "maml_a_fast", "maml_a_fast_seed3"]
    assert len({run.folder for run in all_runs}) == len({run.evaluations[0].result_file for run in all_runs}) == 4
    assert {run.folder.name for run in all_runs} == {"maml_a"}, "it names the experiment in results"


def test_a_result_counts_when_it_is_of_the_whole_training_with_the_same_settings(folder: Path) -> None:
    (run,) = runs(folder, "maml_a")
    (main,) = run.evaluations
    assert run.result() is None
    assert written(main).result(), "the best checkpoint was not the last one"
    command = f"python -m lightning_meta fit --config {run.config}"
    assert written(main, command=f"{command} --trainer.logger csv.yaml --trainer.accelerator cpu").result()
    assert written(main, command=f"{command} --data.n_way 5 --model.init_args.inner_lr=0.1").result(), "as the config"
    assert written(main, trained_steps=3).result() is None
    assert written(main, episodes=6).result() is None
    assert written(main, command=f"{command} --data.n_way 20").result() is None
    (shorter,) = runs(folder, "maml_a", extra=("--trainer.max_steps", "3"))
    assert written(main, trained_steps=3).result() is None
    assert shorter.result()
    (other,) = runs(folder, "maml_a", extra=("--data.n_way=20",))
    assert other.result() is None
    written(other.evaluations[0], n_way=20)
    assert other.result()


def test_a_result_that_states_another_protocol_than_the_config_does_not_count(folder: Path) -> None:
    """The config was changed after the run; its command does not show it."""
    (run,) = runs(folder, "maml_a")
    (main,) = run.evaluations
    assert main.unlike(result(main)) == []
    assert main.unlike(result(main, n_way=20, algorithm="ANIL")) == ["algorithm ANIL -> MAML", "n_way 20 -> 5"]
    assert written(main, n_way=20).result() is None
    (more,) = runs(folder, "maml_a", extra=("--data.test.n_way", "20"))
    assert more.evaluations[0].unlike(result(more.evaluations[0], n_way=20)) == [], "that of the test counts"


def test_a_result_does_not_count_once_its_config_has_changed(folder: Path) -> None:
    """Other values that neither its command nor its protocol shows; but not where it is shown or how fast it ran."""
    (run,) = runs(folder, "maml_a")
    run.evaluations[0].write(result(run.evaluations[0]))
    assert run.result()
    for name, text, counts in (
        ("shown", CONFIG.replace("max_steps: 4", "max_steps: 4, enable_progress_bar: false"), True),
        ("rate", CONFIG.replace("inner_lr: 0.1", "inner_lr: 0.2"), False),
        ("added", CONFIG.replace("n_way: 5", "n_way: 5, seed: 3"), False),
    ):
        (folder / f"maml_{name}.yaml").write_text(text)
        (other,) = runs(folder, f"maml_{name}")
        renamed = json.loads(run.evaluations[0].result_file.read_text()) | {"experiment": f"maml_{name}"}
        renamed["command"] = renamed["command"].replace("maml_a", f"maml_{name}")
        other.evaluations[0].result_file.write_text(json.dumps(renamed))
        assert bool(other.result()) == counts, name
    assert other.evaluations[0].unlike(renamed) == ["--data.seed None -> 3"]


def test_committed_results_are_of_the_configs_as_they_are() -> None:
    """Those that say so; a result of another recipe is to be made again, or removed."""
    experiments = {path.stem: path for path in Path("configs/experiment").rglob("*.yaml")}
    results = {path: json.loads(path.read_text()) for path in Path("configs/experiment").rglob("results/*.json")}
    stale = {
        path.stem: changed
        for path, result in results.items()
        if "recipe" in result
        and (now := recipe_of(settings_of(experiments[result["experiment"]], settings(result["command"]))))
        and (changed := differences(result["recipe"], now))
    }
    assert stale == {}


def test_settings_are_the_same_however_they_are_written(folder: Path) -> None:
    (folder / "model.yaml").write_text("{class_path: lightning_meta.algorithms.MAML, init_args: {inner_lr: 0.2}}")
    spellings = [
        ("--model", str(folder / "model.yaml")),
        ("--model.inner_lr", "2e-1"),
        ("--model.init_args.inner_lr=0.2",),
        ("--model", "lightning_meta.algorithms.MAML", "--model.inner_lr", "0.2"),
        ("--model", "{class_path: lightning_meta.algorithms.MAML, init_args: {inner_lr: 0.2}}"),
    ]
    asked = [runs(folder, "maml_a", extra=extra)[0].settings for extra in spellings]
    assert all(settings == asked[0] for settings in asked)
    assert asked[0]["--model.inner_lr"] == 0.2


def test_contradictions_are_looked_for_where_both_say_something() -> None:
    known = options({"model": {"class_path": "MAML", "init_args": {"inner_lr": 0.1, "inner_steps": 1}}, "seed": 3})
    assert contradictions(known, {"--model": "MAML", "--model.inner_lr": 0.1, "--data.n_way": 5}) == []
    assert contradictions(known, {"--model.inner_lr": 0.2}) == ["--model.inner_lr 0.1 -> 0.2"]


def test_the_header_names_further_tests(folder: Path) -> None:
    also = ["# Also:     --data.test.k_shot 5", "# Also:     slow: --model.eval_inner_steps 10 --data.n_query=2"]
    (folder / "maml_a.yaml").write_text("\n".join([*also, CONFIG]))
    (run,) = runs(folder, "maml_a")
    assert [(one.name, one.extra) for one in run.evaluations] == [
        ("maml_a", ()),
        ("maml_a_k_shot_5", ("--data.test.k_shot", "5")),
        ("maml_a_slow", ("--model.eval_inner_steps", "10", "--data.n_query=2")),
    ]
    main, shots, _ = run.evaluations
    best = run.folder / "version_0/checkpoints/best-step=3.ckpt"
    write_checkpoint(best, 3, 0.9)
    write_checkpoint(best.with_name("last.ckpt"), 4)
    of_the_best = ["--ckpt_path", str(best)]
    for command, first, last in [
        (main.command("cpu"), "fit", ["--ckpt_path", "last"]),
        (main.command("cpu", partial=True), "test", of_the_best),
        (shots.command("cpu"), "test", of_the_best),
    ]:
        assert (command[0], command[-2:]) == (first, last)
    assert shots.command("cpu")[3:5] == ["--data.test.k_shot", "5"]
    (folder / "maml_a.yaml").write_text("\n".join([also[0], also[0].replace("test.", ""), CONFIG]))
    with pytest.raises(ConfigError, match=r"maml_a.yaml: 2 lines '# Also:' are named k_shot_5; give them names"):
        runs(folder, "maml_a")[0].missing()


def test_further_tests_are_missing_until_they_are_of_the_weights_of_the_result(folder: Path) -> None:
    (folder / "maml_a.yaml").write_text(f"# Also:     5_shot: --data.test.k_shot 5\n{CONFIG}")
    (run,) = runs(folder, "maml_a")
    main, shots = run.evaluations
    written(shots, k_shot=5)
    assert run.missing() == [main, shots], "its weights are not those of the training to come"
    written(main)
    assert run.missing() == []
    written(shots, k_shot=5, outer_steps=2)
    assert run.missing() == [shots]
    written(shots, k_shot=1)
    assert run.missing() == [shots]


def test_a_part_of_a_training_replaces_a_shorter_one_alone(folder: Path) -> None:
    (main,) = runs(folder, "maml_a")[0].evaluations
    assert main.write(result(main, trained_steps=2))
    assert main.write(result(main, trained_steps=3))
    assert not main.write(result(main, trained_steps=2))
    assert main.written()["trained_steps"] == 3
    assert main.result() is None, "a part is not the whole"
    written(main, trained_steps=100, command="python -m lightning_meta fit --config a.yaml --data.n_way 2")
    assert main.write(result(main)), "the whole replaces whatever is there"
    assert main.result()
