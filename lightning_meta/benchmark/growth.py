"""How the time and memory of an outer step grow with each of its sizes. A table in Markdown and a figure.

python -m lightning_meta benchmark growth [--out FOLDER]

Second-order MAML with `Conv4` on noise in the shape of Omniglot; one size varies, the others stay small. The cost of
drawing episodes is measured alone, against the number of classes. Growth is the slope between the last two points in a
double logarithmic plot: 1 is linear, less is better.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import log
from pathlib import Path

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, NullLocator

from lightning_meta.algorithms import MAML
from lightning_meta.backbones import Conv4
from lightning_meta.benchmark.speed import machine, peak_memory, stopwatch
from lightning_meta.core import Episode
from lightning_meta.core.episode import EpisodeShape
from lightning_meta.datamodules.class_bank import ClassBank
from lightning_meta.datamodules.episodes import EpisodeDataset
from lightning_meta.reports.style import BLUE, GREY, LABEL, SMALL, VERMILLION, new_figure, tidy

REPEATS = 3
COLUMNS = 3  # of panels
CLASSES, EXAMPLES = 100, 60


@dataclass(frozen=True)
class Sizes:
    """What may grow."""

    meta_batch_size: int = 4
    inner_steps: int = 1
    n_way: int = 5
    n_query: int = 1
    classes: int = CLASSES
    task_chunk_size: int | None = None


@dataclass(frozen=True)
class Curve:
    """Seconds (best of `REPEATS`) and MiB at most above the start, for each value of one size."""

    size: str
    values: list[int]
    seconds: list[float]
    mib: list[float]

    @property
    def growth(self) -> float:
        """Slope of time between the last two points, both axes logarithmic."""
        return log(self.seconds[-1] / self.seconds[-2]) / log(self.values[-1] / self.values[-2])


def outer_step(sizes: Sizes) -> Callable[[], object]:
    """Draw episodes, and take the meta-gradient."""
    images = torch.randint(0, 256, (CLASSES, EXAMPLES, 1, 28, 28), dtype=torch.uint8)
    draw = episodes(ClassBank.from_classes(images), sizes)
    module = MAML(
        Conv4(downsample="stride"),
        n_way=sizes.n_way,
        inner_lr=0.01,
        inner_steps=sizes.inner_steps,
        task_chunk_size=sizes.task_chunk_size,
    )
    return lambda: module.play(draw()).loss.mean().backward()


def drawing(sizes: Sizes) -> Callable[[], Episode]:
    """Draw episodes from so many classes of two examples each."""
    images = torch.randint(0, 256, (sizes.classes, 2, 1, 28, 28), dtype=torch.uint8)
    return episodes(ClassBank.from_classes(images), sizes)


def episodes(bank: ClassBank, sizes: Sizes) -> Callable[[], Episode]:
    dataset = EpisodeDataset(bank, EpisodeShape(sizes.n_way, 1, sizes.n_query), seed=0, split="train")
    return lambda: dataset.__getitems__(range(sizes.meta_batch_size))


def curve(size: str, values: Sequence[int], make: Callable[[Sizes], Callable[[], object]], base: Sizes) -> Curve:
    """Let one size grow."""
    seconds, mib = [], []
    for value in values:
        action = make(replace(base, **{size: value}))
        mib.append(peak_memory(action))
        seconds.append(min(stopwatch(action) for _ in range(REPEATS)))
    return Curve(size, list(values), seconds, mib)


def curves() -> list[Curve]:
    plans = (
        ("meta_batch_size", (1, 4, 16, 64, 256), outer_step, Sizes()),
        ("inner_steps", (1, 2, 5, 10, 20), outer_step, Sizes()),
        ("n_way", (5, 10, 20, 40, 60), outer_step, Sizes()),
        ("n_query", (1, 5, 15, 30, 50), outer_step, Sizes()),
        ("classes", (100, 1000, 10_000, 100_000), drawing, Sizes(meta_batch_size=32)),
        ("task_chunk_size", (1, 4, 16, 64), outer_step, Sizes(meta_batch_size=64)),
    )
    return [curve(*plan) for plan in plans]


def table(measured: Sequence[Curve]) -> str:
    """The curves as Markdown."""
    lines = ["| size | values | milliseconds | MiB | growth of time |", "|---|---|---|---|---|"]
    for found in measured:
        milliseconds = ", ".join(f"{1000 * seconds:.3g}" for seconds in found.seconds)
        memory, values = (", ".join(f"{number:.0f}" for number in numbers) for numbers in (found.mib, found.values))
        lines.append(f"| `{found.size}` | {values} | {milliseconds} | {memory} | {found.growth:.2f} |")
    return "\n".join(lines)


def growth_curves(measured: Sequence[Curve]) -> Figure:
    """A panel for each size, both axes logarithmic: time in blue, memory in vermillion, linear growth in grey."""
    rows = -(-len(measured) // COLUMNS)
    figure = new_figure(
        11, 0.6 + 2.7 * rows, "One outer step: time (blue), peak memory (vermillion), linear growth (grey)"
    )
    for place, curve in enumerate(measured):
        time = figure.add_subplot(rows, COLUMNS, place + 1)
        tidy(time, curve.size)
        milliseconds = [1000 * seconds for seconds in curve.seconds]
        time.plot(curve.values, milliseconds, "o-", color=BLUE, markersize=4)
        first, (last, end) = curve.values[0], (curve.values[-1], milliseconds[-1])
        time.plot([first, last], [end * first / last, end], color=GREY, linewidth=1, linestyle="--")
        memory = time.twinx()
        memory.plot(curve.values, curve.mib, "s-", color=VERMILLION, markersize=4)
        memory.tick_params(labelsize=SMALL, color=GREY)
        memory.spines[["top", "left"]].set_visible(False)
        for axes, values, unit, colour in ((time, milliseconds, "ms", BLUE), (memory, curve.mib, "MiB", VERMILLION)):
            axes.set_yscale("log")
            middle, reach = (min(values) * max(values)) ** 0.5, max(2 * (max(values) / min(values)) ** 0.5, 10)
            axes.set_ylim(middle / reach, middle * reach)
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.yaxis.set_minor_formatter(NullFormatter())
            axes.set_ylabel(unit, fontsize=LABEL, color=colour)
        time.set_xscale("log")
        time.set_xticks(curve.values, [f"{value:,}" for value in curve.values])
        time.xaxis.set_minor_locator(NullLocator())
    return figure


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        "python -m lightning_meta benchmark growth", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--out", type=Path, default=Path("runs/speed"), help="where the figure goes (%(default)s)")
    given = parser.parse_args(arguments)
    measured = curves()
    print(machine(), "", table(measured), sep="\n")
    given.out.mkdir(parents=True, exist_ok=True)
    growth_curves(measured).savefig(given.out / "growth.png")
    print(f"\ngrowth.png is in {given.out}")
