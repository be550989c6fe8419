"""A trained meta-learner in use: a few labelled images of each class, and what it takes other images for.

python -m lightning_meta predict RUN --support PLACE --query PLACE [--out FOLDER] [--json]

RUN is the folder of a training run, `runs/<experiment>/version_<n>`. Of images, the support folder has a folder for
each class, named as the class, `<support>/<class>/*.png`, and the query folder has the images to be classified; of
sounds they have WAV files. Of mixtures of sounds, the support folder has a folder of WAV files for each voice, and the
query folder has mixtures to be taken apart. Of speech, the support folder has WAV files and `transcripts.csv`, with the
columns `file` and `text`, and the query folder has WAV files to be written down. Of a translator both are files of
rows, with a `sentence` and, in the support, its `translation`. Of sentences whose words are tagged, both are files with
a word on each line, the support's with its tag after it. Of texts and tables both are files with the columns of the
training data; the query's need not have the target. Of a TabPFN, which takes any table, both are files with the same
columns, and the support has the one to be predicted as well.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from pytorch_lightning.cli import instantiate_module
from torch import Tensor

from lightning_meta import checkpoints, shared_folder
from lightning_meta.algorithms.in_context.tab_pfn import TabPFN
from lightning_meta.algorithms.in_context.tab_pfn_regression import TabPFNRegression
from lightning_meta.algorithms.initialize.meta_asr import MetaASR
from lightning_meta.backbones import norm_protocol
from lightning_meta.cli.names import run_folder, runs_like
from lightning_meta.cli.predict_rows import check_classes, of_each, predict_rows
from lightning_meta.cli.predict_sounds import predict_sounds
from lightning_meta.cli.predict_strings import predict_strings
from lightning_meta.cli.predict_table import predict_table
from lightning_meta.cli.predict_tags import predict_tags
from lightning_meta.cli.predict_translations import predict_translations
from lightning_meta.core import Batch
from lightning_meta.core.episode import EpisodeShape
from lightning_meta.datamodules.base import TaskDataModule
from lightning_meta.datamodules.classification import ClassificationDataModule
from lightning_meta.datamodules.files import IMAGES, example_files, sub_folders, visible_files
from lightning_meta.datamodules.language.tagged_sentences import TaggedSentences
from lightning_meta.datamodules.language.translations import TranslationDataModule
from lightning_meta.datamodules.rows import ReadsRows, Row
from lightning_meta.datamodules.tables.tabular_prior import TabularPrior
from lightning_meta.errors import ConfigError, DataError
from lightning_meta.metrics import EpisodicAccuracy, EpisodicLogLikelihood, EpisodicMSE
from lightning_meta.modules import EpisodicModule, SeparationModule, StreamModule
from lightning_meta.reports.fonts import drawable
from lightning_meta.reports.prediction_gallery import prediction_gallery
from lightning_meta.reports.tables import write_csv
from lightning_meta.run_folders import folders_named

NUMBERS = (EpisodicMSE, EpisodicLogLikelihood)
CHUNK = 200  # query images at once, where predictions do not depend on each other
UNEVEN = 1.5  # times its share of the query images: a class with more of them than that


class Task(NamedTuple):
    """Images that a user gave: support `x (S, C, H, W)` in [0, 1] and labels `y (S,)`, and the query `(Q, C, H, W)`.

    Label c stands for the c-th of `classes`; `files` are those of the query.
    """

    classes: list[str]
    support: Batch
    query: Tensor
    files: list[Path]


class Use(NamedTuple):
    """A trained run, and where its predictions go.

    Attributes:
        run: its folder.
        module: in evaluation mode.
        data: what it was trained on, without data.
        state: its checkpoint.
        title: module and data in words.
        out: folder.
    """

    run: Path
    module: EpisodicModule[Any]
    data: Any
    state: dict[str, Any]
    title: str
    out: Path


def trained_run(place: Path) -> Path:
    """The folder of a run: as it is named, or the newest one with a checkpoint of an experiment's, by its name too.

    Raises `ConfigError` where only seeds of the experiment were trained.
    """
    run = run_folder(place, having="**/*.ckpt")
    if (run / "config.yaml").is_file():
        return run
    seeds = [seed for folder in folders_named(place) for seed in folder.glob("seed_*") if any(seed.rglob("*.ckpt"))]
    if seeds:
        named = ", ".join(str(seed) for seed in sorted(seeds, key=lambda seed: (len(seed.name), seed.name)))
        raise ConfigError(f"of {place} only seeds were trained; give one of them: {named}.")
    return run_folder(place)


def load_run(run: Path, checkpoint: Path | None = None) -> tuple[EpisodicModule[Any], Any, Path]:
    """The trained module of a run in evaluation mode, its data module (without data), and the checkpoint's path.

    The data module is a `ClassificationDataModule`, or what `ReadsRows`.

    Raises:
        DataError: `run` has no config or no checkpoint.
        ConfigError: the checkpoint is damaged or not the run's, or the run learned nothing that is asked for by files.
    """
    module, datamodule, state, path = open_run(run, checkpoint)
    make_ready(run, module, datamodule, state)
    return module, datamodule, path


def make_ready(run: Path, module: EpisodicModule[Any], datamodule: Any, state: Mapping[str, Any]) -> None:
    """Give a data module what its checkpoint has of the data. `ConfigError` where it reads no files of a user's."""
    classifies = isinstance(module.metric, EpisodicAccuracy)
    if isinstance(datamodule, ReadsRows) and (classifies or isinstance(module.metric, NUMBERS)):
        datamodule.restore(state[type(datamodule).__qualname__])
    elif not (classifies and isinstance(datamodule, ClassificationDataModule)):
        raise ConfigError(
            f"{run} is {type(module).__name__} on {datamodule.name}; this command is for classes of images, sounds "
            "and texts, for tables, and for translations, tags and strings of words."
        )


def open_run(run: Path, checkpoint: Path | None = None) -> tuple[EpisodicModule[Any], Any, dict[str, Any], Path]:
    """The trained module of a run, its data module as it begins, what the checkpoint holds, and its path."""
    config = config_of(run)
    if checkpoint is None and (run / shared_folder.WEIGHTS).is_file():
        with shared_folder.checkpoint_of(run) as file:
            return (*open_run(run, file)[:3], run / shared_folder.WEIGHTS)
    checkpoint = checkpoint or checkpoints.best_or_last(run)
    module, state = load_module(config["model"]["class_path"], checkpoint)
    return module, data_of(config["data"]), state, checkpoint


def config_of(run: Path) -> dict[str, Any]:
    """The `config.yaml` of a run; `DataError` where there is none."""
    if not (run / "config.yaml").is_file():
        lacks = "has no config.yaml" if run.is_dir() else "does not exist"
        near = "" if run.is_dir() else runs_like(run)
        raise DataError(f"{run} {lacks}; give the folder of a training run: runs/<experiment>/version_<n>.{near}")
    return yaml.safe_load((run / "config.yaml").read_text())


def load_module(model: str, checkpoint: Path) -> tuple[Any, dict[str, Any]]:
    """The module of a class path from its checkpoint, and what else that holds."""
    state = checkpoints.read_of(checkpoint, model)
    package, _, name = model.rpartition(".")
    try:
        module = getattr(import_module(package), name).load_from_checkpoint(checkpoint, map_location="cpu")
    except RuntimeError as error:
        reason = " ".join(map(str.strip, str(error).splitlines()[:2]))
        raise ConfigError(f"{checkpoint} does not fit {model} as it is now: {reason}") from error
    return module, state


def data_of(config: Mapping[str, Any]) -> Any:
    """The data module of a config, without data."""
    return instantiate_module(TaskDataModule, {"_class_path": config["class_path"]} | config["init_args"])


def read_task(support: Path, query: Path | None, data: ClassificationDataModule, invert: bool = False) -> Task:
    """Read the images of two folders and make them like those of `data`; `invert` exchanges dark and light.

    Without a query folder the task has no query images.

    Raises `DataError` where a folder or its images are missing, or images cannot be read: all of them at once.
    """
    for folder, option in ((support, "--support"), (query, "--query")):
        if folder is not None and not folder.is_dir():
            raise DataError(f"{folder} is no folder; {option} must be one.")
    classes = sub_folders(support, data.kind)
    if len(classes) < 2:
        raise DataError(
            f"{support} has {len(classes)} class folders; put {data.kind.name} of each of two or more classes into "
            f"{support}/<class>/."
        )

    of_class = {name: example_files(support / name, data.kind) for name in classes}
    return make_task(of_class, example_files(query, data.kind) if query else [], data, invert)


def make_task(
    of_class: Mapping[str, Sequence[Path]], query: Sequence[Path], data: ClassificationDataModule, invert: bool = False
) -> Task:
    """Read images, those of each class and those in question, and make them like those of `data`.

    Raises `DataError` where images cannot be read: all of them at once.
    """
    labels = torch.tensor([label for label, paths in enumerate(of_class.values()) for _ in paths])
    shown = [path for paths in of_class.values() for path in paths]
    images, errors = [], []
    for path in [*shown, *query]:
        try:
            images.append(data.prepare_image(path))
        except DataError as error:
            errors.append(str(error))
    if errors:
        raise DataError(
            " ".join([f"{len(errors)} {data.kind.name} cannot be used:", *errors] if len(errors) > 1 else errors)
        )
    x = torch.stack(images).float() / 255
    x = 1 - x if invert else x
    return Task([*of_class], Batch(x[: len(shown)], labels), x[len(shown) :], [*query])


def treatment(support: Path, query: Path, channels: int, data: ClassificationDataModule) -> list[str]:
    """What was done to the files of two folders, and what in them was passed over, in a line for each."""
    kind = data.kind
    folders = [support / name for name in sub_folders(support, kind)]
    paths = [path for folder in (*folders, query) for path in example_files(folder, kind)]
    deeper = [f"{folder}/{name}" for folder in (*folders, query) for name in sub_folders(folder, kind)]
    others = [path for folder in (*folders, query) for path in visible_files(folder, False, kind)]
    beside = visible_files(support, True, kind)
    lines = {
        f"sub-folders passed over: {len(deeper)} ({_some(deeper)})": deeper,
        f"files passed over that are no {kind.name}: {len(others)} ({_some(others)})": others,
        f"{kind.name} passed over beside the class folders: {len(beside)} ({_some(beside)})": beside,
    }
    return [*data.changes(paths, channels), *(line for line, happened in lines.items() if happened)]


def doubt(protocol: str, shape: EpisodeShape, task: Task, predicted: Tensor) -> str:
    """What there is to fear of statistics that are those of the query images; empty where there is nothing.

    Args:
        protocol: of normalisation.
        shape: of the episodes that training was tested on.
        task: of the user.
        predicted: labels of the query images `(Q,)`.
    """
    if "transductive" not in protocol:
        return ""
    usual, count = shape.n_way * shape.n_query, predicted.bincount(minlength=len(task.classes))
    few = f"{len(predicted)} query images in place of {usual}" if len(predicted) < usual else ""
    most = int(count.max())
    uneven = f"{most} of {len(predicted)} taken for {task.classes[int(count.argmax())]}"
    uneven = uneven if most * len(task.classes) > UNEVEN * len(predicted) else ""
    if not few and not uneven:
        return ""
    return (
        f"{' and '.join(filter(None, (few, uneven)))}: transductive normalisation, by the query images themselves, "
        "was trained on as many of each class, and may be wrong here. Train a run with norm: inductive "
        "(--model.backbone.norm inductive), whose predictions do not depend on the other images"
    )


def _some(things: Sequence[Any]) -> str:
    return ", ".join(map(str, things[:3])) + (", ..." if len(things) > 3 else "")


def check(
    module: EpisodicModule[Any],
    task: Task,
    place: str = "the support folder",
    remedy: str = "give as many class folders as training had classes",
) -> None:
    """Raise `ConfigError` when the module cannot play this task, of classes at a place, in words."""
    shots = task.support.y.bincount().tolist()
    module.check_input_shape(task.support.x.shape[1:], "what the run's data module makes of an image")
    module.check_shots(shots)
    check_classes(module, task.classes, max(shots), len(task.files), place, remedy)


def reads_jointly(module: EpisodicModule[Any]) -> bool:
    """Whether a prediction depends on the other query images, by the head or by the normalisation."""
    return module.transductive or "transductive" in norm_protocol(module)


def probabilities(module: EpisodicModule[Any], task: Task) -> Tensor:
    """Of each query image for each class, `(Q, N)`."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    module.to(device)
    support, query = Batch(*(leaf.to(device) for leaf in task.support)), task.query.to(device)
    with torch.no_grad():
        adapted = module.adapt(module.ordered(support) if isinstance(module, StreamModule) else support)
    parts = [query] if reads_jointly(module) else query.split(CHUNK)
    return torch.cat([module.predict(adapted, part)[:, : len(task.classes)] for part in parts]).cpu()


def write(out: Path, rows: Sequence[Row], as_json: bool) -> str:
    """Write predictions; the files in words."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    write_csv(out / "predictions.csv", [{name: row.get(name) for name in columns} for row in rows])
    if not as_json:
        return f"{out}/predictions.csv"
    (out / "predictions.json").write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return f"{out}/predictions.csv, predictions.json"


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        "python -m lightning_meta predict",
        description="Classify images, sounds or texts, or predict rows of tables, from a few labelled examples.",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a training run, or its experiment's name")
    parser.add_argument(
        "--support",
        type=Path,
        required=True,
        metavar="PLACE",
        help="folder with a folder of images for each class; of texts and tables a file",
    )
    parser.add_argument(
        "--query",
        type=Path,
        required=True,
        metavar="PLACE",
        help="folder of images, or file of rows, in question",
    )
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where the files go (RUN/predictions)")
    parser.add_argument("--ckpt_path", type=Path, metavar="FILE", help="checkpoint (the run's best one)")
    parser.add_argument(
        "--invert",
        action="store_true",
        help="exchange dark and light. Runs on Omniglot and Glyphs take images for dark ink on light paper",
    )
    parser.add_argument("--target", metavar="NAME", help="of a TabPFN: the column to be predicted (the query lacks it)")
    parser.add_argument("--json", action="store_true", help="write predictions.json too")
    given = parser.parse_args(arguments)
    run = run_folder(given.run) if given.ckpt_path else trained_run(given.run)
    module, data, state, checkpoint = open_run(run, given.ckpt_path)
    use = Use(
        run, module, data, state, f"{type(module).__name__}, trained on {data.name}", given.out or run / "predictions"
    )
    facts = predict(use, given)
    print("\n".join([f"{use.title}: {checkpoint}", *(f"{name:<13} {fact}" for name, fact in facts if fact)]))


def predict(use: Use, given: argparse.Namespace) -> list[tuple[str, str]]:
    """Write what a run predicts of a user's files; what is to be said of them."""
    module, data, places = use.module, use.data, (given.support, given.query)
    if isinstance(module, SeparationModule):
        return predict_sounds(module, data, *places, use.out)
    if isinstance(data, TaggedSentences):
        return predict_tags(module, data, *places, use.out)
    if isinstance(module, MetaASR):
        rows, facts = predict_strings(module, data, *places)
    elif isinstance(data, TranslationDataModule):
        data.restore(use.state.get(type(data).__qualname__, {}))
        rows, facts = predict_translations(module, data, *places)
    elif isinstance(module, TabPFN | TabPFNRegression) and isinstance(data, TabularPrior):
        rows, facts = predict_table(module, *places, given.target)
    else:
        make_ready(use.run, module, data, use.state)
        if not isinstance(data, ReadsRows):
            return predict_images(use, given)
        rows, facts = predict_rows(module, data, *places)
    return [*facts, ("files", write(use.out, rows, given.json))]


def predict_images(use: Use, given: argparse.Namespace) -> list[tuple[str, str]]:
    """Images, or sounds as pictures, by class."""
    module, data = use.module, use.data
    if given.invert and data.kind is not IMAGES:
        raise ConfigError(f"--invert exchanges dark and light, but the examples are {data.kind.name}; leave it out.")
    task = read_task(given.support, given.query, data, given.invert)
    check(module, task)
    confidence, label = probabilities(module, task).max(1)
    rows = [
        {"file": path.name, "predicted": task.classes[c], "probability": round(p, 6)}
        for path, c, p in zip(task.files, label.tolist(), confidence.tolist(), strict=True)
    ]
    files = write(use.out, rows, given.json)
    names = [path.name for path in task.files]
    figure = prediction_gallery(task.support, task.query, task.classes, label, confidence, use.title, names)
    figure.savefig(use.out / "predictions.png")
    pairs = zip(drawable(task.classes, "class"), task.classes, strict=True)
    renamed = [(shown, name) for shown, name in pairs if shown != name]
    shots, protocol = task.support.y.bincount().tolist(), norm_protocol(module)
    together = " (a prediction depends on which query images are given together)" if reads_jointly(module) else ""
    return [
        ("support", f"{len(task.classes)} classes, {of_each(shots, data.kind.name.removesuffix('s'))}"),
        ("query", f"{len(task.files)} {data.kind.name} of {' x '.join(map(str, task.query.shape[1:]))}"),
        *(("picture", f"{shown} is {name}, which no installed font can draw") for shown, name in renamed),
        *((data.kind.name, line) for line in treatment(given.support, given.query, task.query.shape[1], data)),
        ("normalisation", f"{protocol}{together}"),
        ("warning", doubt(protocol, data.shapes["test"], task, label)),
        ("files", f"{files}, predictions.png"),
    ]
