"""The modules that the contract plays, collected from the test files of the algorithms.

The test file of `algorithms/<family>/<x>.py` is `test_<x>.py`. In it stand, by name, small modules that are quick to
play, in one or more of these:

    CASES: one module for each class of the algorithm's file.
    REGRESSORS: in place of them, those that play functions of one variable, not images.
    SEGMENTERS, DETECTORS: likewise those whose targets are masks or boxes of scenes.
    SEPARATORS: likewise those that take mixtures of sounds apart.
    TRANSLATORS: likewise those that read and write sentences.
    RELATIONS: likewise those that compare pairs of a graph.
    RECOGNISERS: likewise those that write down what is said.
    TAGGERS: likewise those that tag the words of sentences.
    LANGUAGE_MODELS: those that predict the next tokens of a sequence.
    VARIANTS: the same classes with other settings, for what is cheap to check.
    TRANSDUCTIVE_IN_TRAINING: a class whose definition breaks what the inductive protocol promises, and why.

These files are imported here, so they cannot import from here.
"""

from collections.abc import Callable, Iterable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from lightning_meta import algorithms
from lightning_meta.core import Episode
from lightning_meta.datamodules import EpisodicDataModule
from tests.conftest import (
    Make,
    babble,
    blobs,
    chorales,
    ciphers,
    made_up_entities,
    random_boxes,
    random_episodes,
    random_functions,
    random_masks,
    random_mixtures,
    random_pairs,
    random_sentences,
    random_sequences,
    random_strings,
    random_tagged,
    rule_graph,
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
ALGORITHMS, VARIANTS, TRANSDUCTIVE_IN_TRAINING = (
    joined(getattr(file, kind, {}) for file in files) for kind in ("CASES", "VARIANTS", "TRANSDUCTIVE_IN_TRAINING")
)
# Of kinds of data other than images: what makes random episodes, and what is quick to train on.
OTHER_DATA: dict[str, tuple[Callable[..., Episode], Callable[..., EpisodicDataModule]]] = {
    "REGRESSORS": (random_functions, lambda **overrides: sinusoids()),
    "SEGMENTERS": (random_masks, partial(scenes, "masks")),
    "DETECTORS": (random_boxes, partial(scenes, "boxes")),
    "SEPARATORS": (random_mixtures, lambda **overrides: chorales()),
    "TRANSLATORS": (random_sentences, ciphers),
    "RECOGNISERS": (random_strings, babble),
    "TAGGERS": (random_tagged, made_up_entities),
    "LANGUAGE_MODELS": (random_sequences, topics),
    "RELATIONS": (random_pairs, rule_graph),
}
OF_OTHER_DATA = {kind: joined(getattr(file, kind, {}) for file in files) for kind in OTHER_DATA}
REGRESSORS = OF_OTHER_DATA["REGRESSORS"]
ONE_OF_A_CLASS = joined([ALGORITHMS, *OF_OTHER_DATA.values()])
CASES = joined([ONE_OF_A_CLASS, VARIANTS])


def marked(cases: dict[str, Any]) -> list[Any]:
    """Their names as parameters, with the marks that some stand there with."""
    return [pytest.param(name, marks=getattr(make, "marks", ())) for name, make in cases.items()]


def make_of(name: str) -> Make:
    """What makes the module of a case."""
    return getattr(CASES[name], "values", [CASES[name]])[0]


def other_data(name: str) -> tuple[Callable[..., Episode], Callable[..., EpisodicDataModule]]:
    """What makes random episodes for a case, and data that it is quick to train on."""
    kinds = (kind for kind, cases in OF_OTHER_DATA.items() if name in cases)
    return next((OTHER_DATA[kind] for kind in kinds), (random_episodes, blobs))


def draw_for(name: str) -> Callable[..., Episode]:
    """What makes random episodes for a case."""
    return other_data(name)[0]


def data_for(name: str, **overrides: Any) -> EpisodicDataModule:
    """Data that a case is quick to train on."""
    return other_data(name)[1](**overrides)
