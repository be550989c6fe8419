"""What runs left, from one machine to another: packed into one file there, taken over here.

Taken over are results and trainings that go on, wherever they are below a folder or in a file that `pack` has made:
the folders that runs leave, `<name>/version_<n>` with `result.json`, `config.yaml`, `metrics.csv` and `checkpoints/`,
below `seed_<n>` where the training has a seed; and single files `<name>.result.json`, `<name>.config.yaml`,
`<name>.metrics.csv` and `<name>.last.ckpt`, `<name>_seed<n>` where it has one.
"""

import io
import json
import re
import shutil
import tarfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import yaml

from lightning_meta import checkpoints
from lightning_meta.callbacks.checkpoint import AtomicCheckpointIO
from lightning_meta.errors import ConfigError, DataError
from lightning_meta.reproduce.runs import Progress, Run, contradictions, differences, label, options
from lightning_meta.results.table import trained_steps

SMALL = ("version_*/result.json", "version_*/metrics.csv", "version_*/config.yaml", "settings.json", "log.txt")
LOG_TAIL = 20_000  # bytes
SINGLE = re.compile(r"(?P<name>.+)\.(?P<file>result\.json|config\.yaml|metrics\.csv|last\.ckpt)")


def pack(runs: Sequence[Run], root: Path, file: Path, most_bytes: float) -> list[str]:
    """Write what runs left to a `.tgz` of at most that size; come back with what had no room, and why.

    The small files of all runs go first, then their last checkpoints, the smallest first, then the best ones beside
    those.

    Args:
        runs: whose folders are packed.
        root: the folder that names in the file are relative to.
        file: is replaced.
        most_bytes: of the file.
    """
    small = [path for pattern in SMALL for run in runs for path in sorted(run.folder.glob(pattern))]
    # That of a training in progress would not be of the same moment as its metrics.
    in_progress = [run for run in runs if run.is_locked()]
    stopped = {run.last_checkpoint: run.best_checkpoint for run in runs if run not in in_progress}
    last = sorted((path for path in stopped if path), key=lambda path: path.stat().st_size)
    left_out = {run.folder: "is being trained; stop it for its checkpoint" for run in in_progress}
    room = most_bytes / 1.001 - 20_000  # gzip may add a little, and tar fills its last block
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f"{file.name}.part")
    with tarfile.open(part, "w:gz", compresslevel=1) as archive:  # weights are hardly compressed by more
        for path in [*small, *last, *(best for path in last if (best := stopped[path]))]:
            content = path.read_bytes()[-LOG_TAIL if path.name == "log.txt" else 0 :]
            needed = len(content) + 4096  # its header, with a long name, and its last block
            if needed > room or path.parent / "last.ckpt" in left_out:
                left_out[path] = f"{needed / 1e6:.1f} MB; there was room for {max(room, 0) / 1e6:.1f}"
                continue
            member = tarfile.TarInfo(path.relative_to(root).as_posix())
            member.size, member.mtime = len(content), int(path.stat().st_mtime)
            archive.addfile(member, io.BytesIO(content))
            room -= needed
    part.replace(file)
    return [f"{path}: {why}" for path, why in left_out.items()]


class Left(NamedTuple):
    """What a run left.

    Args:
        name: of its experiment, with `_seed<n>` if it has one.
        files: by the name that they have in its folder.
    """

    name: str
    files: dict[str, Path]

    @property
    def config(self) -> dict[str, Any]:
        """Options of its `config.yaml`, with the defaults of all that was not set; empty without one."""
        return options(yaml.safe_load(self.files["config.yaml"].read_text())) if "config.yaml" in self.files else {}


@contextmanager
def opened(source: Path) -> Iterator[Path]:
    """The folder, or one with what is in the file."""
    if source.is_dir():
        yield source
        return
    with TemporaryDirectory() as folder:
        try:
            with tarfile.open(source) as archive:
                archive.extractall(folder, filter="data")
        except (OSError, tarfile.TarError) as error:
            raise DataError(f"{source} is no folder, and no .tgz that --export has made: {error}.") from error
        yield Path(folder)


def find(folder: Path) -> list[Left]:
    """What runs left, wherever below `folder`."""
    found: dict[Path, Left] = {}

    def note(run: Path, name: str, file: str, path: Path) -> None:
        found.setdefault(run, Left(name, {})).files[file] = path

    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        version = path.parent.parent if path.parent.name == "checkpoints" else path.parent
        if version.name.startswith("version_"):
            name = label(version.parent)
            note(version, name, path.name, path)
            if (settings := version.parent / "settings.json").is_file():
                note(version, name, "settings.json", settings)
        elif single := SINGLE.fullmatch(path.name):
            note(path.with_name(single["name"]), single["name"], single["file"], path)
    return list(found.values())


def take_result(left: Left, run: Run) -> str:
    """Put a result where it belongs, if it is one that the run owes; what was done."""
    path = left.files["result.json"]
    try:
        result = json.loads(path.read_text())
        unlike = {evaluation: evaluation.unlike(result, left.config) for evaluation in run.evaluations}
        steps = f"{trained_steps(result):,} of {run.steps:,} steps"
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is not what a run leaves: {type(error).__name__} {error}.") from error
    evaluation = min(unlike, key=lambda evaluation: len(unlike[evaluation]))
    if unlike[evaluation]:
        raise ConfigError(f"{path} is not of {run.config} as it is now: {', '.join(unlike[evaluation])}.")
    if evaluation.result():
        return f"{evaluation.result_file} is there already"
    if not evaluation.write(result):
        return f"{evaluation.result_file} stays, it is of a longer training than {steps}"
    return f"{steps}: {evaluation.result_file}"


def take_checkpoint(left: Left, run: Run) -> str:
    """Let the training go on here where it stopped there; what was done."""
    path, asked = left.files["last.ckpt"], run.settings
    checkpoint = checkpoints.read_of(path, asked["--model"])
    if "settings.json" in left.files:
        changed = differences(options(json.loads(left.files["settings.json"].read_text())), asked)
    else:  # as far as can be known
        model = checkpoint.get("hyper_parameters", {})
        known = left.config or options({"model": {key: model[key] for key in model if not key.startswith("_")}})
        changed = contradictions(known, asked)
    if changed:
        raise ConfigError(f"{path} is not of {run.config} as it is now: {', '.join(changed)}.")
    with run.lock() as lock:
        if lock is None:
            raise ConfigError(f"{path} was not taken over: {run.folder} is being trained; stop that first.")
        if Progress.of(run).step >= checkpoint["global_step"]:
            return f"{run.last_checkpoint} stays, it is not behind step {checkpoint['global_step']:,}"
        run.check_settings()
        version = next(folder for n in count() if not (folder := run.folder / f"version_{n}").exists())
        version.mkdir()
        for name in {"config.yaml", "metrics.csv"} & left.files.keys():
            shutil.copyfile(left.files[name], version / name)
        _move_best(checkpoint, left.files, version / "checkpoints")
        AtomicCheckpointIO().save_checkpoint(checkpoint, version / "checkpoints" / "last.ckpt")
    return f"step {checkpoint['global_step']:,} of {run.steps:,}: {version}"


def _move_best(checkpoint: dict[str, Any], files: Mapping[str, Path], folder: Path) -> None:
    """Copy the best checkpoint, which knows its score, into the folder; let the last one be the newest here.

    Without the file, the best is chosen among the validations that are to come.
    """
    folder.mkdir()
    for key, state in checkpoint["callbacks"].items():
        if not key.startswith("EpisodicCheckpoint"):
            continue
        state["time"] = time.time()
        name = Path(state["best_model_path"]).name
        if name in files:
            shutil.copyfile(files[name], folder / name)
