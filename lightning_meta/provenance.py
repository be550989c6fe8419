"""Where weights come from: seed, data and code of the training that made them. It travels with the checkpoints."""

import os
import subprocess
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, Self

KEY = "provenance"  # in checkpoints


class Provenance(NamedTuple):
    """Of the weights of a module. None: not known, as in checkpoints that do not say.

    Attributes:
        seed: `seed_everything` of the training.
        trained_on: the data of its tasks.
        git_commit: of this code; all of them where a training went on with other code.
    """

    seed: int | None = None
    trained_on: str | None = None
    git_commit: str | None = None

    @classmethod
    def of_this_process(cls, trained_on: str | None = None) -> Self:
        seed = os.environ.get("PL_GLOBAL_SEED")
        return cls(None if seed is None else int(seed), trained_on, git_commit())

    @classmethod
    def from_checkpoint(cls, checkpoint: dict[str, Any]) -> Self:
        return cls(**checkpoint.get(KEY, {}))

    def continued(self, now: Self) -> Self:
        """Of a training that goes on: it keeps its seed, on which its noise depends."""
        commits = [part for part in (self.git_commit or "").split(", ") if part]
        if now.git_commit and now.git_commit not in commits:
            commits.append(now.git_commit)
        seed = now.seed if self.seed is None else self.seed
        return self._replace(
            seed=seed, trained_on=now.trained_on or self.trained_on, git_commit=", ".join(commits) or None
        )


@cache
def git_commit() -> str | None:
    """Commit of the working tree, with `-dirty` when it has changes; None outside a repository."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return described.stdout.strip()
