"""Every answer to "which checkpoint?". What a file holds is read from the file, not from its name, place or date.

A run is a folder with a `config.yaml`; its checkpoints are the `*.ckpt` below it, wherever the folder may be now.
"""

from collections.abc import Iterable, Iterator
from math import isnan
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pytorch_lightning.utilities import rank_zero_warn

from lightning_meta.errors import ConfigError

KEYWORDS = ("best", "last")  # in place of a file: that of the newest run
RUNS = Path("runs")  # where the folders of experiments' runs are
REPRODUCED = "reproduce"  # in it, where those of `reproduce` are


class Saved(NamedTuple):
    """What a checkpoint says of itself.

    Attributes:
        path: of the file.
        step: outer updates.
        model: class path of the module; None where Python code made it.
        score: on meta-validation, of these very weights; None where they were saved for another reason.
        monitor: what the score is, such as `val/acc`.
        mode: `max` or `min`: which scores are better.
        time: when it was saved, in seconds.
    """

    path: Path
    step: int
    model: str | None
    score: float | None
    monitor: str | None
    mode: str
    time: float

    @property
    def merit(self) -> tuple[float, int]:
        """Larger for better ones; of equal ones for the earlier."""
        assert self.score is not None
        return (self.score if self.mode == "max" else -self.score), -self.step


def folders_named(place: Path | str) -> Iterator[Path]:
    """Where the run or the experiment may be that a path or a name means; `reproduce`'s last."""
    return (parent / place for parent in (Path(), RUNS, RUNS / REPRODUCED))


def read(path: Path) -> dict[str, Any]:
    """What is in a checkpoint. Raises `ConfigError` where it is missing, damaged or none."""
    if not path.is_file():
        raise ConfigError(f"checkpoint {path} does not exist.")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises many kinds for damaged files
        raise ConfigError(
            f"checkpoint {path} ({path.stat().st_size} bytes) cannot be read, it is damaged or no checkpoint; take "
            f"another from its folder. ({type(error).__name__}: {str(error).partition(chr(10))[0]})"
        ) from error
    if not isinstance(checkpoint, dict) or not {"state_dict", "global_step"} <= checkpoint.keys():
        raise ConfigError(f"{path} is no Lightning checkpoint: it lacks state_dict or global_step.")
    return checkpoint


def read_of(path: Path, model: str) -> dict[str, Any]:
    """As `read`, of a module of the class path `model`."""
    checkpoint = read(path)
    saved = checkpoint.get("hyper_parameters", {}).get("_class_path", model)
    if saved != model:
        raise ConfigError(f"checkpoint {path} holds a {saved}, but the model is {model}; pass the matching --model.")
    return checkpoint


def describe(path: Path) -> Saved:
    """What a checkpoint says of itself; `ConfigError` as `read`."""
    checkpoint = read(path)
    states = [state for key, state in checkpoint.get("callbacks", {}).items() if "Checkpoint" in key]
    state: dict[str, Any] = max(states, key=lambda state: state.get("score") is not None, default={})
    score = state.get("score", None if path.name.startswith("last") else state.get("current_score"))
    return Saved(
        path,
        checkpoint["global_step"],
        checkpoint.get("hyper_parameters", {}).get("_class_path"),
        None if score is None else float(score),
        state.get("monitor"),
        state.get("mode") or ("max" if state.get("monitor") == "val/acc" else "min"),
        state.get("time") or path.stat().st_mtime,
    )


def below(folder: Path) -> list[Saved]:
    """The checkpoints in a folder and its folders, the oldest first; damaged ones are left out with a warning."""
    found = []
    for path in sorted(folder.rglob("*.ckpt")):
        try:
            found.append(describe(path))
        except ConfigError as error:
            rank_zero_warn(str(error))
    return sorted(found, key=attrgetter("time"))


def ranking(saved: Iterable[Saved]) -> list[Saved]:
    """Those with a score, the best first; of the last monitor, if several have been used."""
    scored = sorted((one for one in saved if one.score is not None and not isnan(one.score)), key=attrgetter("time"))
    comparable = [one for one in scored if one.monitor == scored[-1].monitor]
    return sorted(comparable, key=attrgetter("merit"), reverse=True)


def best(saved: Iterable[Saved]) -> Saved | None:
    """The one with the best score; None without scores."""
    return next(iter(ranking(saved)), None)


def last(saved: Iterable[Saved]) -> Saved | None:
    """The one that was saved last; of a best and a last one of the same moment, the latter."""
    return max(saved, key=lambda one: (one.time, one.score is None), default=None)


def run_of(checkpoint: Path) -> Path | None:
    """The folder of the run that a checkpoint is in; None where it is in none."""
    return next((folder for folder in checkpoint.resolve().parents if (folder / "config.yaml").is_file()), None)


def find(keyword: str, experiment: Path, model: str, or_another: bool = False) -> Path:
    """`last` or `best` of the newest run of an experiment that trained a module of this class.

    Args:
        keyword: one of `KEYWORDS`.
        experiment: the folder of the runs.
        model: class path.
        or_another: where no run trained a module of this class, take the newest of the others.
    """
    of_model = [one for one in below(experiment) if one.model in (None, model)]
    if not of_model and or_another:
        of_model = below(experiment)
    newest = last(of_model)
    if newest is None:
        others = sorted({str(one.model) for one in below(experiment)})
        what = f"there are only checkpoints of {', '.join(others)}" if others else "there is no checkpoint"
        raise ConfigError(f"--ckpt_path {keyword}: {what} in {experiment}/. To start anew, leave it out.")
    if keyword == "last":
        return newest.path
    run = run_of(newest.path)
    found = best(one for one in of_model if run_of(one.path) == run)
    if found is None:
        raise ConfigError(
            f"--ckpt_path best: no checkpoint beside {newest.path} has a score, as nothing was validated; take last."
        )
    return found.path


def best_or_last(run: Path) -> Path:
    """The best checkpoint of a run, or else the last one."""
    saved = below(run)
    found = best(saved) or last(saved)
    if found is None:
        raise ConfigError(f"{run} has no checkpoint (*.ckpt); give the folder of a run that was trained.")
    return found.path
