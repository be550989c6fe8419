"""Our outer step against that of other libraries, in one run. Tables in Markdown, a figure, the numbers as JSON.

python -m lightning_meta benchmark speed [--out FOLDER] [--only TEXT] [--check]

A cell of the grid is one algorithm on episodes of one shape. All contenders of a cell start from the same weights.
First their meta-gradients are compared in float64. Then they take turns with an outer step: draw the episodes, adapt,
query losses, meta-gradient, Adam. Images are noise: what they show does not change the time. learn2learn draws from its
own `TaskDataset`; the others, which have no sampler, use ours. `peers.py` says how each library is used.

Ours runs as the command line runs it, with the setting of `allocator.py`; the others with the C library's own. In cells
that say so it is compiled too, as by `--model.compile_training true`.
"""

import argparse
import gc
import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cache, partial
from math import exp, log
from pathlib import Path
from typing import Any, Self, cast

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from lightning_meta.algorithms import ANIL, MAML, R2D2, MatchingNet, ProtoNet, RelationNet, Reptile
from lightning_meta.allocator import keep_freed_memory, return_freed_memory, trim
from lightning_meta.backbones import MLP, Conv4
from lightning_meta.benchmark.peers import PEERS, Backward, InnerLoop, learn2learn_episodes, stock_network
from lightning_meta.compat import tree_map
from lightning_meta.core import Episode
from lightning_meta.core.episode import EpisodeShape
from lightning_meta.datamodules.class_bank import ClassBank
from lightning_meta.datamodules.episodes import EpisodeDataset
from lightning_meta.datamodules.functions.sinusoid import SinusoidSource
from lightning_meta.errors import DataError
from lightning_meta.metrics import EpisodicMSE
from lightning_meta.modules import EmbeddingModule, EpisodicModule
from lightning_meta.reports.style import BLUE, GREY, INK, SMALL, VERMILLION, new_figure, tidy

COMPARE = {"ProtoNet": ProtoNet, "MatchingNet": MatchingNet, "RelationNet": RelationNet, "R2D2": R2D2}
ALTERNATIONS = 5
STEPS = 1000  # more than any contender takes
DRAWS = 64  # meta-batches over which the time of drawing is averaged: ours draws several at once
TOLERANCE = 1e-8  # of the meta-gradients in float64, relative
LARGEST_LOSS = 0.15  # of the ratio to the plain loop, before the check fails
COMMITTED = Path(__file__).with_name("speed.json")
MIB = 2**20
COLOURS = {"plain": GREY, "learn2learn": BLUE, "higher": VERMILLION, "torchopt": INK}


@dataclass(frozen=True)
class Cell:
    """One comparison: an algorithm on episodes of one shape."""

    algorithm: str
    data: str
    shape: EpisodeShape
    inner_steps: int
    meta_batch_size: int
    compiled: bool = False  # ours alone

    @property
    def name(self) -> str:
        n_way, k_shot, n_query = self.shape
        way = f"{n_way}w{k_shot}s" if n_way > 1 else f"{k_shot}s"
        work = f"{n_query} queries, {self.inner_steps} steps, {self.meta_batch_size} tasks"
        return f"{self.algorithm} {self.data} {way}, {work}{', compiled' if self.compiled else ''}"

    @property
    def is_conv_maml(self) -> bool:
        return self.algorithm == "MAML" and self.data != "sinusoid"

    @property
    def is_main(self) -> bool:
        """Of the cells that an aim is for: second-order MAML, 5-way on Omniglot, with a meta-batch of usual size."""
        return self.is_conv_maml and self.data == "omniglot" and self.shape.n_way == 5 and self.meta_batch_size >= 16


def grid() -> list[Cell]:
    """What `benchmark speed` compares."""
    few, many = EpisodeShape(5, 1, 1), EpisodeShape(5, 1, 15)
    waves = EpisodeShape(1, 10, 10)
    return [
        *(Cell("MAML", "omniglot", s, steps, tasks) for s in (few, many) for steps in (1, 5) for tasks in (4, 16, 32)),
        Cell("MAML", "omniglot", EpisodeShape(20, 1, 1), 5, 16),
        Cell("MAML", "84x84", many, 5, 4),
        Cell("FOMAML", "omniglot", many, 5, 16),
        Cell("ANIL", "omniglot", few, 5, 16),
        Cell("ANIL", "omniglot", many, 5, 16),
        Cell("ProtoNet", "omniglot", many, 0, 16),
        Cell("ProtoNet", "omniglot", EpisodeShape(60, 1, 5), 0, 1),
        *(Cell(name, "omniglot", many, 0, 16) for name in ("MatchingNet", "RelationNet", "R2D2")),
        Cell("Reptile", "omniglot", many, 5, 16),
        *(Cell("MAML", "sinusoid", waves, steps, 25, compiled) for compiled in (False, True) for steps in (1, 5)),
    ]


def small_grid() -> list[Cell]:
    """What `--check` repeats: one cell of each kind that ours should win."""
    return [
        cell for cell in grid() if cell.meta_batch_size in (16, 25) and cell.shape.n_query != 15 and not cell.compiled
    ]


@dataclass
class Contender:
    """One way to take an outer step."""

    name: str
    episodes: Callable[[int], Episode]  # those of step i; steps are taken in turn
    backward: Backward
    network: nn.Module

    def __post_init__(self) -> None:
        self.optimizer, self.steps_taken = torch.optim.Adam(self.network.parameters(), lr=1e-4), 0

    def step(self) -> None:
        keep_freed_memory() if self.name == "ours" else return_freed_memory()
        self.optimizer.zero_grad()
        self.backward(self.episodes(self.steps_taken))
        self.optimizer.step()
        self.steps_taken += 1


@dataclass
class Row:
    """What was measured in a cell, by contender: seconds of each step, peak memory of one; and the work of a step."""

    cell: Cell
    seconds: dict[str, list[float]]
    peak_mib: dict[str, float]
    gflop: float
    sampling_seconds: dict[str, float]

    @classmethod
    def read(cls, record: Mapping[str, Any]) -> Self:
        """From an entry of `speed.json`."""
        cell = record["cell"] | {"shape": EpisodeShape(*record["cell"]["shape"])}
        return cls(Cell(**cell), **{field.name: record[field.name] for field in fields(cls) if field.name != "cell"})

    def ratios(self, peer: str) -> list[float]:
        """How many times as fast ours was, in each alternation."""
        return [theirs / ours for theirs, ours in zip(self.seconds[peer], self.seconds["ours"], strict=True)]

    def ratio(self, peer: str) -> float:
        return statistics.median(self.ratios(peer))

    def tasks_per_second(self, name: str) -> float:
        return self.cell.meta_batch_size / statistics.median(self.seconds[name])


# ---- what is compared -----------------------------------------------------------------------------------------------


@cache
def bank(data: str) -> ClassBank:
    """Noise in the shape of Omniglot's training classes (without rotations), or of 64 classes of 84 x 84 colour."""
    shape = (1028, 20, 1, 28, 28) if data == "omniglot" else (64, 20, 3, 84, 84)
    return ClassBank.from_classes(torch.randint(0, 256, shape, dtype=torch.uint8))


def our_episodes(cell: Cell) -> Callable[[int], Episode]:
    source = SinusoidSource() if cell.data == "sinusoid" else bank(cell.data)
    dataset, size = EpisodeDataset(source, cell.shape, seed=0, split="train"), cell.meta_batch_size
    drawn = dataset.batches([range(step * size, (step + 1) * size) for step in range(STEPS)])
    return lambda step: next(drawn)


def our_module(cell: Cell) -> EpisodicModule:
    torch.manual_seed(0)
    loop = inner_loop(cell)
    if cell.algorithm == "RelationNet":
        return RelationNet(Conv4(halvings=2))
    if cell.algorithm in COMPARE:
        return COMPARE[cell.algorithm](Conv4())
    options: dict[str, Any] = {"n_way": cell.shape.n_way, "inner_lr": loop.lr, "inner_steps": loop.steps}
    if cell.data == "sinusoid":
        return MAML(MLP(), loss_fn=loop.loss, metric=EpisodicMSE(), **options)
    backbone = Conv4(downsample="stride") if cell.data == "omniglot" else Conv4(3, 84, hidden=32)
    if cell.algorithm == "FOMAML":
        options["first_order"] = True
    return {"ANIL": ANIL, "Reptile": Reptile}.get(cell.algorithm, MAML)(backbone, **options)


def inner_loop(cell: Cell) -> InnerLoop:
    return InnerLoop(
        lr=0.001 if cell.algorithm == "Reptile" else 0.01,
        steps=cell.inner_steps,
        first_order=cell.algorithm == "FOMAML",
        loss=F.mse_loss if cell.data == "sinusoid" else F.cross_entropy,
    )


def contenders(cell: Cell, dtype: torch.dtype = torch.float32) -> list[Contender]:
    """Ours first; peers that are not installed are left out."""
    module = our_module(cell).to(dtype)
    network = module if isinstance(module, EmbeddingModule) else cast(nn.Module, module.learner)
    play = torch.compile(module.play, dynamic=False) if cell.compiled else module.play
    entrants = [Contender("ours", our_episodes(cell), lambda tasks: play(tasks).loss.mean().backward(), module)]
    for name, make in PEERS[cell.algorithm].items():
        theirs = stock_network(network)
        try:
            backward = make(theirs, inner_loop(cell))
        except ImportError as error:
            print(f"({name} is left out: {error}; `make benchmark-speed` installs it)")
            continue
        draws_itself = name == "learn2learn" and cell.data != "sinusoid"
        episodes = (
            learn2learn_episodes(bank(cell.data), cell.shape, cell.meta_batch_size)
            if draws_itself
            else our_episodes(cell)
        )
        entrants.append(Contender(name, episodes, backward, theirs))
    return entrants


# ---- measurements ---------------------------------------------------------------------------------------------------


def check_gradients(cell: Cell) -> float:
    """Largest relative difference of a peer's meta-gradient from ours, in float64 on two tasks.

    Raises:
        DataError: it is too large to compare times.
    """
    two = Cell(cell.algorithm, cell.data, cell.shape, cell.inner_steps, 2)
    tasks = tree_map(lambda leaf: leaf.double() if leaf.is_floating_point() else leaf, our_episodes(two)(0))
    ours, *peers = (gradient(entrant, tasks) for entrant in contenders(two, torch.float64))
    worst = max(((theirs - ours).norm() / ours.norm()).item() for theirs in peers)
    if not worst < TOLERANCE:
        raise DataError(f"{cell.name}: meta-gradients differ by {worst:.1e}, more than {TOLERANCE:.0e}; not compared.")
    return worst


def gradient(entrant: Contender, tasks: Episode) -> Tensor:
    entrant.backward(tasks)
    return torch.cat(
        [parameter.grad.flatten() for parameter in entrant.network.parameters() if parameter.grad is not None]
    )


def measure(cell: Cell) -> Row:
    """Check the gradients, then let the contenders take turns."""
    torch.compiler.reset()
    check_gradients(cell)
    entrants = contenders(cell)
    peak = {entrant.name: peak_memory(entrant.step) for entrant in entrants}  # and a first step, not timed
    seconds: dict[str, list[float]] = {entrant.name: [] for entrant in entrants}
    for _ in range(ALTERNATIONS):
        for entrant in entrants:
            if entrant.name == "ours":
                entrant.step()  # takes back the memory that the others' setting returned
            seconds[entrant.name].append(stopwatch(entrant.step))
    plain = next(entrant for entrant in entrants if entrant.name == "plain")
    with FlopCounterMode(display=False) as counter:
        plain.step()
    drawn = {
        entrant.name: statistics.mean(stopwatch(partial(entrant.episodes, step)) for step in range(DRAWS))
        for entrant in entrants
        if entrant.name in ("ours", "learn2learn")
    }
    return Row(cell, seconds, peak, counter.get_total_flops() / 1e9, drawn)


def stopwatch(action: Callable[[], Any]) -> float:
    """Seconds that `action` takes."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def peak_memory(action: Callable[[], Any]) -> float:
    """MiB of memory in use at most during `action`, above what was in use before. Linux only, elsewhere NaN."""
    counters = Path("/proc/self/clear_refs")
    if not counters.exists():
        action()
        return float("nan")
    gc.collect()
    trim()
    counters.write_text("5")  # resets the peak
    before = _status("VmRSS")
    action()
    return (_status("VmHWM") - before) / 1024


def _status(field: str) -> int:
    """A field of /proc/self/status, in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def matmul_rate() -> float:
    """GFLOP/s of a large matrix multiplication in float32: the speed limit of this machine."""
    size = 2048
    matrix = torch.rand(size, size)
    return 2 * size**3 / min(stopwatch(lambda: matrix @ matrix) for _ in range(ALTERNATIONS)) / 1e9


# ---- what is reported -----------------------------------------------------------------------------------------------


def geometric_mean(values: Sequence[float]) -> float:
    return exp(sum(map(log, values)) / len(values))


def table(rows: Sequence[Row], rate: float) -> str:
    """The measurements as Markdown."""
    peers = [name for name in PEERS["MAML"] if any(name in row.seconds for row in rows)]
    head = [
        "cell",
        "tasks/s",
        *(f"times {peer}" for peer in peers),
        "peak MiB (ours, plain)",
        "of the limit",
        "sampling",
    ]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        ours = statistics.median(row.seconds["ours"])
        ratios = [
            f"{row.ratio(peer):.2f} ({min(row.ratios(peer)):.2f}-{max(row.ratios(peer)):.2f})"
            if peer in row.seconds
            else "-"
            for peer in peers
        ]
        drawn = row.sampling_seconds
        times = (
            f", {drawn['learn2learn'] / drawn['ours']:.0f}x"
            if "learn2learn" in drawn and row.cell.data != "sinusoid"
            else ""
        )
        lines.append(
            [
                row.cell.name,
                f"{row.tasks_per_second('ours'):.0f}",
                *ratios,
                f"{row.peak_mib['ours']:.0f}, {row.peak_mib['plain']:.0f}",
                f"{row.gflop / rate / ours:.0%}",
                f"{drawn['ours'] / ours:.1%}{times}",
            ]
        )
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def means(rows: Sequence[Row]) -> str:
    """Geometric means of the ratios by group of cells, with the least, as Markdown."""
    plain, compiled = ([row for row in rows if row.cell.compiled == choice] for choice in (False, True))
    replaced = {replace(row.cell, compiled=False) for row in compiled}
    on_images = [row for row in plain if row.cell.is_conv_maml]
    groups: dict[str, list[Row]] = {
        "second-order MAML on images": on_images,
        "of them 5-way Omniglot with 16 and 32 tasks": [row for row in on_images if row.cell.is_main],
        "ANIL": [row for row in plain if row.cell.algorithm == "ANIL"],
        "learning to compare": [row for row in plain if row.cell.algorithm in COMPARE],
        "sine waves": [row for row in plain if row.cell.data == "sinusoid"],
        "sine waves, compiled": compiled,
        "all cells": plain,
        "all cells, sine waves compiled": [row for row in plain if row.cell not in replaced] + compiled,
    }
    peers = [peer for peer in PEERS["MAML"] if any(peer in row.seconds for row in rows)]
    lines = [["cells", *(f"times {peer}" for peer in peers)], ["---"] * (1 + len(peers))]
    lines += [[group, *(_mean(members, peer) for peer in peers)] for group, members in groups.items() if members]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _mean(rows: Sequence[Row], peer: str) -> str:
    ratios = [row.ratio(peer) for row in rows if peer in row.seconds]
    return f"{geometric_mean(ratios):.2f} (least {min(ratios):.2f})" if ratios else "-"


def committed_tables(path: Path = COMMITTED) -> dict[str, str]:
    """`cells` and `means` of the figures that are kept with the code."""
    record = json.loads(path.read_text())
    rows = [Row.read(row) for row in record["rows"]]
    return {"cells": table(rows, record["gflop_per_second"]), "means": means(rows)}


def machine() -> str:
    return (
        f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"Python {platform.python_version()}, {platform.system()}"
    )


def check(committed: Path = COMMITTED) -> None:
    """Repeat the small grid.

    Raises:
        DataError: a ratio to the plain loop fell by more than `LARGEST_LOSS` against the committed figures.
    """
    expected = {row["name"]: row["ratios"]["plain"] for row in json.loads(committed.read_text())["rows"]}
    slower = []
    for cell in small_grid():
        ratio, before = measure(cell).ratio("plain"), expected[cell.name]
        print(f"{cell.name}: {ratio:.2f} times the plain loop (committed: {before:.2f})", flush=True)
        if ratio < (1 - LARGEST_LOSS) * before:
            slower.append(cell.name)
    if slower:
        raise DataError(
            f"{len(slower)} of {len(small_grid())} cells lost more than {LARGEST_LOSS:.0%} of their ratio to the plain "
            f"loop: {'; '.join(slower)}. Run again on a quiet machine; if it stays, a change made the step slower."
        )


def speed_ratios(cells: Mapping[str, Mapping[str, Sequence[float]]]) -> Figure:
    """For each cell and peer the median ratio of step times, with the range over the alternations.

    Args:
        cells: ratios of each alternation, by name of the cell and name of the peer.
    """
    figure = new_figure(9, 1.2 + 0.32 * len(cells), "Outer steps per second, as a multiple of each peer's")
    axes = figure.subplots()
    for peer, colour in COLOURS.items():
        raced = [(place, ratios[peer]) for place, ratios in enumerate(cells.values()) if peer in ratios]
        if not raced:
            continue
        places, middles = [place for place, _ in raced], [statistics.median(ratios) for _, ratios in raced]
        spread = [
            [middle - min(ratios) for middle, (_, ratios) in zip(middles, raced, strict=True)],
            [max(ratios) - middle for middle, (_, ratios) in zip(middles, raced, strict=True)],
        ]
        axes.errorbar(middles, places, xerr=spread, fmt="o", color=colour, capsize=2, markersize=5, label=peer)
    axes.axvline(1, color=GREY, linewidth=1)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    tidy(axes, "times as fast (log scale)")
    axes.set_yticks(range(len(cells)), list(cells), fontsize=SMALL)
    axes.set_ylim(len(cells) - 0.5, -0.5)
    axes.legend(fontsize=SMALL, frameon=False)
    return figure


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        "python -m lightning_meta benchmark speed", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("--out", type=Path, default=Path("runs/speed"), help="where the files go (%(default)s)")
    parser.add_argument("--only", default="", metavar="TEXT", help="only cells with this in their name")
    parser.add_argument("--check", action="store_true", help="only a small grid, against the committed figures")
    parser.add_argument("--device", help="cuda: another comparison, of steps on a GPU (see `speed_cuda.py`)")
    parser.add_argument("--quick", action="store_true", help="with --device: fewer and shorter turns")
    given = parser.parse_args(arguments)
    if given.device:
        from lightning_meta.benchmark.speed_cuda import race_on

        race_on(torch.device(given.device), given.only, given.quick, given.out)
        return
    if given.check:
        check()
        return
    cells = [cell for cell in grid() if given.only in cell.name]
    if not cells:
        names = "; ".join(cell.name for cell in grid())
        raise DataError(f"no cell has {given.only!r} in its name; there are: {names}.")
    rate, rows = matmul_rate(), []
    print(f"{machine()}; matrix multiplication: {rate:.0f} GFLOP/s", flush=True)
    for cell in cells:
        rows.append(measure(cell))
        print(
            f"{cell.name}: " + ", ".join(f"{n} {rows[-1].tasks_per_second(n):.1f}/s" for n in rows[-1].seconds),
            flush=True,
        )
    print("", table(rows, rate), "", means(rows), sep="\n")
    given.out.mkdir(parents=True, exist_ok=True)
    record = {
        "machine": machine(),
        "gflop_per_second": rate,
        "rows": [
            asdict(row)
            | {"name": row.cell.name, "ratios": {peer: row.ratio(peer) for peer in row.seconds if peer != "ours"}}
            for row in rows
        ],
    }
    (given.out / "speed.json").write_text(json.dumps(record, indent=1) + "\n")
    named = {row.cell.name: {peer: row.ratios(peer) for peer in row.seconds if peer != "ours"} for row in rows}
    speed_ratios(named).savefig(given.out / "speed.png")
    print(f"\nspeed.json and speed.png are in {given.out}")
