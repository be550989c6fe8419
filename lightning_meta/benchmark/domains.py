"""Trained here, tested there: a table of runs by data sets, on the same frozen episodes. Accuracy with its interval.

python -m lightning_meta benchmark domains RUN [RUN ...] [--data NAME ...] [--n_way 5] [--k_shot 1] [--episodes 600]

A RUN is the folder of a run, the name of its experiment, or a checkpoint. A data set is the name of a file in
configs/data, a file of the same form, or a folder of images, <folder>/<class>/ (all classes are for testing) or with
the folders train, val and test. By default the data sets are those that the runs were trained on.

Images are made into the shape that each run's network takes, as `Mixed` does it. The episodes of a data set depend on
the data set, their shape and the seed alone; they are those of `test` with the same settings.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from inspect import signature
from pathlib import Path
from typing import Any, NamedTuple

from pytorch_lightning.cli import instantiate_module

from lightning_meta import notes
from lightning_meta.benchmark.runs import found_run, label, tested
from lightning_meta.callbacks import EpisodeTable
from lightning_meta.cli.composition import compose
from lightning_meta.cli.names import found
from lightning_meta.cli.predict import load_run
from lightning_meta.core.episode import EpisodeShape
from lightning_meta.datamodules import ClassificationDataModule, EpisodicDataModule, Mixed, TaskDataModule
from lightning_meta.datamodules.class_split import SPLITS
from lightning_meta.errors import ConfigError, UserError, require_at_least
from lightning_meta.metrics import EpisodicAccuracy
from lightning_meta.modules import EpisodicModule

# Settings of a data set that say which episodes there are, not which images.
OF_EPISODES = {
    name
    for kind in (ClassificationDataModule, EpisodicDataModule, TaskDataModule)
    for name in signature(kind.__init__).parameters
}
DataSet = dict[str, Any]  # class_path and init_args


class Run(NamedTuple):
    """A trained module, with the data module (without data) and the checkpoint of its run."""

    folder: Path
    module: EpisodicModule[Any]
    data: TaskDataModule
    checkpoint: Path


class Row(NamedTuple):
    """A run on every data set: of each, `data`, `acc` and half of its 95 % interval, `acc_ci95`, from 0 to 1."""

    run: str
    checkpoint: str
    algorithm: str
    trained_on: str
    tested_on: dict[str, dict[str, Any]]
    episodes_digest: str | None


# ---- data sets ---------------------------------------------------------------------------------------------------


def named(given: str) -> tuple[str, DataSet]:
    """A data set and the name of its column: of configs/data, a file, or a folder of images."""
    place = Path(given)
    if place.is_dir():
        whole = not all((place / split).is_dir() for split in SPLITS)
        init_args = {"root": str(place)} | ({"split": {"fractions": [0, 0, 1]}} if whole else {})
        images = {"class_path": "lightning_meta.datamodules.ImageFolder", "init_args": init_args}
        return column(place.resolve().name), images
    path = found("data", given)
    return column(path.stem), images_alone(compose(path))


def column(name: str) -> str:
    """A name that a metric may have in its own."""
    return "".join("_" if letter in "./ " else letter for letter in name)


def images_alone(data: Mapping[str, Any]) -> DataSet:
    """Without the settings that say which episodes there are."""
    init_args = {key: value for key, value in (data.get("init_args") or {}).items() if key not in OF_EPISODES}
    return {"class_path": data["class_path"], "init_args": init_args}


def trained_on(data: Mapping[str, Any]) -> dict[str, DataSet]:
    """The data sets of a run's config by name; several where they were mixed."""
    if sources := (data.get("init_args") or {}).get("sources"):
        return {name: images_alone(source) for name, source in sources.items()}
    kind = data["class_path"].rpartition(".")[-1]
    name = Path(data["init_args"]["root"]).resolve().name if kind == "ImageFolder" else kind.lower()
    return {column(name): images_alone(data)}


def made(name: str, data: DataSet, image_shape: Sequence[int]) -> ClassificationDataModule:
    """The data set, a folder's images read in the shape that is needed."""
    arguments = dict(data["init_args"])
    if data["class_path"].endswith(".ImageFolder"):
        channels, size, _ = image_shape
        arguments = {"image_size": size, "channels": channels} | arguments
    made = instantiate_module(TaskDataModule, {"_class_path": data["class_path"]} | arguments)
    if not isinstance(made, ClassificationDataModule):
        raise ConfigError(f"{name} is a {data['class_path'].rpartition('.')[-1]}, which has no classes of images.")
    return made


# ---- the table ---------------------------------------------------------------------------------------------------


def test(run: Run, columns: Mapping[str, DataSet], shape: EpisodeShape, episodes: int, seed: int, out: Path) -> Row:
    """A run on every data set."""
    folder, module, data, checkpoint = run
    image_shape: Sequence[int] = getattr(getattr(module, "backbone", None), "in_shape", (0,))
    if len(image_shape) != 3 or not isinstance(module.metric, EpisodicAccuracy):
        raise ConfigError(
            f"this is {type(module).__name__} on {data.name}, without a backbone for images; give classifiers of them."
        )
    channels, size, _ = image_shape
    sources = {name: made(name, data_set, image_shape) for name, data_set in columns.items()}
    mixed = Mixed(
        sources, image_size=size, channels=channels, seed=seed, test_episodes=episodes, eval_meta_batch_size=20,
        **shape._asdict(),
    )  # fmt: skip
    measured = tested(module, mixed, out / label(folder), table := EpisodeTable())
    tested_on = {
        name: {"data": source.name, **{key: measured[f"test/{name}/{key}"] for key in ("acc", "acc_ci95")}}
        for name, source in sources.items()
    }
    trained = module.provenance.trained_on if module.provenance else None
    return Row(
        str(folder), str(checkpoint), type(module).__name__, trained or data.trained_on(), tested_on, table.digest
    )


def load(place: Path) -> Run:
    """A run by its folder, by its experiment's name, or by a checkpoint."""
    folder, checkpoint = found_run(place)
    return Run(folder, *load_run(folder, checkpoint))


def markdown(rows: Sequence[Row]) -> str:
    """Rows: trained on; columns: tested on. Accuracy in per cent."""
    names = [*rows[0].tested_on]
    lines = [f"| trained on | run | {' | '.join(names)} |", f"|---|---|{'---|' * len(names)}"]
    for row in rows:
        cells = [EpisodicAccuracy.number(of["acc"], of["acc_ci95"]) for of in row.tested_on.values()]
        lines.append(f"| {row.trained_on} | `{label(Path(row.run))}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m lightning_meta benchmark domains", description=(__doc__ or "").split("\n\n")[0],
        epilog=(__doc__ or "").split("\n\n", 2)[2], formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder, experiment's name, or checkpoint")
    parser.add_argument("--data", nargs="+", metavar="NAME", help="what to test on (what the runs were trained on)")
    parser.add_argument("--n_way", type=int, default=5, help="classes of an episode (%(default)s)")
    parser.add_argument("--k_shot", type=int, default=1, help="support images per class (%(default)s)")
    parser.add_argument("--n_query", type=int, default=15, help="query images per class (%(default)s)")
    parser.add_argument("--episodes", type=int, default=600, help="of each data set (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the episodes (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs/domains"), help="where the table goes (%(default)s)")
    return parser


def main(arguments: Sequence[str]) -> None:
    given = options().parse_args(arguments)
    notes.set_up()
    require_at_least(1, episodes=given.episodes)
    shape = EpisodeShape(given.n_way, given.k_shot, given.n_query)
    runs = [load(place) for place in given.runs]
    configs = [] if given.data else [compose(run.folder / "config.yaml")["data"] for run in runs]
    pairs = [pair for config in configs for pair in trained_on(config).items()] + list(map(named, given.data or []))
    columns: dict[str, DataSet] = {}
    for name, data in pairs:
        if columns.setdefault(name, data) != data:
            raise ConfigError(f"two data sets are called {name}; rename a file or a folder, and name them by --data.")
    rows = []
    for run in runs:
        try:
            rows.append(test(run, columns, shape, given.episodes, given.seed, given.out))
        except UserError as error:
            raise type(error)(f"{run.folder}: {error}") from error
    same = {"episodes": given.episodes, "episode_seed": given.seed, **shape._asdict()}
    for row in rows:
        write(Path(row.run) / "domains.json", row._asdict() | same)
    write(given.out / "domains.json", {**same, "rows": [row._asdict() for row in rows]})
    text = markdown(rows)
    (given.out / "domains.md").write_text(text + "\n")
    print(
        f"{text}\n\nAccuracy (%), {shape}, {given.episodes} episodes of each data set, the same for all runs; ± are "
        f"95 % intervals.\nFiles: domains.json in the folder of each run; {given.out}/domains.md, .json"
    )


def write(path: Path, content: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n")
