"""One readable summary at the end of a test, and the same facts as JSON for tables."""

import json
import shlex
import sys
from pathlib import Path
from time import perf_counter
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger, WandbLogger

from lightning_meta import checkpoints
from lightning_meta.backbones import norm_protocol
from lightning_meta.callbacks.episode_table import EpisodeTable
from lightning_meta.callbacks.throughput import Throughput
from lightning_meta.cli.names import experiment_of, with_paths
from lightning_meta.datamodules.base import TaskDataModule
from lightning_meta.metrics import metric_of
from lightning_meta.modules import MetaModule
from lightning_meta.provenance import Provenance, hardware
from lightning_meta.reports import Report, TestReport


class RunSummary(pl.Callback):
    """Print what was tested, how, how well, how long it took and where the files are; write `<log_dir>/result.json`.

    It reads the other callbacks, so it goes last among them, wherever it stands in the config. The seconds of training
    travel with the checkpoint, as the module's `provenance` does: a resumed run adds to the seconds, and a later test
    of the checkpoint, on other data perhaps, reports the training's seed, data and code.
    """

    def __init__(self) -> None:
        self._start = perf_counter()
        self._fitting = False
        self._fit_seconds = 0.0
        self.test_seconds = 0.0
        self.test_episodes = 0

    @property
    def fit_seconds(self) -> float:
        """Wall-clock time of training so far, validation included; 0 where it is not known."""
        return self._fit_seconds + (perf_counter() - self._start if self._fitting else 0.0)

    def state_dict(self) -> dict[str, Any]:
        return {"fit_seconds": self.fit_seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # A test after fit loads the best checkpoint, which may be older than the end of training.
        self._fit_seconds = max(self._fit_seconds, state_dict["fit_seconds"])

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        trainer.callbacks = [*(one for one in _callbacks(trainer) if one is not self), self]  # type: ignore[attr-defined]

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._start, self._fitting = perf_counter(), True

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._fit_seconds, self._fitting = self.fit_seconds, False

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._start, self.test_episodes = perf_counter(), 0

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self.test_episodes += len(outputs["loss"])

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.test_seconds = perf_counter() - self._start
        count = torch.tensor(self.test_episodes, device=pl_module.device)
        self.test_episodes = int(trainer.strategy.reduce(count, reduce_op="sum"))

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        log_dir = trainer.log_dir  # communicates: every rank must ask
        data = getattr(trainer, "datamodule", None)
        if not (trainer.is_global_zero and isinstance(pl_module, MetaModule) and isinstance(data, TaskDataModule)):
            return
        result = self._result(trainer, pl_module, data)
        print(_render(result, data.describe("test"), _files(trainer, log_dir)), flush=True)
        if log_dir is not None:
            (Path(log_dir) / "result.json").write_text(json.dumps(result, indent=1) + "\n")

    def _result(self, trainer: pl.Trainer, module: MetaModule, data: TaskDataModule) -> dict[str, Any]:
        name = module.metric.name
        throughput = next((c for c in _callbacks(trainer) if isinstance(c, Throughput)), None)
        return {
            "experiment": _experiment(trainer),
            "command": shlex.join(["python", "-m", "lightning_meta", *with_paths(sys.argv[1:])]),
            "algorithm": type(module).__name__,
            "data": data.name,
            "metric": name,
            **{key: trainer.callback_metrics[f"test/{key}"].item() for key in (name, f"{name}_ci95")},
            "logs": _logged(trainer, name),
            **({"parts": parts} if (parts := _parts(trainer)) else {}),
            "episodes": self.test_episodes,
            **data.facts("test"),
            "episode_seed": data.seed,
            "episodes_digest": next((c.digest for c in _callbacks(trainer) if isinstance(c, EpisodeTable)), None),
            "normalisation": norm_protocol(module),
            "eval_inner_steps": getattr(module, "eval_inner_steps", None),
            "outer_steps": _outer_steps(trainer),
            "trained_steps": _trained_steps(trainer),
            **(module.provenance or Provenance.of_this_process())._asdict(),
            "fit_seconds": self.fit_seconds or None,
            "test_seconds": self.test_seconds,
            "episodes_per_s": throughput.mean if throughput and throughput.seconds else None,
            "hardware": hardware(module.device),
            "precision": str(trainer.precision),
            "torch": torch.__version__,
        }


def _callbacks(trainer: pl.Trainer) -> list[pl.Callback]:
    return trainer.callbacks  # type: ignore[attr-defined]


def _logged(trainer: pl.Trainer, metric: str) -> dict[str, float]:
    """What the test measured beside the loss and the metric, by name."""
    values = {name.removeprefix("test/"): v.item() for name, v in trainer.callback_metrics.items() if "test/" in name}
    own = {name: value for name, value in values.items() if "/" not in name}  # others are of parts
    return {name: value for name, value in own.items() if name.removesuffix("_ci95") not in (metric, "loss")}


def _parts(trainer: pl.Trainer) -> dict[str, dict[str, float]]:
    """What the test measured on each of its parts, such as the sources of mixed data: `test/<part>/<name>`."""
    parts: dict[str, dict[str, float]] = {}
    for name, value in trainer.callback_metrics.items():
        match name.split("/"):
            case ["test", part, key]:
                parts.setdefault(part, {})[key] = value.item()
    return parts


def _outer_steps(trainer: pl.Trainer) -> int | None:
    """How many outer updates made the weights that were tested; None for none."""
    if trainer.ckpt_path:
        return checkpoints.describe(Path(trainer.ckpt_path)).step
    return trainer.global_step or None


def _trained_steps(trainer: pl.Trainer) -> int | None:
    """How long the training was in which these weights were the best: up to the last checkpoint, beside theirs."""
    tested = _outer_steps(trainer)
    if tested is None or not trainer.ckpt_path:
        return tested
    run = checkpoints.run_of(Path(trainer.ckpt_path))
    return max([tested, *(one.step for one in checkpoints.below(run))]) if run else tested


def _experiment(trainer: pl.Trainer) -> str:
    """Name given to the CSV logger (on the command line: the experiment's)."""
    name = next((str(logger.name) for logger in trainer.loggers if isinstance(logger, CSVLogger)), "run")
    return experiment_of(name)


def _files(trainer: pl.Trainer, log_dir: str | None) -> dict[str, str]:
    """Where things are, by kind."""
    files: dict[str, str] = {"checkpoint": str(trainer.ckpt_path)} if trainer.ckpt_path else {}
    for callback in _callbacks(trainer):
        if isinstance(callback, EpisodeTable) and callback.path:
            curves = [
                str(Path(logger.log_dir) / "metrics.csv") for logger in trainer.loggers if isinstance(logger, CSVLogger)
            ]
            files["CSV"] = ", ".join([str(callback.path), *curves])
    pictures = [path for c in _callbacks(trainer) if isinstance(c, Report | TestReport) for path in c.paths]
    if pictures:
        files["pictures"] = f"{pictures[0].parent}/ ({', '.join(path.name for path in pictures)})"
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            run = logger.experiment
            files["W&B"] = f"offline; upload with: wandb sync {Path(run.dir).parent}" if run.offline else str(run.url)
    if log_dir is not None:
        files["all"] = log_dir
    return files


def _render(result: dict[str, Any], tasks: str, files: dict[str, str]) -> str:
    name, value, ci95 = result["metric"], result[result["metric"]], result[f"{result['metric']}_ci95"]
    protocol = f"normalisation: {result['normalisation']}"
    if result["eval_inner_steps"] is not None:
        protocol += f"; {result['eval_inner_steps']} inner steps"
    time = f"test {result['test_seconds']:.0f} s"
    if result["fit_seconds"] is not None:
        rate = f" ({result['episodes_per_s']:.0f} episodes/s)" if result["episodes_per_s"] else ""
        time = f"fit {result['fit_seconds']:.0f} s{rate}, {time}"
    logs = {
        key: metric_of(key).text(value, result["logs"].get(f"{key}_ci95"))
        for key, value in result["logs"].items()
        if not key.endswith("_ci95")
    }
    lines = {
        f"test {name}": f"{metric_of(name).text(value, ci95)}   (95 % CI over {result['episodes']} episodes)",
        **{part: metric_of(name).text(of[name], of[f"{name}_ci95"]) for part, of in result.get("parts", {}).items()},
        **logs,
        "episodes": f"{tasks}; seed {result['episode_seed']}",
        "protocol": protocol,
        "trained": f"{result['outer_steps'] or 'no'} outer steps"
        + (f" on {result['trained_on']}" if result["trained_on"] not in (None, result["data"]) else ""),
        "time": f"{time}; {result['hardware']}",
        **files,
    }
    title = f"{result['experiment']}: {result['algorithm']} on {result['data']}"
    width = max(map(len, lines)) + 1
    body = "\n".join(f"  {key:<{width}}{text}" for key, text in lines.items())
    return f"\n{title}\n{'-' * len(title)}\n{body}\n"
