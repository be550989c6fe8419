"""What `reproduce` works on: an experiment with its settings, what its training has come to, and what it owes."""

import fcntl
import fnmatch
import json
import math
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import torch
import yaml

from lightning_meta import checkpoints
from lightning_meta.cli.composition import compose
from lightning_meta.cli.names import by_name, suggestion
from lightning_meta.cli.seeds import numbers_of
from lightning_meta.core.episode import EpisodeShape
from lightning_meta.errors import ConfigError, DataError, UserError
from lightning_meta.metrics import metric_of
from lightning_meta.results.table import PLACES, pairs, settings, trained_steps

# Settings that may change while a training is interrupted: they say how long, where, how fast and what is shown.
FREE = (
    *PLACES,
    "--trainer.max_steps",
    "--trainer.max_epochs",
    "--trainer.accelerator",
    "--trainer.devices",
    "--trainer.callbacks",
    "--trainer.enable_progress_bar",
    "--trainer.inference_mode",
    "--trainer.log_every_n_steps",
    "--trainer.num_sanity_val_steps",
    "--trainer.use_distributed_sampler",
    "--model.compile_training",
    "--data.on_device",
    "--data.num_workers",
    "--data.eval_meta_batch_size",
    "--data.test_episodes",
)
# Settings that a result file states too, by its key; of several that are set the first counts.
STATED = {
    "algorithm": ["--model"],
    "n_way": ["--data.test.n_way", "--data.n_way"],
    "k_shot": ["--data.test.k_shot", "--data.k_shot"],
    "n_query": ["--data.test.n_query", "--data.n_query"],
    "unroll_steps": ["--data.unroll_steps"],
    "episode_seed": ["--data.seed"],
    "eval_inner_steps": ["--model.eval_inner_steps"],
    "normalisation": ["--model.backbone.norm"],
    "precision": ["--trainer.precision"],
}
ALSO = re.compile(r"^# Also: +(?:(\w+): +)?(--.+)$", re.MULTILINE)
SEEDS = re.compile(r"^# Seeds: +(\S+)$", re.MULTILINE)


class Run(NamedTuple):
    """An experiment to be trained with certain settings.

    Args:
        name: of the result file.
        config: the experiment's file.
        extra: settings beside it, as words of a command line.
        root: where the folders of runs are made.
        results: where the result files are written.
    """

    name: str
    config: Path
    extra: tuple[str, ...]
    root: Path
    results: Path

    @property
    def folder(self) -> Path:
        """Its log and its runs `version_<n>`."""
        return self.root / self.config.stem

    @property
    def subcommand(self) -> str:
        """`fit`, or `test` where the header says that nothing is trained."""
        stated = re.search(r"^# Run: .*lightning_meta (fit|test) ", self.config.read_text(), re.MULTILINE)
        return stated[1] if stated else "fit"

    @property
    def settings(self) -> dict[str, Any]:
        """What it is told, by option: `--data.n_way`."""
        return settings_of(self.config, pairs(self.extra))

    @property
    def steps(self) -> int:
        """Outer steps of the whole training; 0 where nothing is trained."""
        return 0 if self.subcommand == "test" else self.settings["--trainer.max_steps"]

    @property
    def last_checkpoint(self) -> Path | None:
        found = checkpoints.last(checkpoints.below(self.folder))
        return found.path if found else None

    @property
    def best_checkpoint(self) -> Path | None:
        """The best one of the training that the last one is of."""
        last = self.last_checkpoint
        found = checkpoints.best(checkpoints.below(last.parent)) if last else None
        return found.path if found else None

    @property
    def evaluations(self) -> list["Evaluation"]:
        """The test that ends the training, and those that the header adds: `# Also: [SUFFIX:] --KEY VALUE ...`."""
        lines = [(suffix, tuple(shlex.split(words))) for suffix, words in ALSO.findall(self.config.read_text())]
        also = [Evaluation(self, suffix or _suffix(words), words) for suffix, words in lines]
        names = [evaluation.suffix for evaluation in also]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ConfigError(
                f"{self.config}: {names.count(min(twice))} lines '# Also:' are named {min(twice)}; give them names of "
                "their own: '# Also: NAME: --KEY VALUE'."
            )
        return [Evaluation(self, "", ()), *also]

    def result(self) -> dict[str, Any] | None:
        """Of the test that ends the whole training."""
        return self.evaluations[0].result()

    def missing(self) -> list["Evaluation"]:
        """Those that have no result; all of them if the training has none, for they are of its weights."""
        main, *also = self.evaluations
        if (result := main.result()) is None:
            return [main, *also]
        return [one for one in also if (its := one.result()) is None or its["outer_steps"] != result["outer_steps"]]

    def lock(self) -> AbstractContextManager[TextIO | None]:
        return lock(self.folder)

    def is_locked(self) -> bool:
        """Whether another process trains it."""
        if not (self.folder / "lock").is_file():
            return False
        with self.lock() as file:
            return file is None

    def check_settings(self) -> None:
        """Refuse to go on with a training that was begun with other settings; note those of one that begins."""
        file, asked = self.folder / "settings.json", json.loads(json.dumps(self.settings, default=str))
        former = options(json.loads(file.read_text())) if file.is_file() else asked
        if self.last_checkpoint and (changed := differences(former, asked)):
            raise ConfigError(
                f"{self.last_checkpoint} was trained with other settings ({', '.join(changed[:3])}); restore them, or "
                f"begin anew by moving {self.folder} away or with another --runs."
            )
        write_whole(file, json.dumps(asked, indent=1) + "\n")


class Evaluation(NamedTuple):
    """A result that a run owes: of its best checkpoint on the test episodes.

    Args:
        run: whose checkpoint it is.
        suffix: of the result's name; empty for the test that ends the training.
        extra: settings beside those of the run, as words of a command line.
    """

    run: Run
    suffix: str
    extra: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.run.name}_{self.suffix}" if self.suffix else self.run.name

    @property
    def result_file(self) -> Path:
        return self.run.results / f"{self.name}.json"

    @property
    def settings(self) -> dict[str, Any]:
        return settings_of(self.run.config, pairs((*self.run.extra, *self.extra)))

    @property
    def recipe(self) -> dict[str, Any]:
        """What its result is to say of them."""
        return recipe_of(self.settings)

    def command(self, device: str | None, partial: bool = False) -> list[str]:
        """Words after `python -m lightning_meta` that make it.

        Args:
            device: `cpu`, the number of a GPU, or None for what the configuration says.
            partial: train nothing; test the best checkpoint so far.
        """
        run = self.run
        trains = run.steps > 0 and not self.suffix and not partial
        words = [
            "fit" if trains else "test", "--config", str(run.config), *run.extra, *self.extra,
            "--trainer.logger", "lightning_meta.loggers.OwnFolderCSVLogger",
            "--trainer.logger.save_dir", str(run.root), "--trainer.logger.name", run.config.stem,
            "--trainer.enable_progress_bar", "false",
        ]  # fmt: skip
        if device is not None:
            words += ["--trainer.accelerator", "cpu" if device == "cpu" else "gpu"]
        if trains:
            return [*words, "--ckpt_path", "last"] if run.last_checkpoint else words
        return [*words, "--ckpt_path", str(run.best_checkpoint or "best")] if run.steps else words

    def result(self) -> dict[str, Any] | None:
        """What its result file says, if that is of the whole training with these settings."""
        result = self.written()
        return result if result and self.is_whole(result) and not self.unlike(result) else None

    def written(self) -> dict[str, Any] | None:
        """What its result file says, whatever training that is of."""
        return json.loads(self.result_file.read_text()) if self.result_file.is_file() else None

    def is_whole(self, result: Mapping[str, Any]) -> bool:
        """Whether a result is of the whole training, and of as many episodes as are asked for."""
        return trained_steps(result) >= self.run.steps and not self._fewer_episodes(result)

    def unlike(self, result: Mapping[str, Any], config: Mapping[str, Any] | None = None) -> list[str]:
        """In what a result is another one than this, such as `--data.n_way 5 -> 20`; its length left aside.

        Args:
            result: what a result file says.
            config: the options of its run, if they are known, see `options`.
        """
        asked = self.settings
        changed = differences(settings_of(self.run.config, settings(result["command"])), asked)
        changed += differences(result.get("recipe", self.recipe), self.recipe)  # the config was another one
        for key, names in STATED.items():
            value = next((asked[name] for name in names if asked.get(name) is not None), None)
            value = value.rpartition(".")[-1] if isinstance(value, str) else value
            varies = key in EpisodeShape._fields and isinstance(result.get(key), str)  # a range, not what was asked for
            if None not in (value, result.get(key)) and not varies and result[key] != value:
                changed.append(f"{key} {result[key]} -> {value}")
        changed += contradictions(config or {}, asked)
        return list(dict.fromkeys([*changed, *self._fewer_episodes(result)]))

    def _fewer_episodes(self, result: Mapping[str, Any]) -> list[str]:
        asked = self.settings.get("--data.test_episodes", 0)
        return [f"episodes {result['episodes']} -> {asked}"] if result["episodes"] < asked else []

    def write(self, result: Mapping[str, Any]) -> bool:
        """Put a result in its place; not one of a part of the training where one of a longer training is.

        Raises:
            DataError: its score is no number.
        """
        if not math.isfinite(score := result[result["metric"]]):
            raise DataError(f"the {result['metric']} of {self.name} is {score}, so it is no result.")
        former = self.written()
        if former and not self.is_whole(result) and trained_steps(former) > trained_steps(result):
            return False
        write_whole(self.result_file, json.dumps({**result, "recipe": self.recipe}, indent=1) + "\n")
        return True


class Progress(NamedTuple):
    """How far a training is, from its last checkpoint."""

    step: int
    score: str
    seconds: float

    @staticmethod
    def of(run: Run) -> "Progress":
        if (path := run.last_checkpoint) is None:
            return Progress(0, "", 0.0)
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        states = checkpoint["callbacks"]
        best: dict[str, Any] = next(
            (state for key, state in states.items() if key.startswith("EpisodicCheckpoint")), {}
        )
        score = best.get("best_model_score")
        name = str(best.get("monitor") or "").removeprefix("val/")
        shown = "" if score is None else f"{name} {metric_of(name).text(score)}"
        return Progress(checkpoint["global_step"], shown, states.get("RunSummary", {}).get("fit_seconds", 0.0))


@contextmanager
def lock(folder: Path) -> Iterator[TextIO | None]:
    """Held by this process, and by those that inherit the file, as long as one of them lives; None: by others."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
        else:
            yield file


def label(folder: Path) -> str:
    """Name of an experiment by the folder of its runs: `maml_seed3` of `seed_3/maml`."""
    seed = re.fullmatch(r"seed_(\d+)", folder.parent.name)
    return f"{folder.name}_seed{seed[1]}" if seed else folder.name


def find_runs(
    patterns: Sequence[str],
    experiments: Path,
    runs: Path,
    results: Path | None,
    seeds: Sequence[int] | None,
    extra: Sequence[str],
    suffix: str = "",
) -> list[Run]:
    """The named experiments in the order of their names, each with each seed; all experiments if none is named. No
    second seed comes before the first ones of all.

    Args:
        patterns: names, or patterns of names.
        experiments: folder of their files, and of folders of them.
        runs: folder of the folders that runs are made in.
        results: folder of the result files; None for `results` beside the file of each experiment.
        seeds: of the trainings; 0, the default of every training, leaves no trace in names. None: those that the
            header of an experiment names, `# Seeds: 0,1,2`, or 0.
        extra: settings beside those of the experiments.
        suffix: of result files and folders of what `extra` makes of the experiments.
    """
    configs = by_name(experiments)
    if not configs:
        raise ConfigError(f"{experiments} has no experiments (*.yaml); give their folder as --experiments.")
    chosen: dict[str, Path] = {}
    for pattern in patterns or ["*"]:
        pattern = Path(pattern).stem if pattern.endswith(".yaml") else pattern
        matching = fnmatch.filter(configs, pattern)
        if not matching:
            raise ConfigError(
                f"no experiment of {experiments} is named {pattern}.{suggestion(pattern, configs)} All: "
                "python -m lightning_meta reproduce --list"
            )
        chosen |= {name: configs[name] for name in matching}

    def run(name: str, config: Path, seed: int) -> Run:
        name = "_".join([name, *([suffix] if suffix else []), *([f"seed{seed}"] if seed else [])])
        words = ["--seed_everything", str(seed), *extra] if seed else extra
        root = runs / suffix / (f"seed_{seed}" if seed else "")
        return Run(name, config, tuple(words), root, results or config.parent / "results")

    turns = [
        (turn, run(name, config, seed))
        for name, config in chosen.items()
        for turn, seed in enumerate(stated_seeds(config) if seeds is None else seeds)
    ]
    return [run for _, run in sorted(turns, key=lambda pair: pair[0])]


def stated_seeds(config: Path) -> list[int]:
    """The seeds that the header of an experiment names, or the one that every training has by default."""
    stated = SEEDS.search(config.read_text())
    try:
        return numbers_of(stated[1]) if stated else [0]
    except UserError as error:
        raise ConfigError(f"{config}, '# Seeds:': {error}") from error


def settings_of(config: Path, given: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """What an experiment is told, by option: its file's settings, and in place of some those of a command line."""
    values = {key.removeprefix("--"): yaml.safe_load(value) for key, value in given}
    files = {key: Path(value) for key, value in values.items() if isinstance(value, str) and value.endswith(".yaml")}
    values |= {key: compose(path) for key, path in files.items() if path.is_file()}
    return _config(config) | options(values)


def recipe_of(asked: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that make a training and a test what they are, but for the seed, as JSON has them."""
    told = {key: value for key, value in asked.items() if not key.startswith((*FREE, "--seed_everything"))}
    return json.loads(json.dumps(told, default=str))


def options(config: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings by option, `--model.backbone.norm`, however they are written; `--model` is the class."""
    leaves = {key.removeprefix("--").replace(".init_args", ""): leaf for key, leaf in _flat(dict(config)).items()}
    return {f"--{key.removesuffix('.class_path')}": _number(leaf) for key, leaf in leaves.items()}


def differences(former: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    """Settings that make it another training or test, such as `--data.n_way 5 -> 20`."""
    return [
        f"{key} {former.get(key)} -> {asked.get(key)}"
        for key in sorted({*former, *asked})
        if former.get(key) != asked.get(key) and not key.startswith(FREE)
    ]


def contradictions(known: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    """The same where not all of the former settings are known, or defaults are among them."""
    both = known.keys() & asked.keys()
    return differences({key: known[key] for key in both}, {key: asked[key] for key in both})


def write_whole(path: Path, text: str) -> None:
    """Write beside its place and move there: a kill leaves the former file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    part.write_text(text)
    part.replace(path)


@cache
def _config(path: Path) -> dict[str, Any]:
    return options(compose(path))


def _flat(value: Any, place: str = "") -> dict[str, Any]:
    """The leaves of nested mappings, by dotted key."""
    if not isinstance(value, dict) or (place and not value):
        return {place: value}
    parts = [_flat(item, f"{place}.{name}".lstrip(".")) for name, item in value.items()]
    return {key: leaf for part in parts for key, leaf in part.items()}


def _number(leaf: Any) -> Any:
    """YAML takes 1e-3 for a word."""
    try:
        return float(leaf) if isinstance(leaf, str) else leaf
    except ValueError:
        return leaf


def _suffix(words: Sequence[str]) -> str:
    """`k_shot_5` of `--data.test.k_shot 5`."""
    return re.sub(r"\W+", "_", "_".join(f"{key.rpartition('.')[-1]}_{value}" for key, value in pairs(words)))
