"""How good are searches for an architecture? The rank of what they find among all cells, each of which was trained.

python -m lightning_meta benchmark cells [RUN ...] [--evaluations 8 16 24 48] [--searches 200]
python -m lightning_meta benchmark cells --train --seeds 0 1 2

With `--train`, every cell is trained on digits from new weights, once for each seed, and judged on the held-out images
and on the test images; a row of `cells.csv` is one training, and those that it has are not trained again.

Searches that train cells are then played on this table: a reward is the accuracy of one training on the held-out
images, of another seed from search to search; what is found is judged by the rank of its test accuracy, in the mean
over seeds, among all cells within the budget (1 is best). A cell that is proposed again is paid for again. RUNs of
architecture search, by name or folder, are judged by the cell that they have found.
"""

import argparse
import csv
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from pkgutil import resolve_name
from typing import NamedTuple

import torch
import yaml
from pytorch_lightning.cli import instantiate_module
from torch import Tensor

from lightning_meta import checkpoints, notes
from lightning_meta.algorithms import RandomSearch
from lightning_meta.backbones import Cell
from lightning_meta.cli.composition import compose
from lightning_meta.cli.names import found
from lightning_meta.cli.predict import trained_run
from lightning_meta.compat import tree_map
from lightning_meta.core import Batch, Momentum, map_tasks
from lightning_meta.core.architectures import (
    Population,
    at_random,
    children,
    dice_of,
    joined_by,
    leave_one_out,
    log_probabilities,
    one_of,
    parents,
)
from lightning_meta.core.statistics import mean_and_t95
from lightning_meta.datamodules import HeldOutImages
from lightning_meta.errors import ConfigError, DataError, require_at_least
from lightning_meta.modules import ArchitectureModule

TABLE = Path(__file__).with_name("cells.csv")
COLUMNS = ("cell", "parameters", "seed", "held_out", "test")
AT_ONCE = 25  # networks
DATA = "held_out_digits_for_cells"


def data() -> HeldOutImages:
    """Of the experiments of architecture search."""
    content = compose(found("data", DATA))
    made = instantiate_module(HeldOutImages, {"_class_path": content["class_path"]} | content["init_args"])
    made.setup("fit")
    return made


# ---- the table ---------------------------------------------------------------------------------------------------


def train_all(seeds: Sequence[int], path: Path) -> None:
    """Write a row for each cell and seed that the table has not; those whose networks are the same are trained once."""
    images, module = data(), RandomSearch(Cell(), inner_optimizer=Momentum)
    done = {(row["cell"], int(row["seed"])) for row in read(path)}
    names = [module.cell.named(cell_E) for cell_E in module.cell.cells_KE]
    networks = [module.cell.named(cell_E) for cell_E in module.cell.without_dead_ends(module.cell.cells_KE)]
    for seed in seeds:
        alike: dict[str, list[int]] = {}
        for place, name in enumerate(names):
            if (name, seed) not in done:
                alike.setdefault(networks[place], []).append(place)
        groups = [*alike.values()]
        for first in range(0, len(groups), AT_ONCE):
            some = groups[first : first + AT_ONCE]
            judged = trained(module, module.cell.cells_KE[[places[0] for places in some]], images, seed)
            for places, held_out, test in zip(some, *judged, strict=True):
                for place in places:
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


class Table(NamedTuple):
    """K cells within the budget: accuracies on held-out and on test images in each of S trainings."""

    cell: Cell
    held_out_KS: Tensor
    test_KS: Tensor

    @property
    def ranks_K(self) -> Tensor:
        """By the mean test accuracy; 1 is best. Equal ones, as where a part leads nowhere, share their places."""
        test_K = self.test_KS.mean(1)
        return (test_K > test_K[:, None]).sum(1) + ((test_K == test_K[:, None]).sum(1) + 1) / 2


def load(path: Path, budget: int) -> Table:
    cell = Cell(budget=budget)
    found = {(row["cell"], int(row["seed"])): row for row in read(path)}
    names = [cell.named(cell_E) for cell_E in cell.cells_KE]
    seeds = sorted({seed for _, seed in found})
    if lacks := [f"{name}, seed {seed}" for name in names for seed in seeds or [0] if (name, seed) not in found]:
        raise DataError(
            f"{path} lacks {len(lacks)} trainings of {len(names) * len(seeds or [0])}, such as {lacks[0]}; add them by "
            "benchmark cells --train."
        )

    def column(name: str) -> Tensor:
        return torch.tensor([[float(found[of, seed][name]) for seed in seeds] for of in names], dtype=torch.float64)

    return Table(cell, column("held_out"), column("test"))


# ---- searches on the table ---------------------------------------------------------------------------------------

Search = Callable[[Cell, Tensor, int, int], Tensor]  # (cell, rewards_K, evaluations, seed) -> all places it has tried


def places_of(cells_NE: Tensor, cell: Cell) -> Tensor:
    return (cells_NE[:, None] == cell.cells_KE).all(-1).long().argmax(1)


def random_search(cell: Cell, rewards_K: Tensor, evaluations: int, seed: int) -> Tensor:
    return places_of(at_random(cell.cells_KE, dice_of(seed, torch.arange(evaluations), 1)[:, 0]), cell)


def evolution(
    cell: Cell, rewards_K: Tensor, evaluations: int, seed: int, mutation: str = "edge", size: int = 8, sample: int = 3
) -> Tensor:
    places: list[Tensor] = []
    population = Population(cell.cells_KE[:1].repeat(size, 1), torch.zeros(size).double(), torch.tensor(0))
    for number in range(evaluations):
        dice = dice_of(seed, torch.tensor([number]), sample + 1)
        if number < size:
            cells = at_random(cell.cells_KE, dice[:, 0])
        else:
            chosen = parents(population, dice[:, 1:])
            cells = children(chosen, dice[:, 0], mutation, cell.cells_KE, len(cell.operations))
        places.append(places_of(cells, cell))
        population = joined_by(population, cells, rewards_K[places[-1]])
    return torch.cat(places)


def reinforce(
    cell: Cell, rewards_K: Tensor, evaluations: int, seed: int, together: int = 4, rate: float = 0.3
) -> Tensor:
    logits_EO = torch.zeros_like(cell.mixture_EO, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([logits_EO], lr=rate)
    places: list[Tensor] = []
    for first in range(0, evaluations, together):
        log_p_K = log_probabilities(logits_EO, cell.cells_KE)
        dice = dice_of(seed, torch.arange(first, min(first + together, evaluations)), 1)[:, 0]
        tried = one_of(log_p_K.detach().exp().expand(len(dice), -1), dice)
        optimizer.zero_grad()
        (-leave_one_out(rewards_K[tried]) * log_p_K[tried]).mean().backward()
        optimizer.step()
        places.append(tried)
    return torch.cat(places)


SEARCHES: dict[str, Search] = {
    "random": random_search,
    "evolution": evolution,
    "evolution, motifs": partial(evolution, mutation="motif"),
    "REINFORCE": reinforce,
}


class Row(NamedTuple):
    """A search, played many times. Ranks are of K cells; halves of 95 % intervals end with `_ci95`.

    Evaluations are trainings of a cell; of a RUN they are not known.
    """

    search: str
    evaluations: int | None
    searches: int
    rank: float
    rank_ci95: float | None  # of one search there is none
    test: float
    test_ci95: float | None


def play(table: Table, name: str, evaluations: int, searches: int) -> Row:
    """What a search finds: of the cells that it has tried, that with the highest reward."""
    found = []
    for seed in range(searches):
        rewards_K = table.held_out_KS[:, seed % table.held_out_KS.shape[1]]
        tried = SEARCHES[name](table.cell, rewards_K, evaluations, seed)
        found.append(tried[rewards_K[tried].argmax()])
    return row(table, name, evaluations, torch.stack(found))


def row(table: Table, name: str, evaluations: int | None, found_N: Tensor) -> Row:
    rank, rank_ci95 = mean_and_t95(table.ranks_K[found_N])
    test, test_ci95 = mean_and_t95(table.test_KS.mean(1)[found_N])
    if len(found_N) == 1:
        return Row(name, evaluations, 1, rank, None, test, None)
    return Row(name, evaluations, len(found_N), rank, rank_ci95, test, test_ci95)


def judged(table: Table, runs: Sequence[Path]) -> list[Row]:
    """Those of one algorithm together."""
    found: dict[str, list[Tensor]] = {}
    for place in runs:
        run = trained_run(place)
        name = yaml.safe_load((run / "config.yaml").read_text())["model"]["class_path"]
        module = resolve_name(name).load_from_checkpoint(checkpoints.best_or_last(run), map_location="cpu")
        if not isinstance(module, ArchitectureModule):
            raise ConfigError(f"{run} is of {name.rpartition('.')[-1]}, which searches no architecture.")
        if not torch.equal(module.cell.cells_KE, table.cell.cells_KE):
            raise ConfigError(
                f"{run} has searched among {len(module.cell.cells_KE)} other cells than the {len(table.cell.cells_KE)} "
                "of the table; give --budget as the run had it."
            )
        found.setdefault(name.rpartition(".")[-1], []).append(places_of(module.chosen()[None], table.cell)[0])
    return [row(table, name, None, torch.stack(places)) for name, places in found.items()]


def markdown(table: Table, rows: Sequence[Row]) -> str:
    lines = [
        f"| search | cells trained | searches | rank of {len(table.ranks_K)} | test accuracy (%) |",
        "|---|---|---|---|---|",
    ]
    for of in rows:
        rank, test = f"{of.rank:.1f}", f"{100 * of.test:.1f}"
        if of.rank_ci95 is not None and of.test_ci95 is not None:
            rank, test = f"{rank} ± {of.rank_ci95:.1f}", f"{test} ± {100 * of.test_ci95:.1f}"
        lines.append(f"| {of.search} | {of.evaluations or ''} | {of.searches} | {rank} | {test} |")
    return "\n".join(lines)


def best(table: Table, count: int = 5) -> str:
    """The best cells, and how near the others are."""
    order = table.ranks_K.argsort()
    test_K, size_K = table.test_KS.mean(1), table.cell.sizes_K
    named = [
        f"{table.cell.named(table.cell.cells_KE[k])} ({100 * test_K[k]:.1f} %, {size_K[k]} parameters)"
        for k in order[:count]
    ]
    agree = torch.corrcoef(torch.stack([table.held_out_KS.mean(1), test_K]).argsort(1).argsort(1).double())[0, 1]
    between = torch.corrcoef(table.test_KS.T.argsort(1).argsort(1).double()) if table.test_KS.shape[1] > 1 else None
    seeds = "" if between is None else f", of two seeds {between[0, 1]:.2f}"
    return (
        f"Best: {'; '.join(named)}. Median {100 * test_K.median():.1f} %, worst {100 * test_K.min():.1f} %. Rank "
        f"correlation of held-out and test accuracy {agree:.2f}{seeds}."
    )


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m lightning_meta benchmark cells", description=(__doc__ or "").split("\n\n")[0],
        epilog=(__doc__ or "").split("\n\n", 2)[2], formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="of a search: folder, or experiment's name")
    parser.add_argument("--evaluations", nargs="+", type=int, default=[8, 16, 24, 48], help="cells (%(default)s)")
    parser.add_argument("--searches", type=int, default=200, help="with seeds 0, 1, ... (%(default)s)")
    parser.add_argument("--budget", type=int, default=160, help="parameters of a cell (%(default)s)")
    parser.add_argument("--train", action="store_true", help="train every cell, which takes minutes per seed")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of the trainings (%(default)s)")
    parser.add_argument("--table", type=Path, default=TABLE, help="of all cells (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs/cells"), help="where the result goes (%(default)s)")
    return parser


def main(arguments: Sequence[str]) -> None:
    given = options().parse_args(arguments)
    notes.set_up()
    require_at_least(2, searches=given.searches)
    require_at_least(1, evaluations=min(given.evaluations))
    if given.train:
        train_all(given.seeds, given.table)
        return
    table = load(given.table, given.budget)
    rows = [play(table, name, n, given.searches) for n in given.evaluations for name in SEARCHES]
    rows += judged(table, given.runs)
    text = markdown(table, rows)
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "cells.md").write_text(text + "\n")
    (given.out / "cells.json").write_text(json.dumps([of._asdict() for of in rows], indent=1) + "\n")
    print(f"{text}\n\n{best(table)}\nIntervals are 95 % over searches. Files: {given.out}/cells.md, .json")
