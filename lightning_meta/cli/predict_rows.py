"""A trained meta-learner on rows of tables: texts, or numbers and categories."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_meta.core import Batch
from lightning_meta.core.episode import EpisodeShape
from lightning_meta.datamodules.class_split import shortened
from lightning_meta.datamodules.rows import ReadsRows, Row
from lightning_meta.datamodules.tables.row_encoder import Scale, word
from lightning_meta.datamodules.tables.tables import Tables
from lightning_meta.errors import ConfigError, DataError
from lightning_meta.metrics import EpisodicAccuracy
from lightning_meta.modules import EpisodicModule, StreamModule

NORMAL_95 = 1.96  # standard deviations to either side


class Known(NamedTuple):
    """A user's labelled rows.

    Attributes:
        rows: as they are in the file.
        support: inputs and targets, of classes side by side.
        classes: their names in the order of labels; none where targets are numbers.
        scale: of targets that are numbers.
        described: in words.
    """

    rows: list[Row]
    support: Batch
    classes: list[str]
    scale: Scale | None
    described: str


def read_known(module: EpisodicModule[Any], data: ReadsRows, path: Path) -> Known:
    """Read the support set of a user.

    Raises:
        DataError: of the file.
        ConfigError: the module cannot play this task.
    """
    rows, x, targets = data.read_examples(path, labelled=True)
    module.check_input_shape(x.shape[1:], str(path))
    if isinstance(module.metric, EpisodicAccuracy):
        names = sorted({word(target) for target in targets})
        if len(names) < 2:
            raise DataError(f"{path} has rows of one class, {names[0]}; give rows of two or more.")
        labels = torch.tensor([names.index(word(target)) for target in targets])
        order, shots = labels.argsort(stable=True), labels.bincount().tolist()
        module.check_shots(shots)
        described = f"{len(names)} classes, {of_each(shots, 'row')}"
        return Known(rows, Batch(x[order], labels[order]), names, None, described)
    assert isinstance(data, Tables) and data.encoding.target is not None
    scale = data.encoding.target
    try:
        y = torch.tensor([[(float(target) - scale.mean) / scale.std] for target in targets])
    except ValueError as error:
        raise DataError(f"{path}: {data.target} must be a number in each row: {error}.") from error
    return Known(rows, Batch(x, y), [], scale, f"{len(rows)} rows")


def check_classes(
    module: EpisodicModule[Any], classes: Sequence[str], most: int, queries: int, place: str, remedy: str
) -> None:
    """Raise `ConfigError` when a module cannot play a task of a user's.

    Args:
        module: the trained one.
        classes: names of those that were given.
        most: the largest number of examples of one.
        queries: how many there are.
        place: where the classes are, in words.
        remedy: how to give as many as training had, in words.
    """
    try:
        module.check_task(EpisodeShape(len(classes), most, max(queries, 1)), "test")
    except ConfigError as error:
        raise ConfigError(
            f"{place} has {len(classes)} classes ({', '.join(classes)}), which this checkpoint cannot play: {error} "
            f"Here: {remedy}, or the run of an algorithm whose way may differ, such as ProtoNet."
        ) from error


def predict_rows(
    module: EpisodicModule[Any], data: ReadsRows, support: Path, query: Path
) -> tuple[list[Row], list[tuple[str, str]]]:
    """The rows of the query file with what is predicted, and what is to be said of both files.

    Classes get `predicted` and `probability`; numbers `predicted` and, from an algorithm that predicts distributions,
    the ends of a 95 % interval, `low` and `high`. Numbers are on the scale of the file.

    Raises:
        DataError: of the files.
        ConfigError: the module cannot play this task.
    """
    known, asked = read_known(module, data, support), data.read_examples(query, labelled=False)
    if known.classes:
        most, remedy = int(known.support.y.bincount().max()), "give rows of as many classes as training had"
        check_classes(module, known.classes, most, len(asked.rows), str(support), remedy)
    facts = [("support", known.described), ("query", f"{len(asked.rows)} rows")]
    facts += [("note", note) for note in (unseen(data, known.rows, support), unseen(data, asked.rows, query)) if note]
    with torch.no_grad():
        adapted = module.adapt(module.ordered(known.support) if isinstance(module, StreamModule) else known.support)
    preds = module.predict(adapted, asked.x)
    if known.scale is None:
        confidence, label = preds[:, : len(known.classes)].max(1)
        names = [known.classes[c] for c in label.tolist()]
        rows = [row | {"predicted": name} for row, name in zip(asked.rows, names, strict=True)]
        return _joined(rows, {"probability": confidence}), facts
    return _joined(asked.rows, _on_scale(preds, known.scale)), facts


def unseen(data: ReadsRows, rows: Sequence[Row], path: Path) -> str:
    """Which categories of a file of rows training has not seen, in words; empty where there are none."""
    found = data.encoding.inputs.unseen(rows) if isinstance(data, Tables) else {}
    if not found:
        return ""
    named = "; ".join(f"{column}: {shortened(values)}" for column, values in found.items())
    return f"{path} has categories that training has not seen, which are taken as if they were missing ({named})"


def _on_scale(preds: Tensor, scale: Scale) -> dict[str, Tensor]:
    """Columns of numbers `(Q,)`: predictions `(Q, 1)`, or `(Q, 1, 2)` with standard deviations and so an interval."""
    if preds.ndim == 2:
        return {"predicted": preds[:, 0] * scale.std + scale.mean}
    centre, reach = preds[:, 0, 0] * scale.std + scale.mean, NORMAL_95 * scale.std * preds[:, 0, 1]
    return {"predicted": centre, "low": centre - reach, "high": centre + reach}


def _joined(rows: list[Row], columns: dict[str, Tensor]) -> list[Row]:
    numbers = {name: [round(value, 6) for value in values.tolist()] for name, values in columns.items()}
    return [row | {name: values[i] for name, values in numbers.items()} for i, row in enumerate(rows)]


def of_each(counts: Sequence[int], thing: str) -> str:
    """How many of a thing the classes have: `1 row each`, `from 2 to 3 rows each`."""
    fewest, most = min(counts), max(counts)
    return f"{most if fewest == most else f'from {fewest} to {most}'} {thing}{'s' if most > 1 else ''} each"
