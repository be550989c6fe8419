"""How good are searches for an architecture? The rank of what they find among all cells, each of which was trained.

python -m lightning_meta benchmark cells
python -m lightning_meta benchmark cells --train --seeds 0 1 2

With `--train`, every cell is trained on digits from new weights, once for each seed, and judged on the held-out images
and on the test images; a row of `cells.csv` is one training, and those that it has are not trained again.
"""

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path

import torch
from pytorch_lightning.cli import instantiate_module
from torch import Tensor

from lightning_meta import notes
from lightning_meta.algorithms import RandomSearch
from lightning_meta.backbones import Cell
from lightning_meta.cli.composition import compose
from lightning_meta.cli.names import found
from lightning_meta.compat import tree_map
from lightning_meta.core import Batch, Momentum, map_tasks
from lightning_meta.datamodules import HeldOutImages, TaskDataModule
from lightning_meta.errors import require_at_least

TABLE = Path(__file__).with_name("cells.csv")
COLUMNS = ("cell", "parameters", "seed", "held_out", "test")
AT_ONCE = 25  # networks
DATA = "held_out_digits_for_cells"


def data() -> HeldOutImages:
    """Of the experiments of architecture search."""
    content = compose(found("data", DATA))
    made = instantiate_module(TaskDataModule, {"_class_path": content["class_path"]} | content["init_args"])
    made.setup("fit")
    return made


# ---- the table ---------------------------------------------------------------------------------------------------


def train_all(seeds: Sequence[int], path: Path) -> None:
    """Write a row for each cell and seed that the table has not."""
    images, module = data(), RandomSearch(Cell(), inner_optimizer=Momentum)
    done = {(row["cell"], int(row["seed"])) for row in read(path)}
    names = [module.cell.named(cell_E) for cell_E in module.cell.cells_KE]
    for seed in seeds:
        missing = [place for place, name in enumerate(names) if (name, seed) not in done]
        for first in range(0, len(missing), AT_ONCE):
            places = missing[first : first + AT_ONCE]
            judged = trained(module, module.cell.cells_KE[places], images, seed)
            for place, held_out, test in zip(places, *judged, strict=True):
                row = (names[place], int(module.cell.sizes_K[place]), seed, f"{held_out:.4f}", f"{test:.4f}")
                append(path, dict(zip(COLUMNS, row, strict=True)))


@torch.no_grad()
def trained(module: RandomSearch, cells_NE: Tensor, images: HeldOutImages, seed: int) -> list[list[float]]:
    """Accuracies of N cells on the held-out and on the test images, after the same training from the same weights."""
    trial = images.dataset("test").__getitems__([seed])
    mixtures_NEO, one = module.cell.one_hot(cells_NE), (module.begin(trial), trial.support)
    start, support = tree_map(lambda leaf: leaf.expand(len(cells_NE), *leaf.shape[1:]), one)
    weights = map_tasks(module.train_child, mixtures_NEO, start, support).params
    accuracies = []
    for judge in (images.all_held_out(), images.judges("test")):
        query = Batch(*(part.expand(len(cells_NE), *part.shape) for part in judge))
        preds = map_tasks(module.judge_child, mixtures_NEO, weights, query, chunk_size=1).preds
        accuracies.append((preds.argmax(-1) == judge.y).double().mean(1).tolist())
    return accuracies


def read(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def append(path: Path, row: dict[str, object]) -> None:
    new = not path.is_file()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(row)


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m lightning_meta benchmark cells", description=(__doc__ or "").split("\n\n")[0],
        epilog=(__doc__ or "").split("\n\n", 2)[2], formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--train", action="store_true", help="train every cell, which takes minutes per seed")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of the trainings (%(default)s)")
    parser.add_argument("--table", type=Path, default=TABLE, help="of all cells (%(default)s)")
    return parser


def main(arguments: Sequence[str]) -> None:
    given = options().parse_args(arguments)
    notes.set_up()
    if given.train:
        train_all(given.seeds, given.table)
