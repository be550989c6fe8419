"""Where the folders of runs are."""

from collections.abc import Iterator
from pathlib import Path

RUNS = Path("runs")
REPRODUCED = "reproduce"  # in it, where those of `reproduce` are


def folders_named(place: Path | str) -> Iterator[Path]:
    """Where the run or the experiment may be that a path or a name means; `reproduce`'s last."""
    return (parent / place for parent in (Path(), RUNS, RUNS / REPRODUCED))


def trained_folder(place: Path | str) -> Path | None:
    """The first of them with a checkpoint in it, or else the first that there is."""
    there = [folder for folder in folders_named(place) if folder.is_dir()]
    return next((folder for folder in there if any(folder.rglob("*.ckpt"))), there[0] if there else None)
