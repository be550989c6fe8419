"""Going on with a run where it stopped: which checkpoint, and in which folder."""

import csv
import warnings
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.utilities import rank_zero_only

from lightning_meta.callbacks.checkpoint import newest_checkpoint
from lightning_meta.errors import ConfigError


def find_checkpoint(keyword: str, loggers: Any) -> Path:
    """The newest `last` or `best` checkpoint of the experiment, over all its versions.

    Args:
        keyword: `last` or `best`.
        loggers: `trainer.logger` of the configuration; the CSV logger's folder is the experiment's.
    """
    loggers = loggers if isinstance(loggers, list) else [loggers]
    named = [item.init_args for item in loggers if isinstance(item, Namespace) and "CSVLogger" in item.class_path]
    if not named:
        raise ConfigError(f"--ckpt_path {keyword} is looked for in the CSV logger's folder; without one, name a file.")
    folder = Path(named[0].save_dir, named[0].name)
    pattern = f"*/checkpoints/{keyword}*.ckpt"
    found = newest_checkpoint(folder, pattern)
    if found is None:
        raise ConfigError(f"--ckpt_path {keyword}: there is no {folder / pattern}. To start anew, leave it out.")
    return found


def continues(checkpoint: Path, logger: CSVLogger, config: dict[str, Any]) -> bool:
    """Whether a training from `checkpoint` goes on in the folder that holds it, instead of a new one beside it.

    It does from the last checkpoint of a run of this experiment with the same data and model. Anything else, such as
    another inner learning rate from the best checkpoint on, is another run.

    Args:
        checkpoint: an existing file.
        logger: of the new training.
        config: of the new training, as a `config.yaml` would have it.
    """
    run = checkpoint.resolve().parent.parent
    saved = run / "config.yaml"
    if not checkpoint.name.startswith("last") or run.parent != Path(logger.root_dir).resolve() or not saved.is_file():
        return False
    former = yaml.safe_load(saved.read_text())
    return all(former[part] == config[part] for part in ("data", "model"))


@rank_zero_only
def reopen(logger: CSVLogger, step: int) -> None:
    """Let a logger append to the `metrics.csv` of its folder, which it would delete; rows from `step` on come again."""
    path = Path(logger.log_dir) / "metrics.csv"
    former = path.with_suffix(".csv.bak")  # there until the rows are back in place, so that a kill loses none
    if path.is_file() and not former.exists():
        path.rename(former)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Experiment logs directory .* exists")
        metrics = logger.experiment.metrics
    if former.exists():
        with former.open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if int(row["step"]) < step]
        metrics.extend({name: value for name, value in row.items() if value} for row in rows)
        logger.save()
        former.unlink()
