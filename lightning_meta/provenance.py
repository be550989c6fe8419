"""Where weights come from: seed, data, code and machine of their training. It travels with the checkpoints."""

import os
import platform
import subprocess
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch

KEY = "provenance"  # in checkpoints


class Provenance(NamedTuple):
    """Of the weights of a module. None: not known, as in checkpoints that do not say.

    Attributes:
        seed: `seed_everything` of the training.
        trained_on: the data of its tasks.
        git_commit: of this code; all of them where a training went on with other code.
        trained_with: the machine; likewise all of them. A test may run on another.
    """

    seed: int | None = None
    trained_on: str | None = None
    git_commit: str | None = None
    trained_with: str | None = None

    @classmethod
    def of_this_process(cls, trained_on: str | None = None, trained_with: str | None = None) -> Self:
        seed = os.environ.get("PL_GLOBAL_SEED")
        return cls(None if seed is None else int(seed), trained_on, git_commit(), trained_with)

    @classmethod
    def from_checkpoint(cls, checkpoint: dict[str, Any]) -> Self:
        return cls(**checkpoint.get(KEY, {}))

    def continued(self, now: Self) -> Self:
        """Of a training that goes on: it keeps its seed, on which its noise depends."""
        return type(self)(
            now.seed if self.seed is None else self.seed,
            now.trained_on or self.trained_on,
            _listed(self.git_commit, now.git_commit, ", "),
            _listed(self.trained_with, now.trained_with, "; "),
        )


def _listed(former: str | None, now: str | None, between: str) -> str | None:
    """What was listed so far, and what is new."""
    parts = former.split(between) if former else []
    return between.join([*parts, *([now] if now and now not in parts else [])]) or None


def hardware(device: torch.device) -> str:
    """What a device is called."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, {os.cpu_count()} cores, {torch.get_num_threads()} threads"


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
