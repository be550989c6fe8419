"""Which learner when: runs of any family on the same frozen tasks: how good, how sure, how fast, and after how much.

python -m lightning_meta benchmark learners RUN [RUN ...] [--episodes 600] [--out runs/learners]

A RUN is the folder of a run, the name of its experiment, or a checkpoint. All of them have learned the same kind of
task: classes of a data set, or functions. The tasks are the test episodes of the first run, of its shape.

- score: accuracy (%), or the mean squared error of functions.
- log-probability, in nats: the mean of that of the right class, or the log-density of a value, of those that predict
  distributions; the higher the better. It punishes who is sure and wrong.
- ECE (%): expected calibration error of classifiers (docs: `Calibration`).
- tasks, minutes: what it was trained on until its checkpoint, and for how long, on whatever machine that was.
- ms: to adapt to one task and predict its queries, on this machine, the fastest of several times.

Where the data know what can be known of their functions, this stands in the last row.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple, cast

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_meta import notes
from lightning_meta.benchmark.runs import found_run, label, tested
from lightning_meta.cli.predict import open_run
from lightning_meta.core.episode import EpisodeShape
from lightning_meta.core.statistics import mean_and_ci95_over
from lightning_meta.datamodules import EpisodicDataModule, GaussianProcess
from lightning_meta.datamodules.functions.gaussian_process import GaussianProcessSource
from lightning_meta.errors import ConfigError, UserError, require_at_least
from lightning_meta.metrics import EpisodicAccuracy, EpisodicLogLikelihood, EpisodicMetric, EpisodicMSE
from lightning_meta.modules import EpisodicModule
from lightning_meta.reports.calibration import bin_sums, expected_calibration_error
from lightning_meta.reports.process_fits import keys_of

BINS, TURNS = 15, 5


class Run(NamedTuple):
    folder: Path
    module: EpisodicModule[Any]
    data: EpisodicDataModule
    state: dict[str, Any]


class Played(NamedTuple):
    """Of all test episodes: predictions `(T, Q, ...)`, targets `(T, Q, ...)`, and the first support and query set."""

    preds: Tensor
    targets: Tensor
    first: Any


class Interval(NamedTuple):
    mean: float
    ci95: float


class Row(NamedTuple):
    """Of a learner; None is what it does not have."""

    run: str
    learner: str
    score: Interval
    nats: Interval | None
    ece: float | None
    tasks: int | None
    minutes: float | None
    ms: float | None


class Watch(pl.Callback):
    """Keeps what is played in a test."""

    def __init__(self) -> None:
        self.preds: list[Tensor] = []
        self.targets: list[Tensor] = []
        self.first: Any = None

    def on_test_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        self.preds.append(outputs["preds"].cpu())
        self.targets.append(batch.query.y.cpu())
        self.first = batch if self.first is None else self.first


def load(place: Path) -> Run:
    folder, checkpoint = found_run(place)
    module, data, state, _ = open_run(folder, checkpoint)
    if not isinstance(module, EpisodicModule) or not isinstance(data, EpisodicDataModule):
        raise ConfigError(f"{folder} is {type(module).__name__} on {data.name}; give learners of few-shot tasks.")
    return Run(folder, module, data, state)


def play(run: Run, shape: EpisodeShape, episodes: int, out: Path) -> Played:
    """The first test episodes of its data, of a shape."""
    run.data.test_episodes, run.data.shapes = episodes, run.data.shapes | {"test": shape}
    tested(run.module, run.data, out / label(run.folder), watch := Watch())
    return Played(torch.cat(watch.preds), torch.cat(watch.targets), watch.first)


def measured(run: Run, played: Played) -> Row:
    module, state = run.module, run.state
    preds, targets = played.preds, played.targets
    steps, batch = state.get("global_step"), run.data.meta_batch_size
    seconds = state.get("callbacks", {}).get("RunSummary", {}).get("fit_seconds")
    score: EpisodicMetric = EpisodicAccuracy() if classifies(module) else EpisodicMSE()
    nats, ece = None, None
    if classifies(module):
        T, Q = targets.shape
        log_probs = preds.double().log_softmax(-1)
        nats = interval(log_probs.gather(-1, targets[..., None]).view(T, Q).mean(1))
        ece = expected_calibration_error(bin_sums(preds, targets, BINS)).item()
    elif isinstance(module.metric, EpisodicLogLikelihood):
        nats = interval(EpisodicLogLikelihood.per_episode(preds, targets))
        preds = preds[..., 0]
    return Row(
        label(run.folder),
        type(module).__name__,
        interval(score.per_episode(preds, targets)),
        nats,
        ece,
        steps * batch if steps else None,
        seconds / 60 if seconds else None,
        1000 * quickest(lambda: adapt_and_predict(module, played.first)),
    )


def classifies(module: EpisodicModule[Any]) -> bool:
    return isinstance(module.metric, EpisodicAccuracy)


def interval(values_T: Tensor) -> Interval:
    return Interval(*(value.item() for value in mean_and_ci95_over(values_T.double())))


def adapt_and_predict(module: EpisodicModule[Any], batch: Any) -> None:
    (support, query), kind = batch, type(batch.support)
    module.predict(module.adapt(kind(support.x[0], support.y[0])), query.x[0])


@torch.no_grad()
def quickest(do: Callable[[], None]) -> float:
    """Seconds of the fastest of several turns, after one that does not count."""
    seconds = []
    for _ in range(TURNS + 1):
        start = perf_counter()
        do()
        seconds.append(perf_counter() - start)
    return min(seconds[1:])


def knowable(data: GaussianProcess, episodes: int) -> Row:
    """What can be known of Gaussian processes: the average over kernels."""
    ids, shape = range(episodes), data.shapes["test"]
    targets_TQ = data.dataset("test").__getitems__(ids).query.y.squeeze(-1).double()
    source = cast(GaussianProcessSource, data.sources["test"])
    posterior = source.averaged_posterior(keys_of(data, ids), shape)
    error_T = (torch.from_numpy(posterior.mean) - targets_TQ).square().mean(1)
    nats = interval(torch.from_numpy(posterior.log_density).mean(1))
    return Row("what can be known", "Bayes' rule", interval(error_T), nats, None, None, None, None)


def markdown(rows: Sequence[Row], metric: type[EpisodicMetric]) -> str:
    def of(value: Any, text: Callable[[Any], str]) -> str:
        return "" if value is None else text(value)

    lines = [
        f"| learner | run | {metric.label(metric.name)} | log-probability (nats) | ECE (%) | tasks | minutes | ms |",
        "|---" * 8 + "|",
    ]
    for row in rows:
        cells = [
            row.learner,
            f"`{row.run}`" if row.ms is not None else row.run,
            metric.number(*row.score),
            of(row.nats, lambda nats: f"{nats.mean:.3f} ± {nats.ci95:.3f}"),
            of(row.ece, lambda ece: f"{100 * ece:.1f}"),
            of(row.tasks, lambda tasks: f"{tasks:,}"),
            of(row.minutes, lambda minutes: f"{minutes:.0f}"),
            of(row.ms, lambda ms: f"{ms:.1f}"),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m lightning_meta benchmark learners", description=(__doc__ or "").split("\n\n")[0],
        epilog=(__doc__ or "").split("\n\n", 2)[2], formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder, experiment's name, or checkpoint")
    parser.add_argument("--episodes", type=int, default=600, help="of the test (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs/learners"), help="where the table goes (%(default)s)")
    return parser


def main(arguments: Sequence[str]) -> None:
    given = options().parse_args(arguments)
    notes.set_up()
    require_at_least(2, episodes=given.episodes)
    rows: list[Row] = []
    first: tuple[Run, Played] | None = None
    for place in given.runs:
        run = load(place)
        try:
            played = play(run, (first[0] if first else run).data.shapes["test"], given.episodes, given.out)
        except UserError as error:
            raise type(error)(f"{run.folder}: {error}") from error
        first = first or (run, played)
        check_same(first, (run, played))
        rows.append(measured(run, played))
    assert first is not None
    data, shape = first[0].data, first[0].data.shapes["test"]
    if isinstance(data, GaussianProcess):
        rows.append(knowable(data, given.episodes))
    text = markdown(rows, EpisodicAccuracy if classifies(first[0].module) else EpisodicMSE)
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "learners.md").write_text(text + "\n")
    content = {
        "data": data.name,
        **shape._asdict(),
        "episodes": given.episodes,
        "rows": [row._asdict() for row in rows],
    }
    (given.out / "learners.json").write_text(json.dumps(content, indent=1) + "\n")
    print(
        f"{text}\n\n{data.name}, {shape}, {given.episodes} test episodes, the same for all; ± are 95 % intervals.\n"
        f"Files: {given.out}/learners.md, .json"
    )


def check_same(one: tuple[Run, Played], other: tuple[Run, Played]) -> None:
    """`ConfigError` where the test episodes of two runs are not the same."""
    (run, played), (its, its_played) = one, other
    same = played.targets.shape == its_played.targets.shape and torch.equal(played.targets, its_played.targets)
    inputs = [played.first.query.x[0].cpu(), its_played.first.query.x[0].cpu()]
    if not (same and inputs[0].shape == inputs[1].shape and F.l1_loss(*inputs) == 0):
        raise ConfigError(
            f"the test episodes of {its.folder} ({its.data.name}, data.seed={its.data.seed}) are not those of "
            f"{run.folder} ({run.data.name}, data.seed={run.data.seed}); give runs on the same data, of the same seed."
        )
