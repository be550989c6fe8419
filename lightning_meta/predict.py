"""A trained meta-learner in use: a few labelled images of each class, and what it takes other images for.

python -m lightning_meta predict RUN --support FOLDER --query FOLDER [--out FOLDER]

RUN is the folder of a training run, `runs/<experiment>/version_<n>`. The support folder has a folder of images for each
class, named as the class, `<support>/<class>/*.png`; the query folder has the images to be classified.
"""

import argparse
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from pytorch_lightning.cli import instantiate_module
from torch import Tensor

from lightning_meta import checkpoints
from lightning_meta.backbones import norm_protocol
from lightning_meta.callbacks.tables import write_csv
from lightning_meta.core import Batch
from lightning_meta.core.episode import EpisodeShape
from lightning_meta.core.sampling import choose, episode_keys
from lightning_meta.datamodules.base import TaskDataModule
from lightning_meta.datamodules.classification import ClassificationDataModule
from lightning_meta.datamodules.images.image_folder import image_files, sub_folders
from lightning_meta.errors import ConfigError, DataError
from lightning_meta.metrics import EpisodicAccuracy
from lightning_meta.modules import EpisodicModule, StreamModule
from lightning_meta.names import run_folder
from lightning_meta.viz import prediction_gallery

CHUNK = 200  # query images at once, where predictions do not depend on each other


class Task(NamedTuple):
    """Images that a user gave: support `x (S, C, H, W)` in [0, 1] and labels `y (S,)`, and the query `(Q, C, H, W)`.

    Label c stands for the c-th of `classes`; `files` are those of the query.
    """

    classes: list[str]
    support: Batch
    query: Tensor
    files: list[Path]


def load_run(run: Path, checkpoint: Path | None = None) -> tuple[EpisodicModule[Any], ClassificationDataModule, Path]:
    """The trained module of a run in evaluation mode, its data module (without data), and the checkpoint's path.

    Raises:
        DataError: `run` has no config or no checkpoint.
        ConfigError: the checkpoint is damaged or not the run's, or the run did not learn to classify images.
    """
    if not (run / "config.yaml").is_file():
        raise DataError(f"{run} has no config.yaml; give the folder of a training run: runs/<experiment>/version_<n>.")
    config = yaml.safe_load((run / "config.yaml").read_text())
    data, model = config["data"], config["model"]["class_path"]
    checkpoint = checkpoint or checkpoints.best_or_last(run)
    checkpoints.read_of(checkpoint, model)
    package, _, name = model.rpartition(".")
    try:
        module = getattr(import_module(package), name).load_from_checkpoint(checkpoint, map_location="cpu")
    except RuntimeError as error:
        reason = " ".join(map(str.strip, str(error).splitlines()[:2]))
        raise ConfigError(f"{checkpoint} does not fit {model} as it is now: {reason}") from error
    datamodule = instantiate_module(TaskDataModule, {"_class_path": data["class_path"]} | data["init_args"])
    if not (isinstance(module.metric, EpisodicAccuracy) and isinstance(datamodule, ClassificationDataModule)):
        raise ConfigError(f"{run} is {name} on {datamodule.name}; predict is for runs that learned to classify images.")
    return module, datamodule, checkpoint


def read_task(support: Path, query: Path, data: ClassificationDataModule, invert: bool = False) -> Task:
    """Read the images of two folders and make them like those of `data`; `invert` exchanges dark and light.

    Raises `DataError` where a folder or its images are missing, or an image cannot be read.
    """
    for folder, option in ((support, "--support"), (query, "--query")):
        if not folder.is_dir():
            raise DataError(f"{folder} is no folder; {option} must be one.")
    classes = sub_folders(support)
    if len(classes) < 2:
        raise DataError(
            f"{support} has {len(classes)} class folders; put images of each of two or more classes into {support}/"
            "<class>/."
        )

    def read(paths: list[Path]) -> Tensor:
        images = torch.stack([data.prepare_image(path) for path in paths]).float() / 255
        return 1 - images if invert else images

    of_class = [read(image_files(support / name)) for name in classes]
    labels = torch.tensor([label for label, images in enumerate(of_class) for _ in images])
    files = image_files(query)
    return Task(classes, Batch(torch.cat(of_class), labels), read(files), files)


def check(module: EpisodicModule[Any], task: Task) -> None:
    """Raise `ConfigError` when the module cannot play this task."""
    shots = task.support.y.bincount().tolist()
    module.check_input_shape(task.support.x.shape[1:], "what the run's data module makes of an image")
    module.check_shots(shots)
    try:
        module.check_task(EpisodeShape(len(task.classes), max(shots), len(task.files)), "test")
    except ConfigError as error:
        raise ConfigError(
            f"the support folder has {len(task.classes)} classes ({', '.join(task.classes)}), which this checkpoint "
            f"cannot play: {error} Here: give as many class folders as training had classes, or the run of an "
            "algorithm whose way may differ, such as ProtoNet."
        ) from error


def probabilities(module: EpisodicModule[Any], task: Task) -> Tensor:
    """Of each query image for each class, `(Q, N)`."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    module.to(device)
    support, query = Batch(*(leaf.to(device) for leaf in task.support)), task.query.to(device)
    if isinstance(module, StreamModule):
        size = len(support.y)
        order_S = torch.from_numpy(choose(episode_keys(0, 0, [0]), size, size)[0]).to(device)
        support = Batch(support.x[order_S], support.y[order_S])
    with torch.no_grad():
        adapted = module.adapt(support)
    parts = [query] if "transductive" in norm_protocol(module) else query.split(CHUNK)
    return torch.cat([module.predict(adapted, part)[:, : len(task.classes)] for part in parts]).cpu()


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        "python -m lightning_meta predict",
        description="Classify images with a trained meta-learner, from a few labelled images of each class.",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a training run, or its experiment's name")
    parser.add_argument(
        "--support", type=Path, required=True, metavar="FOLDER", help="folder with a folder of images for each class"
    )
    parser.add_argument(
        "--query", type=Path, required=True, metavar="FOLDER", help="folder of the images to be classified"
    )
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where the files go (RUN/predictions)")
    parser.add_argument("--ckpt_path", type=Path, metavar="FILE", help="checkpoint (the run's best one)")
    parser.add_argument(
        "--invert",
        action="store_true",
        help="exchange dark and light. Runs on Omniglot and Glyphs take images for dark ink on light paper",
    )
    given = parser.parse_args(arguments)
    run = run_folder(given.run)
    module, data, checkpoint = load_run(run, given.ckpt_path)
    task = read_task(given.support, given.query, data, given.invert)
    check(module, task)
    confidence, label = probabilities(module, task).max(1)
    out = given.out or run / "predictions"
    rows = [
        {"file": path.name, "predicted": task.classes[c], "probability": round(p, 6)}
        for path, c, p in zip(task.files, label.tolist(), confidence.tolist(), strict=True)
    ]
    write_csv(out / "predictions.csv", rows)
    title = f"{type(module).__name__}, trained on {data.name}"
    prediction_gallery(task.support, task.query, task.classes, label, confidence, title).savefig(
        out / "predictions.png"
    )
    shots = task.support.y.bincount()
    protocol = norm_protocol(module)
    together = " (a prediction depends on which query images are given together)" if "transductive" in protocol else ""
    print(
        f"{title}: {checkpoint}\n"
        f"support       {len(task.classes)} classes, from {shots.min()} to {shots.max()} images each\n"
        f"query         {len(task.files)} images of {' x '.join(map(str, task.query.shape[1:]))}\n"
        f"normalisation {protocol}{together}\n"
        f"files         {out}/predictions.csv, predictions.png"
    )
