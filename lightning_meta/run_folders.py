"""Where the folders of runs are."""

from collections.abc import Iterator
from pathlib import Path

RUNS = Path("runs")
REPRODUCED = "reproduce"  # in it, where those of `reproduce` are


def folders_named(place: Path | str) -> Iterator[Path]:
    """Where the run or the experiment may be that a path or a name means; `reproduce`'s last."""
    return (parent / place for parent in (Path(), RUNS, RUNS / REPRODUCED))
