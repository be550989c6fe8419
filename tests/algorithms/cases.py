"""The modules that the contract plays, collected from the test files of the algorithms.

The test file of `algorithms/<family>/<x>.py` is `test_<x>.py`. In it stand, by name, small modules that are quick to
play, in one or more of these:

    CASES: one module for each class of the algorithm's file.
    REGRESSORS: in place of them, those that play functions of one variable, not images.
    SEGMENTERS, DETECTORS: likewise those whose targets are masks or boxes of scenes.
    SEPARATORS: likewise those that take mixtures of sounds apart.
    TRANSLATORS: likewise those that read and write sentences.
    LANGUAGE_MODELS: those that predict the next tokens of a sequence.
    VARIANTS: the same classes with other settings, for what is cheap to check.
    TRANSDUCTIVE_IN_TRAINING: a class whose definition breaks what the inductive protocol promises, and why.

These files are imported here, so they cannot import from here.
"""

from collections.abc import Callable, Iterable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from lightning_meta import algorithms
from lightning_meta.core import Episode
from lightning_meta.datamodules import EpisodicDataModule
from tests.conftest import (
    Make,
    blobs,
    chorales,
    ciphers,
    random_boxes,
    random_episodes,
    random_functions,
    random_masks,
    random_mixtures,
    random_sentences,
    random_sequences,
    scenes,
    sinusoids,
    topics,
)


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
OTHER_DATA = ("REGRESSORS", "SEGMENTERS", "DETECTORS", "SEPARATORS", "TRANSLATORS", "LANGUAGE_MODELS")
(
    ALGORITHMS,
    REGRESSORS,
    SEGMENTERS,
    DETECTORS,
    SEPARATORS,
    TRANSLATORS,
    LANGUAGE_MODELS,
    VARIANTS,
    TRANSDUCTIVE_IN_TRAINING,
) = (
    joined(getattr(file, kind, {}) for file in files)
    for kind in ("CASES", *OTHER_DATA, "VARIANTS", "TRANSDUCTIVE_IN_TRAINING")
)
ONE_OF_A_CLASS = joined([ALGORITHMS, REGRESSORS, SEGMENTERS, DETECTORS, SEPARATORS, TRANSLATORS, LANGUAGE_MODELS])
CASES = joined([ONE_OF_A_CLASS, VARIANTS])


def marked(cases: dict[str, Any]) -> list[Any]:
    """Their names as parameters, with the marks that some stand there with."""
    return [pytest.param(name, marks=getattr(make, "marks", ())) for name, make in cases.items()]


def make_of(name: str) -> Make:
    """What makes the module of a case."""
    return getattr(CASES[name], "values", [CASES[name]])[0]


def draw_for(name: str) -> Callable[..., Episode]:
    """What makes random episodes for a case."""
    draws = (
        (REGRESSORS, random_functions),
        (SEGMENTERS, random_masks),
        (DETECTORS, random_boxes),
        (SEPARATORS, random_mixtures),
        (TRANSLATORS, random_sentences),
        (LANGUAGE_MODELS, random_sequences),
    )
    return next((draw for cases, draw in draws if name in cases), random_episodes)


def data_for(name: str, **overrides: Any) -> EpisodicDataModule:
    """Data that a case is quick to train on."""
    if name in SEGMENTERS or name in DETECTORS:
        return scenes("masks" if name in SEGMENTERS else "boxes", **overrides)
    if name in SEPARATORS:
        return chorales()
    if name in TRANSLATORS:
        return ciphers(**overrides)
    if name in LANGUAGE_MODELS:
        return topics(**overrides)
    return sinusoids() if name in REGRESSORS else blobs(**overrides)
