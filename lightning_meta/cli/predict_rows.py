"""A trained meta-learner on rows of tables: texts, or numbers and categories."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_meta.core import Batch
from lightning_meta.core.episode import EpisodeShape
from lightning_meta.datamodules.rows import Examples, ReadsRows, Row
from lightning_meta.datamodules.tables.tables import Tables
from lightning_meta.errors import DataError
from lightning_meta.metrics import EpisodicAccuracy
from lightning_meta.modules import EpisodicModule, StreamModule

NORMAL_95 = 1.96  # standard deviations to either side


def predict_rows(module: EpisodicModule[Any], data: ReadsRows, support: Path, query: Path) -> tuple[list[Row], str]:
    """The rows of the query file with what is predicted, and the support set in words.

    Classes get `predicted` and `probability`; numbers `predicted` and, from an algorithm that predicts distributions,
    the ends of a 95 % interval, `low` and `high`. Numbers are on the scale of the file.

    Raises:
        DataError: of the files.
        ConfigError: the module cannot play this task.
    """
    known, asked = data.read_examples(support, labelled=True), data.read_examples(query, labelled=False)
    module.check_input_shape(known.x.shape[1:], str(support))
    if isinstance(module.metric, EpisodicAccuracy):
        return _classes(module, known, asked, support)
    assert isinstance(data, Tables) and data.encoding.target is not None
    mean, std, _ = data.encoding.target
    try:
        targets_S1 = torch.tensor([[(float(target) - mean) / std] for target in known.targets])
    except ValueError as error:
        raise DataError(f"{support}: {data.target} must be a number in each row: {error}.") from error
    with torch.no_grad():
        preds = module.predict(module.adapt(Batch(known.x, targets_S1)), asked.x)
    center_Q, spread_Q = (preds[:, 0, 0], preds[:, 0, 1]) if preds.ndim == 3 else (preds[:, 0], None)
    columns = {"predicted": center_Q * std + mean}
    if spread_Q is not None:
        reach_Q = NORMAL_95 * spread_Q * std
        columns |= {"low": columns["predicted"] - reach_Q, "high": columns["predicted"] + reach_Q}
    return _joined(asked.rows, columns), f"{len(known.rows)} rows"


def _classes(module: EpisodicModule[Any], known: Examples, asked: Examples, support: Path) -> tuple[list[Row], str]:
    names = sorted({str(target) for target in known.targets})
    if len(names) < 2:
        raise DataError(f"{support} has rows of one class, {names[0]}; give rows of two or more.")
    labels = torch.tensor([names.index(str(target)) for target in known.targets])
    order = labels.argsort(stable=True)  # as episodes have them, class by class
    learned = Batch(known.x[order], labels[order])
    shots = labels.bincount().tolist()
    module.check_shots(shots)
    module.check_task(EpisodeShape(len(names), max(shots), len(asked.rows)), "test")
    with torch.no_grad():
        adapted = module.adapt(module.ordered(learned) if isinstance(module, StreamModule) else learned)
    confidence, label = module.predict(adapted, asked.x)[:, : len(names)].max(1)
    rows = _joined(asked.rows, {"probability": confidence})
    found = [names[c] for c in label.tolist()]
    described = f"{len(names)} classes, from {min(shots)} to {max(shots)} rows each"
    return [row | {"predicted": name} for row, name in zip(rows, found, strict=True)], described


def _joined(rows: list[Row], columns: dict[str, Tensor]) -> list[Row]:
    numbers = {name: [round(value, 6) for value in values.tolist()] for name, values in columns.items()}
    return [row | {name: values[i] for name, values in numbers.items()} for i, row in enumerate(rows)]
