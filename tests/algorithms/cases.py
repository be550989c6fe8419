"""The modules that the contract plays, collected from the test files of the algorithms.

The test file of `algorithms/<family>/<x>.py` is `test_<x>.py`. In it stand, by name, small modules that are quick to
play, in one or more of these:

    CASES: one module for each class of the algorithm's file.
    REGRESSORS: in place of them, those that play functions of one variable, not images.
    VARIANTS: the same classes with other settings, for what is cheap to check.
    TRANSDUCTIVE_IN_TRAINING: a class whose definition breaks what the inductive protocol promises, and why.

These files are imported here, so they cannot import from here.
"""

from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Any

from lightning_meta import algorithms


def joined(parts: Iterable[dict[Any, Any]]) -> dict[Any, Any]:
    """All of them, in their order; a name may be there once."""
    whole: dict[Any, Any] = {}
    for part in parts:
        if twice := whole.keys() & part.keys():
            raise ValueError(f"two cases are called {', '.join(sorted(twice))}: give one of them another name")
        whole |= part
    return whole


names = [f"test_{file.stem}" for file in sorted(Path(algorithms.__file__).parent.glob("*/[a-z]*.py"))]
files = [import_module(f"{__package__}.{name}") for name in names if Path(__file__).with_name(f"{name}.py").exists()]
ALGORITHMS, REGRESSORS, VARIANTS, TRANSDUCTIVE_IN_TRAINING = (
    joined(getattr(file, kind, {}) for file in files)
    for kind in ("CASES", "REGRESSORS", "VARIANTS", "TRANSDUCTIVE_IN_TRAINING")
)
CASES = joined([ALGORITHMS, VARIANTS, REGRESSORS])
