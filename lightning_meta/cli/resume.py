"""Going on with a run where it stopped, in its folder."""

import csv
import warnings
from pathlib import Path
from typing import Any

import yaml
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.utilities import rank_zero_only

from lightning_meta import checkpoints


def continues(checkpoint: Path, logger: CSVLogger, config: dict[str, Any]) -> bool:
    """Whether a training from `checkpoint` goes on in the folder that holds it, instead of a new one beside it.

    It does from the last checkpoint of a run of this experiment with the same data and model. Anything else, such as
    another inner learning rate from the best checkpoint on, is another run.

    Args:
        checkpoint: an existing file.
        logger: of the new training.
        config: of the new training, as a `config.yaml` would have it.
    """
    run = checkpoints.run_of(checkpoint)
    if run is None or run.parent != Path(logger.root_dir).resolve():
        return False
    newest = checkpoints.last(checkpoints.below(run))
    if newest is None or not newest.path.samefile(checkpoint):
        return False
    former = yaml.safe_load((run / "config.yaml").read_text())
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
