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

from lightning_meta import notes
from lightning_meta.algorithms import FixedWeights
from lightning_meta.backbones import Cell
from lightning_meta.cli.composition import compose
from lightning_meta.cli.names import found
from lightning_meta.core import Batch, Momentum, Params, map_tasks
from lightning_meta.datamodules import HeldOutImages, TaskDataModule
from lightning_meta.errors import require_at_least

TABLE = Path(__file__).with_name("cells.csv")
COLUMNS = ("cell", "parameters", "seed", "held_out", "test")
DATA = "held_out_digits_for_cells"


def data() -> HeldOutImages:
    """Of the experiments of architecture search."""
    content = compose(found("data", DATA))
    made = instantiate_module(TaskDataModule, {"_class_path": content["class_path"]} | content["init_args"])
    made.setup("fit")
    return made


# ---- the table ---------------------------------------------------------------------------------------------------


def train(operations: Sequence[str], images: HeldOutImages, seed: int) -> tuple[float, float]:
    """Accuracy of a network of these operations on the held-out and the test images, after a training of its own."""
    module = FixedWeights(Cell(cell=operations), images.n_classes, inner_optimizer=Momentum).eval()
    trial = images.dataset("test").__getitems__([seed])
    trained = map_tasks(module.train_on, module.begin(trial), trial.support, mode="loop")
    weights = {name: value[0] for name, value in trained.params.items()}
    return accuracy(module, weights, images.all_held_out()), accuracy(module, weights, images.judges("test"))


@torch.no_grad()
def accuracy(module: FixedWeights, weights: Params, batch: Batch) -> float:
    return (module.logits(weights, batch.x).argmax(1) == batch.y).double().mean().item()


def train_all(seeds: Sequence[int], path: Path) -> None:
    """Write a row for each cell and seed that the table has not."""
    cell, images = Cell(), data()
    done = {(row["cell"], int(row["seed"])) for row in read(path)}
    for seed in seeds:
        for cell_E, size in zip(cell.cells_KE, cell.sizes_K.tolist(), strict=True):
            name = cell.named(cell_E)
            if (name, seed) in done:
                continue
            held_out, test = train(name.split("|"), images, seed)
            row = dict(zip(COLUMNS, (name, size, seed, f"{held_out:.4f}", f"{test:.4f}"), strict=True))
            append(path, row)


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
