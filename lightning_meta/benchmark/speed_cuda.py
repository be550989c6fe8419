"""Our outer step on a GPU against that of others: `python -m lightning_meta benchmark speed --device cuda`.

An outer step is adaptation, query losses, meta-gradient and Adam, on meta-batches that lie on the GPU already.
Contenders of a cell start from the same weights and take turns; the GPU is waited for before and after each turn.

- `ours`: as by default; `ours, recorded`: as by `--model.compile_training cuda_graph`; `ours, torch.compile`: as by
  `true`, in the cell that says so
- `plain` and `learn2learn`, see `peers.py`: task after task, which is bound by launches in any precision
- `jax, vmap` and `jax, map`, see `jax_maml.py`

Multiplications are in full float32 for all, and once more in TensorFloat-32 (TF32) for those that gain from it. Before
it is timed, each contender's meta-gradient is compared with ours in float64. Who is not installed is left out.
"""

import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_meta.benchmark.peers import PEERS, stock_network
from lightning_meta.benchmark.speed import Cell, inner_loop, our_episodes, our_module
from lightning_meta.compat import tree_map
from lightning_meta.core import Episode
from lightning_meta.core.cuda_graph import RecordedStep
from lightning_meta.core.episode import EpisodeShape
from lightning_meta.errors import ConfigError, DataError
from lightning_meta.modules import EpisodicModule

BATCHES = 4  # meta-batches that steps go through
TOLERANCE = {"fp32": 1e-3, "tf32": 0.2}  # of the meta-gradient, relative; a wrong one differs by about 1
PRECISIONS = ("fp32", "tf32")
LAUNCH_BOUND = ("plain", "learn2learn")
FP32_ALONE = ("ours", "ours, torch.compile", *LAUNCH_BOUND)  # bound by launches, or slow to compile
JAX_MAPS: dict[str, Any] = {"jax, vmap": "vmap", "jax, map": "map"}


def cuda_grid() -> list[Cell]:
    few, many = EpisodeShape(5, 1, 1), EpisodeShape(5, 1, 15)
    return [
        Cell("MAML", "omniglot", few, 1, 32),
        Cell("MAML", "omniglot", many, 1, 32),
        Cell("MAML", "omniglot", few, 5, 32),
        Cell("MAML", "omniglot", EpisodeShape(20, 1, 1), 5, 16),
        Cell("ProtoNet", "omniglot", many, 0, 16),
        Cell("ProtoNet", "omniglot", EpisodeShape(60, 1, 5), 0, 1),
        Cell("MAML", "omniglot", few, 1, 32, compiled=True),  # last: compiling may take long
    ]


@dataclass
class Racer:
    """One way to take an outer step, ready to: what takes its time once is done when it is made.

    Attributes:
        step: takes that of batch i.
        wait: until all steps have been taken.
        gradient: of the first step, which has been taken.
    """

    step: Callable[[int], None]
    wait: Callable[[], None]
    gradient: Tensor


@dataclass
class Timing:
    """Seconds of a step in each turn; those of getting ready; how far the gradient is from that in float64."""

    contender: str
    precision: str
    ready_seconds: float
    gradient_error: float
    seconds: list[float] = field(default_factory=list)

    @property
    def steps_per_second(self) -> float:
        return 1 / statistics.median(self.seconds)


@contextmanager
def multiplying_in(precision: str) -> Iterator[None]:
    """PyTorch's two switches of TF32, for convolutions and for matrix products; by default only the first is on."""
    switches: list[Any] = [torch.backends.cudnn, torch.backends.cuda.matmul]
    before = [switch.allow_tf32 for switch in switches]
    try:
        for switch in switches:
            switch.allow_tf32 = precision == "tf32"
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.allow_tf32 = value


class Race:
    """The contenders of one cell on one device."""

    def __init__(self, cell: Cell, device: torch.device) -> None:
        self.cell, self.device, self.loop = cell, device, inner_loop(cell)
        draw = our_episodes(cell)
        self.batches = [tree_map(lambda leaf: leaf.to(device), draw(i)) for i in range(BATCHES)]

    def module(self, dtype: torch.dtype = torch.float32) -> EpisodicModule:
        return our_module(self.cell).to(self.device, dtype)

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def reference(self) -> Tensor:
        """The meta-gradient of the first batch in float64."""
        tasks = tree_map(lambda leaf: leaf.double() if leaf.is_floating_point() else leaf, self.batches[0])
        module = self.module(torch.float64)
        module.play(tasks).loss.mean().backward()
        return gradient(module)

    def names(self) -> list[str]:
        """Who takes part, if installed."""
        ours = ["ours"] + ["ours, recorded"] * (self.device.type == "cuda")
        if self.cell.compiled:
            return [*ours, "ours, torch.compile", "plain"]
        jax = [*JAX_MAPS] if self.cell.algorithm == "MAML" and find_spec("jax") else []
        return [*ours, *jax, *LAUNCH_BOUND]

    def torch_racer(self, name: str) -> Racer:
        """Raises ImportError when the library is not installed."""
        module: torch.nn.Module = self.module()
        if name in LAUNCH_BOUND:
            module = stock_network(network_of(module))
            backward = PEERS[self.cell.algorithm][name](module, self.loop)
        else:
            backward = self._ours(name, module)
        optimizer = torch.optim.Adam(module.parameters(), lr=1e-4)

        def step(i: int) -> None:
            optimizer.zero_grad()
            backward(self.batches[i % BATCHES])
            optimizer.step()

        step(0)
        return Racer(step, self.wait, gradient(module))

    def _ours(self, name: str, module: Any) -> Callable[[Episode], None]:
        if name == "ours, recorded":
            recorded = RecordedStep(module, lambda tasks, _: {"loss": module.play(tasks).loss.mean()})
            return lambda tasks: recorded(tasks, {})["loss"].backward()
        play = torch.compile(module.play, dynamic=False) if name == "ours, torch.compile" else module.play
        return lambda tasks: play(tasks).loss.mean().backward()


def network_of(module: Any) -> torch.nn.Module:
    return module.learner if hasattr(module, "learner") else module.backbone


def gradient(module: torch.nn.Module) -> Tensor:
    return torch.cat([p.grad.double().flatten().cpu() for p in module.parameters() if p.grad is not None])


class JaxRacers:
    """The steps in JAX of all cells, compiled by several threads at once: one by one they take longer than the race."""

    def __init__(self, races: Sequence[Race], precisions: Sequence[str]) -> None:
        from lightning_meta.benchmark import jax_maml

        self.jax, self.steps = jax_maml, {}
        for race in races:
            network = network_of(race.module())
            for name in (name for name in race.names() if name in JAX_MAPS):
                for precision in precisions:
                    options = race.loop, race.batches[0], JAX_MAPS[name], precision == "tf32"
                    self.steps[race.cell, name, precision] = jax_maml.JaxMAML(network, *options)
        with ThreadPoolExecutor() as threads:
            list(threads.map(lambda step: step.compile(), self.steps.values()))

    def racer(self, race: Race, name: str, precision: str) -> Racer:
        maml = self.steps[race.cell, name, precision]
        batches = [self.jax.batch(tasks) for tasks in race.batches]
        maml.step(batches[0])
        return Racer(lambda i: maml.step(batches[i % BATCHES]), maml.wait, maml.first_gradient().double())


def run_race(race: Race, jax: JaxRacers | None, rounds: int, turn: float, precisions: Sequence[str]) -> list[Timing]:
    """Get everybody ready, compare gradients, then take turns of at least `turn` seconds."""
    expected, ready = race.reference(), []
    for precision in precisions:
        for name in race.names():
            if (name in FP32_ALONE and precision != "fp32") or (name in JAX_MAPS and jax is None):
                continue
            with multiplying_in(precision):
                started = time.perf_counter()
                try:
                    racer = jax.racer(race, name, precision) if jax and name in JAX_MAPS else race.torch_racer(name)
                except (ImportError, ConfigError) as error:
                    print(f"({name} is left out: {error})")
                    continue
                racer.wait()
                seconds = time.perf_counter() - started
            distance = ((racer.gradient - expected).norm() / expected.norm()).item()
            if not distance < TOLERANCE[precision]:
                print(f"({name} in {precision} is left out: its meta-gradient differs by {distance:.1e})", flush=True)
                continue
            ready.append((racer, Timing(name, precision, seconds, distance)))
    counts = []
    for racer, timing in ready:
        with multiplying_in(timing.precision):
            counts.append(max(1, int(turn / take_steps(racer, 2))))
    for _ in range(rounds):
        for (racer, timing), count in zip(ready, counts, strict=True):
            with multiplying_in(timing.precision):
                timing.seconds.append(take_steps(racer, count))
    return [timing for _, timing in ready]


def take_steps(racer: Racer, count: int) -> float:
    """Seconds for one of `count` steps."""
    racer.wait()
    started = time.perf_counter()
    for i in range(count):
        racer.step(i)
    racer.wait()
    return (time.perf_counter() - started) / count


def table(cells: dict[str, list[Timing]]) -> str:
    """Markdown: steps/s (median, least and most of the turns), and how many times as fast as the plain loop."""
    lines = [["cell", "contender", "precision", "steps/s", "times plain", "gradient error", "ready after"]]
    lines.append(["---"] * len(lines[0]))
    for cell, timings in cells.items():
        plain = next((t.steps_per_second for t in timings if t.contender == "plain"), float("nan"))
        lines += [
            [
                cell,
                t.contender,
                t.precision,
                f"{t.steps_per_second:.1f} ({1 / max(t.seconds):.1f}-{1 / min(t.seconds):.1f})",
                f"{t.steps_per_second / plain:.1f}",
                f"{t.gradient_error:.0e}",
                f"{t.ready_seconds:.1f} s",
            ]
            for t in timings
        ]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def settings() -> dict[str, Any]:
    """The machine, and PyTorch's defaults of TF32 as found."""
    return {
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
        "cudnn": torch.backends.cudnn.version(),
        "cudnn.allow_tf32 by default": torch.backends.cudnn.allow_tf32,
        "cuda.matmul.allow_tf32 by default": torch.backends.cuda.matmul.allow_tf32,
    }


def race_on(device: torch.device, only: str, quick: bool, out: Path) -> None:
    """Race all cells with `only` in their name; `speed_cuda.json` and `speed_cuda.md` in `out` grow with each cell."""
    if device.type == "cuda" and not torch.cuda.is_available():
        raise DataError("--device cuda: PyTorch finds no CUDA device here.")
    cells = [cell for cell in cuda_grid() if only in cell.name]
    if not cells:
        raise DataError(f"no cell has {only!r} in its name; there are: {'; '.join(c.name for c in cuda_grid())}.")
    precisions = PRECISIONS if device.type == "cuda" else PRECISIONS[:1]
    record: dict[str, Any] = {"settings": settings(), "cells": {}}
    print(record["settings"], flush=True)
    out.mkdir(parents=True, exist_ok=True)
    races, results, started = [Race(cell, device) for cell in cells], {}, time.perf_counter()
    jax = JaxRacers(races, precisions) if find_spec("jax") else None
    if jax:
        record["jax"] = {"version": jax.jax.jax.__version__, "backend": jax.jax.jax.default_backend()}
        record["jax"] |= {"programs": len(jax.steps), "seconds to compile all": time.perf_counter() - started}
        print(record["jax"], flush=True)
    for race in races:
        timings = run_race(race, jax, *((3, 0.15) if quick else (7, 0.5)), precisions)
        results[race.cell.name] = timings
        record["cells"][race.cell.name] = [asdict(t) | {"steps_per_second": t.steps_per_second} for t in timings]
        (out / "speed_cuda.json").write_text(json.dumps(record, indent=1) + "\n")
        (out / "speed_cuda.md").write_text(table(results) + "\n")
        print(table({race.cell.name: timings}), f"\n({time.perf_counter() - started:.0f} s)", flush=True)
