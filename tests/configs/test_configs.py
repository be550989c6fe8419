"""Every config file parses, runs and says what it is: real command lines, on random examples in place of the data."""

import json
import re
import shlex
from collections.abc import Callable, Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import pytest
import torch
import yaml
from jsonargparse._parameter_resolvers import get_signature_parameters

from lightning_meta import algorithms, datamodules
from lightning_meta.cli import MetaCLI, main
from lightning_meta.cli.composition import compose
from lightning_meta.core import Batch
from lightning_meta.core.episode import Split
from lightning_meta.datamodules import (
    CIFARFS,
    MNIST,
    AudioClasses,
    BilevelDataModule,
    ClassificationDataModule,
    EpisodicDataModule,
    Glyphs,
    MNISTTest,
    Omniglot,
    Rollouts,
    School,
    SpokenDigits,
    SpokenStrings,
    TaggedSentences,
    TextClasses,
    Timbres,
)
from lightning_meta.datamodules.class_bank import ClassBank
from lightning_meta.datamodules.language.tagged_sentences import TaggedBank
from lightning_meta.errors import ConfigError
from lightning_meta.reports import Report
from lightning_meta.reproduce.runs import find_runs

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"
# Those of sweeps are in W&B's own format: test_sweeps.py.
FILES = sorted(path for path in CONFIGS.rglob("*.yaml") if path.parent.name != "sweep")
EXPERIMENTS = sorted((CONFIGS / "experiment").rglob("*.yaml"))
MODELS = sorted((CONFIGS / "model").glob("*.yaml"))
NAME = re.compile(
    r"(?P<algorithm>[a-z0-9_]+?)_(?P<data>[a-z][a-z0-9]*)_(?:(?P<variable>variable)|(?:(?P<way>\d+)w)?(?P<shot>\d+)s)"
    r"(?:_(?P<unsupervised>[a-z]+))?"
)
# One step of training, validation and test each, without files. Sizes change speed, not what is run.
QUICK = shlex.split(
    "--trainer.fast_dev_run true --trainer.logger false --trainer.accelerator cpu --data.meta_batch_size 1 "
    "--data.val_episodes 2 --data.test_episodes 2 --data.eval_meta_batch_size 2"
)
QUICK_EPISODES = ["--data.val.n_query", "2", "--data.test.n_query", "2"]
QUICK_OPTIMIZEES = ["--data.unroll_steps", "2", "--data.truncation", "2"]
QUICK_IMAGES = [*QUICK_OPTIMIZEES, "--data.batch_size", "2"]
# Fewer steps on each task, by the class's name; and as many trainings as an algorithm compares.
QUICK_STEPS = {
    "TIM": ["--model.steps", "5"],
    "AlphaTIM": ["--model.steps", "5"],
    "PMF": ["--model.finetune_steps", "1"],
    "Baseline": ["--model.eval_inner_steps", "5"],
    "MetaLSTM": ["--model.inner_steps", "2"],
    "DAWSON": ["--model.inner_steps", "1", "--model.eval_inner_steps", "1"],
    "ANML": shlex.split(
        "--data.train.k_shot 1 --data.val.k_shot 1 --model.backbone.hidden 8 --model.modulator.hidden 8"
    ),
}
COMPARED = {
    "PBA": ["--data.meta_batch_size", "4"],
    "ActiveLearning": ["--data.support_per_class", "20"],
    "AutoAugment": ["--data.meta_batch_size", "2", *QUICK_OPTIMIZEES, "--data.evaluate", "retrained"],
}
QUICK_HELD_OUT = shlex.split("--data.support_per_class 10 --data.held_out_per_class 2 --data.val_per_class 2")
QUICK_HELD_OUT += ["--data.test_per_class", "2", "--data.query_size", "null"]
QUICK_ROTATIONS = shlex.split(
    "--data.domains.train_per_class 10 --data.domains.val_per_class 2 --data.domains.test_per_class 2"
)
QUICK_DOMAINS = [*QUICK_IMAGES, "--data.query_size", "2", *QUICK_ROTATIONS]
QUICK_DATA = {
    "QuadraticOptimizees": QUICK_OPTIMIZEES, "ImageOptimizees": QUICK_IMAGES, "HeldOutImages": QUICK_HELD_OUT,
    "TwoMoons": QUICK_HELD_OUT, "HeldOutDomains": QUICK_DOMAINS,
    "ProjectedImages": shlex.split("--data.val_per_class 10 --data.test_per_class 10"),
    "Domains": [*QUICK_EPISODES, *QUICK_ROTATIONS],
    "Rollouts": ["--data.trajectories", "1"],
    "Topics": [*QUICK_EPISODES, "--data.documents", "[20,4,4]"],
    "Babble": shlex.split("--data.train_speakers 2 --data.val_speakers 2 --data.test_speakers 2 --data.takes 2"),
    "VoiceMixtures": ["--data.pieces", "[1,1,1]"],
    "FewRel": [*QUICK_EPISODES, *shlex.split("--data.vocabulary 500 --data.unknown_buckets 10")],
    "Chorales": [*QUICK_EPISODES, *shlex.split("--data.scores drawn --data.pieces [2,1,1]")],
}  # fmt: skip


def random_bank(data: ClassificationDataModule, split: Split) -> ClassBank:
    generator = torch.Generator().manual_seed(0)
    if isinstance(data, TextClasses):
        return ClassBank.from_classes(torch.randint(data.vocabulary, (70, 20, data.length), generator=generator))
    if isinstance(data, MNISTTest):
        return ClassBank.from_classes(torch.randint(256, (10, 70, 1, 28, 28), dtype=torch.uint8, generator=generator))
    size = (3, 32, 32) if isinstance(data, CIFARFS) else (1, 32, 32) if isinstance(data, AudioClasses) else (1, 28, 28)
    return ClassBank.from_classes(torch.randint(256, (70, 20, *size), dtype=torch.uint8, generator=generator))


def random_recordings(data: SpokenStrings, split: Split) -> torch.Tensor:
    """Two, of each digit by each of two speakers."""
    return torch.rand(2, data.vocabulary - 1, 2, 1000, generator=torch.Generator().manual_seed(0))


def random_tags(data: TaggedSentences, split: Split) -> TaggedBank:
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(1, data.vocabulary, (60, data.length, data.word_parts), generator=generator)
    return TaggedBank.from_tasks([Batch(x, torch.randint(len(data.tags), x.shape[:2], generator=generator))])


def random_rows() -> dict[str, list[dict[str, float]]]:
    """Of ten schools, in the place of `School.rows`."""
    values = torch.rand(10, 25, 28, generator=torch.Generator().manual_seed(0)).tolist()
    names = [*(f"x{k}" for k in range(27)), "score"]
    return {str(task): [dict(zip(names, row, strict=True)) for row in rows] for task, rows in enumerate(values)}


@pytest.fixture(autouse=True)
def _random_images_and_no_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    for data in (CIFARFS, Glyphs, MNIST, MNISTTest, Omniglot, SpokenDigits, TextClasses, Timbres):
        monkeypatch.setattr(data, "prepare_data", lambda self: None)
        monkeypatch.setattr(data, "load_source", random_bank)
    monkeypatch.setattr(SpokenStrings, "prepare_data", lambda self: None)
    monkeypatch.setattr(SpokenStrings, "recordings", random_recordings)
    monkeypatch.setattr(SpokenStrings, "count_speakers", lambda self, split: 2)
    monkeypatch.setattr(TaggedSentences, "prepare_data", lambda self: None)
    monkeypatch.setattr(TaggedSentences, "load_source", random_tags)
    monkeypatch.setattr(School, "rows", random_rows())
    monkeypatch.setattr(SpokenDigits, "class_names", lambda self, split: None)  # which are those of its files
    monkeypatch.setattr("lightning_meta.modules.episodic.start_from", lambda backbone, place: f"not from {place}")
    monkeypatch.setattr("sys.argv", ["lightning_meta"])
    monkeypatch.chdir(tmp_path)
    yield


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take as long as everything else."""
    monkeypatch.setattr(Report, "on_test_end", lambda self, trainer, module: None)


def header(path: Path) -> dict[str, str]:
    """`# Key: value` lines at the top; the first line, without a key, as `what`."""
    comments = []
    for line in path.read_text().splitlines():
        if not line.startswith("#"):
            break
        comments.append(line.removeprefix("#").strip())
    keyed = dict(re.split(r":\s+", line, maxsplit=1) for line in comments[1:] if re.match(r"\w+:\s", line))
    return {"what": comments[0] if comments else ""} | keyed


def command(path: Path) -> list[str]:
    """The arguments of the header's Run line, with the config's whole path."""
    run = re.search(r"python -m lightning_meta (?P<arguments>(?:fit|test) --config \S+)", header(path)["Run"])
    assert run, f"{path.name} has no command on its Run line"
    subcommand, option, config = run["arguments"].split()
    assert (ROOT / config) == path, f"the Run line of {path.name} names {config}"
    return [subcommand, option, str(path)]


def override(path: Path) -> list[str]:
    """The first override that the header offers."""
    return shlex.split(header(path)["Override"].split(",")[0])


def run(arguments: list[str]) -> MetaCLI:
    """Skips a config whose header says that it needs a package which is not there: learn2learn on Python 3.13."""
    for path in (Path(argument) for argument in arguments if argument.endswith(".yaml")):
        if (needed := header(path).get("Needs", "").split()) and find_spec(needed[0]) is None:
            pytest.skip(f"{path.name} needs {needed[0]}")
    experiment = Path(arguments[arguments.index("--config") + 1])
    if first := header(experiment).get("After"):
        leave_a_run_of(first)
    its_data = compose(experiment)["data"]
    data = its_data["class_path"].split(".")[-1]
    other = Path(arguments[arguments.index("--model") + 1]) if "--model" in arguments else None
    model = (compose(other) if other else compose(experiment)["model"])["class_path"]
    sizes = COMPARED if other else QUICK_STEPS | COMPARED
    steps = sizes.get(model.rpartition(".")[-1], [])
    cli = main([*arguments, *QUICK, *QUICK_DATA.get(data, QUICK_EPISODES), *quick_trainings(its_data), *steps])
    if arguments[0] == "fit":
        assert cli.trainer.fit_loop.epoch_loop.global_step == 1
    return cli


def quick_trainings(data: dict[str, Any]) -> list[str]:
    """Inner trainings of two steps where whole ones are judged; two of them where several are compared."""
    its = data["init_args"]
    if its.get("evaluate") != "retrained":
        return []
    whole = its.get("truncation") == its["unroll_steps"]
    several = ["--data.meta_batch_size", "2"] if its.get("meta_batch_size", 1) > 1 else []
    return ["--data.unroll_steps", "2", *(["--data.truncation", "2"] if whole else []), *several]


def leave_a_run_of(name: str) -> None:
    """What an experiment needs whose header says that it comes after another: a checkpoint of that, by its name."""
    (config,) = (path for path in EXPERIMENTS if path.stem == name)
    trained = run(["fit", "--config", str(config)]).model
    folder = Path("runs") / name / "version_0"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").touch()
    torch.save({"state_dict": trained.state_dict(), "global_step": 1}, folder / "last.ckpt")


def ids(paths: list[Path]) -> list[str]:
    return [path.relative_to(CONFIGS).as_posix() for path in paths]


def size(path: Path) -> tuple[int, bool, str]:
    """Quicker ones first: those of a lower way, then of fewer shots, then other images than those of the CIFARs."""
    numbers = NAME.fullmatch(path.stem)
    examples = int(numbers["way"] or 1) * int(numbers["shot"] or 1000) if numbers else 1
    return examples, "cifar" in path.stem, path.stem


@cache
def sorts(path: Path) -> tuple[str, str]:
    """The algorithm of an experiment, by the file that it names, and its kind of data: images, text, functions, ..."""
    data = getattr(datamodules, compose(path)["data"]["class_path"].split(".")[-1])
    return yaml.safe_load(path.read_text())["model"], data.__module__.split(".")[2]


def smallest_of_each(key: Callable[[Path], Any]) -> set[Path]:
    first: dict[Any, Path] = {}
    for path in sorted(EXPERIMENTS, key=size):
        first.setdefault(key(path), path)
    return set(first.values())


def first_of_each(key: Callable[[Path], Any]) -> list[Any]:
    """The experiments as parameters; all but the smallest of each kind are slow."""
    chosen = smallest_of_each(key)
    return [pytest.param(path, id=path.stem, marks=[] if path in chosen else pytest.mark.slow) for path in EXPERIMENTS]


def swapped() -> list[Any]:
    """The models as parameters. Slow are those that an experiment runs, but for one of each family."""
    of_family: dict[str, str] = {}
    for experiment in sorted(EXPERIMENTS):
        of_family.setdefault(experiment.parent.name, Path(yaml.safe_load(experiment.read_text())["model"]).stem)
    run_already = {Path(yaml.safe_load(path.read_text())["model"]).stem for path in EXPERIMENTS}
    always = {*of_family.values(), *({path.stem for path in MODELS} - run_already)}
    return [pytest.param(path, id=path.stem, marks=[] if path.stem in always else pytest.mark.slow) for path in MODELS]


def test_the_kinds_of_config_are_all_there() -> None:
    assert {path.relative_to(CONFIGS).parts[0] for path in FILES} >= {
        "data",
        "experiment",
        "logger",
        "model",
        "trainer",
    }
    assert len(EXPERIMENTS) >= 7
    assert len(MODELS) >= 4


@pytest.mark.parametrize("path", FILES, ids=ids(FILES))
def test_every_file_parses_and_opens_with_what_it_is(path: Path) -> None:
    assert compose(path)
    assert len(header(path)["what"]) > 15


@pytest.mark.parametrize("path", FILES, ids=ids(FILES))
def test_every_reference_is_followed(path: Path) -> None:
    assert ".yaml" not in yaml.safe_dump(compose(path))


def classes_in(config: Any, place: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every part of a config that names a class, and where it stands."""
    if isinstance(config, dict) and "class_path" in config:
        yield place, config
    parts = config.items() if isinstance(config, dict) else enumerate(config) if isinstance(config, list) else ()
    for key, part in parts:
        yield from classes_in(part, f"{place}.{key}")


@cache
def settings_of(class_path: str) -> set[str]:
    return {parameter.name for parameter in get_signature_parameters(resolve_name(class_path))}


@pytest.mark.parametrize("path", EXPERIMENTS, ids=ids(EXPERIMENTS))
def test_every_class_is_there_and_has_the_settings(path: Path) -> None:
    assert any(path.stem.startswith(f"{model.stem}_") for model in MODELS)
    found = [*classes_in(compose(path))]
    assert {".data", ".model"} <= {place for place, _ in found}
    for place, part in found:
        assert part.keys() <= {"class_path", "init_args"}, place
        unknown = part.get("init_args", {}).keys() - settings_of(part["class_path"])
        assert not unknown, f"{place}: {part['class_path']} has no {unknown}"


@pytest.mark.parametrize("path", first_of_each(lambda path: (path.parent.name, sorts(path)[1])))
def test_an_experiment_runs_as_its_header_says_and_is_what_its_name_says(path: Path) -> None:
    cli = run(command(path))
    if isinstance(cli.datamodule, EpisodicDataModule):
        name = NAME.fullmatch(path.stem)
        assert name, f"{path.name} is not <algorithm>_<data>_<n>w<k>s.yaml or <algorithm>_<data>_variable.yaml"
        unsupervised = getattr(cli.datamodule, "unsupervised", None)
        assert name["unsupervised"] == (type(unsupervised).__name__.lower() if unsupervised else None)
        shape = cli.datamodule.shapes["test"]
        assert cli.datamodule.varies("test") == bool(name["variable"])
        if not name["variable"]:
            assert shape.k_shot == int(name["shot"])
            assert shape.n_way == int(name["way"] or 1)
        assert type(cli.datamodule).__name__.lower() == name["data"]
        assert (CONFIGS / "model" / f"{name['algorithm']}.yaml") in MODELS
    else:
        names = {path.stem.removeprefix(f"{model.stem}_") for model in MODELS} - {path.stem}
        kinds = {BilevelDataModule: "held_out", Rollouts: "world"}
        kind = next((kind for data, kind in kinds.items() if isinstance(cli.datamodule, data)), "optimizees")
        assert any((CONFIGS / "data" / f"{kind}_{data}.yaml").is_file() for data in names), (
            f"{path.name} is not <algorithm>_<data>.yaml with a configs/data/{kind}_<data>.yaml"
        )
        assert ("test/adam_final_loss" in cli.trainer.callback_metrics) == (kind == "optimizees")
    assert metric_of(cli) in cli.trainer.callback_metrics
    assert cli.config[cli.subcommand].name == path.stem


def metric_of(cli: MetaCLI) -> str:
    return f"test/{cli.model.metric.name}"


def assert_takes_effect(arguments: list[str], config: dict[str, Any]) -> None:
    for option, value in zip(arguments[::2], arguments[1::2], strict=True):
        part, *keys = option.removeprefix("--").split(".")
        place: Any = config[part] if part == "trainer" else config[part]["init_args"]
        for key in keys:
            place = place[key]
        assert yaml.safe_load(str(place)) == yaml.safe_load(value)


@pytest.mark.parametrize("path", first_of_each(lambda path: path.parent.name))
def test_the_override_in_the_header_takes_effect(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = override(path)
    assert arguments, f"{path.name} offers no override"
    with pytest.raises(SystemExit) as ended:
        main([*command(path), *arguments, "--print_config"])
    printed = capsys.readouterr()
    assert ended.value.code == 0, printed.err
    assert_takes_effect(arguments, yaml.safe_load(printed.out))


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("path", EXPERIMENTS, ids=ids(EXPERIMENTS))
def test_the_override_in_the_header_runs(path: Path) -> None:
    cli = run([*command(path), *override(path)])
    assert_takes_effect(override(path), cli.config[cli.subcommand].as_dict())


@pytest.mark.parametrize("path", EXPERIMENTS, ids=ids(EXPERIMENTS))
def test_an_experiment_and_its_results_are_in_the_folder_of_its_algorithm(path: Path) -> None:
    model = getattr(algorithms, compose(path)["model"]["class_path"].rpartition(".")[-1])
    family = path.parent
    assert family.name == model.__module__.split(".")[2]
    elsewhere = [file for file in family.parent.rglob(f"{path.stem}*.json") if file.parent != family / "results"]
    assert [file for file in elsewhere if json.loads(file.read_text())["experiment"] == path.stem] == []


def test_results_are_of_experiments_and_have_names_of_their_own() -> None:
    results = sorted((CONFIGS / "experiment").rglob("*.json"))
    names = [file.stem for file in results]
    assert len(names) == len(set(names)) > 0
    assert {json.loads(file.read_text())["experiment"] for file in results} <= {path.stem for path in EXPERIMENTS}


FURTHER = [path for path in EXPERIMENTS if "\n# Also:" in path.read_text()]


@pytest.mark.parametrize("path", FURTHER, ids=ids(FURTHER))
def test_the_further_tests_in_the_header_are_accepted(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (experiment,) = find_runs([path.stem], CONFIGS / "experiment", Path("runs"), None, [0], [])
    _, *further = experiment.evaluations
    assert len(further) == path.read_text().count("\n# Also:")
    for evaluation in further:
        with pytest.raises(SystemExit) as ended:
            main(["test", "--config", str(path), *evaluation.extra, "--print_config"])
        assert ended.value.code == 0, capsys.readouterr().err


@pytest.mark.parametrize("path", EXPERIMENTS, ids=ids(EXPERIMENTS))
def test_an_experiment_states_a_number_to_expect(path: Path) -> None:
    stated = header(path).get("Expected") or header(path).get("Paper")
    assert stated
    assert re.search(r"\d|docs/results\.md", stated)


@pytest.mark.parametrize("path", EXPERIMENTS, ids=ids(EXPERIMENTS))
def test_files_that_an_experiment_points_to_exist(path: Path) -> None:
    for name in re.findall(r"(?:configs|docs)/[\w/.]+\.(?:yaml|md)", path.read_text()):
        assert (ROOT / name).is_file(), f"{path.name} points to {name}, which does not exist"


@pytest.mark.parametrize("path", EXPERIMENTS, ids=ids(EXPERIMENTS))
def test_a_schedule_ends_with_the_training(path: Path) -> None:
    """By itself; or, where it lowers the rate at certain steps, with none after the end and a whole one before it."""
    config = compose(path)
    schedule, max_steps = config["model"]["init_args"].get("lr_scheduler"), config["trainer"]["max_steps"]
    if schedule:
        match schedule.get("init_args", {}):
            case {"step_size": size}:
                assert max_steps % size == 0
            case {"milestones": milestones}:
                assert max(milestones) < max_steps
            case {"T_max": length} | {"total_iters": length}:
                pytest.fail(f"the length {length} would have to be changed with trainer.max_steps")


@pytest.mark.parametrize("path", EXPERIMENTS, ids=ids(EXPERIMENTS))
def test_the_last_step_is_validated(path: Path) -> None:
    """Else the best checkpoint could not be that of the whole training."""
    config = compose(path)
    steps_per_epoch = config["data"]["init_args"].get("steps_per_epoch", 500)
    max_steps = config["trainer"]["max_steps"]
    assert max_steps < steps_per_epoch or max_steps % steps_per_epoch == 0


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("path", swapped())
def test_a_model_replaces_the_one_of_an_experiment(path: Path) -> None:
    """Its settings hold; a model that says it is not trained is tested only.

    `# On: configs/experiment/<file>.yaml` names another experiment, where the model cannot play images.
    """
    subcommand = "test" if "Nothing is trained" in path.read_text() else "fit"
    experiment = ROOT / header(path).get("On", "configs/experiment/initialize/maml_glyphs_5w1s.yaml")
    cli = run([subcommand, "--config", str(experiment), "--model", str(path)])
    assert_contains(cli.config[subcommand].model.as_dict(), compose(path))
    assert metric_of(cli) in cli.trainer.callback_metrics


def assert_contains(found: Any, expected: Any, where: str = "model") -> None:
    if isinstance(expected, dict):
        for key in expected:
            assert_contains(found[key], expected[key], f"{where}.{key}")
    elif isinstance(found, dict):
        assert found["class_path"] == expected, where  # a class without arguments, written short
    elif callable(found):
        assert f"{found.__module__}.{found.__qualname__}" == expected, where
    else:
        assert (list(found) if isinstance(found, tuple) else found) == expected, where  # YAML has no tuples


def test_a_dry_run_leaves_no_files(tmp_path: Path) -> None:
    """Else `last.ckpt` of a dry run could be taken for that of a training."""
    experiment = CONFIGS / "experiment/initialize/maml_sinusoid_5s.yaml"
    main(["fit", "--config", str(experiment), "--trainer.fast_dev_run", "true", "--trainer.accelerator", "cpu"])
    assert not [path.name for path in tmp_path.iterdir()]


def test_training_a_model_without_parameters_is_refused(no_pictures: None) -> None:
    experiment = CONFIGS / "experiment/compare/nearest_neighbour_glyphs_5w1s.yaml"
    with pytest.raises(SystemExit, match=r"error: .*(parameters|train)"):
        main(["fit", "--config", str(experiment), *QUICK])


# ---- composition ----------------------------------------------------------------------------------------------------


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)
    return folder / "top.yaml"


def test_a_dotted_key_refines_a_reference(tmp_path: Path) -> None:
    top = write(tmp_path, part="a: {b: 1, c: 2}\nd: 3", top="x: part.yaml\nx.a.b: 7\nx.e.f: 8")
    assert compose(top) == {"x": {"a": {"b": 7, "c": 2}, "d": 3, "e": {"f": 8}}}


def test_references_are_relative_to_the_file_that_names_them(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    write(tmp_path / "inner", top="leaf.yaml", leaf="value: 1")
    assert compose(write(tmp_path, top="x: inner/top.yaml\ny: [inner/leaf.yaml]")) == {
        "x": {"value": 1},
        "y": [{"value": 1}],
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x: missing.yaml", r"top\.yaml refers to missing\.yaml"),
        ("x: 1\nx.y: 2", r"'x\.y' goes through 'x'"),
        ("x: [1", r"top\.yaml is not valid YAML"),
    ],
)
def test_mistakes_in_a_file_name_the_file(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        compose(write(tmp_path, top=text))


def test_a_file_that_refers_to_itself_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"top\.yaml"):
        compose(write(tmp_path, top="x: part.yaml", part="y: top.yaml"))
