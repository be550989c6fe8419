"""Training seeds of an experiment as one group: `python -m lightning_meta fit ... --seeds 0,1,2`.

Each seed is a run of its own, `runs/<experiment>/seed_<n>/version_<k>`, in a process of its own, and of the same group
in W&B. A seed that is finished is not trained again, one that was stopped goes on exactly where it stopped. So the
command may be killed at any moment and started again, and several of them may run side by side: a seed that another one
trains is left to it.

At the end stands a table, and the same in `runs/<experiment>/seeds.json`: the score of each seed, and the mean with
two intervals that answer two questions. Over seeds, by Student's t: how would other trainings do? Over episodes, of the
mean over these seeds: how would these trainings do on other episodes?

Exit status: 0 when all seeds are tested, 1 when one failed, 75 when some are left to others, and 128 + signal when a
signal stopped it.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from lightning_meta import checkpoints
from lightning_meta.cli import children
from lightning_meta.cli.composition import options_of
from lightning_meta.cli.names import GROUP, experiment_of
from lightning_meta.cli.seeds import OPTION
from lightning_meta.cli.trainer import resolve
from lightning_meta.core.statistics import mean_and_ci95_over, mean_and_t95
from lightning_meta.errors import ConfigError
from lightning_meta.metrics import metric_of
from lightning_meta.reproduce.command import WORK_LEFT
from lightning_meta.reproduce.queue import say
from lightning_meta.reproduce.runs import contradictions, lock, options, write_whole
from lightning_meta.results.compare import Method, load


class Seed(NamedTuple):
    """One training of a group.

    Args:
        number: `seed_everything`.
        folder: of its runs.
        config: of its training, as its `config.yaml` would have it.
    """

    number: int
    folder: Path
    config: Mapping[str, Any]

    @property
    def run(self) -> Path | None:
        """The folder of its newest training; None where nothing was saved."""
        newest = checkpoints.last(checkpoints.below(self.folder))
        run = checkpoints.run_of(newest.path) if newest else None
        return self.folder / run.name if run else None

    @property
    def is_finished(self) -> bool:
        """Whether it was trained to the end and tested."""
        return self.run is not None and (self.run / "result.json").is_file() and self._steps(self.run) == self._steps()

    def prepare(self) -> list[str]:
        """Words that begin it or let it go on; `ConfigError` where what is there is another training."""
        if (run := self.run) is None:
            return []
        asked, former = options(self.config), options(yaml.safe_load((run / "config.yaml").read_text()))
        changed = contradictions(former, asked)
        if self._steps(run) > self._steps():
            changed.append(f"--trainer.max_steps {self._steps(run)} -> {self._steps()}")
        if changed:
            raise ConfigError(
                f"{run} was trained with other settings ({', '.join(changed[:3])}); restore them, or give this group a "
                "name of its own: --name NAME."
            )
        if not self.is_finished:
            (run / "result.json").unlink(missing_ok=True)  # of a shorter training
        return ["--ckpt_path", "last"]

    def _steps(self, run: Path | None = None) -> int:
        config = yaml.safe_load((run / "config.yaml").read_text()) if run else self.config
        return config["trainer"]["max_steps"]


def run(numbers: Sequence[int], words: Sequence[str]) -> None:
    """Train and test the seeds with a command that names none, report, and end with the exit status."""
    config = resolve(words)  # what cannot be trained is said before anything is
    name, group = experiment_of(str(config["name"])), folder_of(config)
    seeds = [Seed(number, group / f"seed_{number}", {**config, "seed_everything": number}) for number in numbers]
    for seed in seeds:
        seed.prepare()
    rest = [word for option in options_of(words) if option.key != "name" for word in option.words]
    failed, stopped = [], 0
    for seed in seeds:
        status, stopped = train(seed, [*rest, "--name", f"{name}/seed_{seed.number}"])
        if stopped:
            break
        failed += [seed.number] if status else []
    done = [seed for seed in seeds if seed.is_finished]
    left = [str(seed.number) for seed in seeds if seed not in done]
    if done:
        text, summary = report(name, done)
        write_whole(group / GROUP, json.dumps(summary | {"left": left}, indent=1) + "\n")
        print(f"\n{text}\n\n{group / GROUP}")
    if left:
        print(f"Left: {', '.join(f'seed {number}' for number in left)}; the same command goes on with them.")
    sys.exit(128 + stopped if stopped else 1 if failed else WORK_LEFT if left else 0)


def folder_of(config: Mapping[str, Any]) -> Path:
    """Of the group; `ConfigError` where runs would leave no files there."""
    if not config["test_after_fit"]:
        raise ConfigError(f"{OPTION} reports test scores; leave test_after_fit true.")
    loggers = config["trainer"]["logger"] or []
    csv = [one for one in (loggers if isinstance(loggers, list) else [loggers]) if "CSVLogger" in str(one)]
    name = str(config["name"])
    if not csv or csv[0]["init_args"]["name"] != name:
        raise ConfigError(
            f"{OPTION} needs a CSV logger that takes its name from the run's: --trainer.logger csv, or another of "
            "configs/logger/."
        )
    return Path(csv[0]["init_args"]["save_dir"], experiment_of(name))


def train(seed: Seed, words: Sequence[str]) -> tuple[int, int]:
    """Train and test a seed unless that is done; its exit status, and the signal that stopped it, 0 for none."""
    what = f"seed {seed.number}"
    with lock(seed.folder) as held:
        if held is None:
            say(what, "is left to the process that trains it")
            return 0, 0
        more = seed.prepare()
        if seed.is_finished:
            say(what, f"is there already: {seed.run}")
            return 0, 0
        say(what, f"goes on in {seed.run}" if more else f"starts in {seed.folder}")
        command = [sys.executable, "-m", "lightning_meta", *words, "--seed_everything", str(seed.number), *more]
        status, received = children.run(command, keep_open=[held.fileno()])
        if received or status in children.STOPPED:
            return status, received or status % 128
        if status == 0 and not seed.is_finished:
            status = 1
            say(what, f"FAILED: it ended without a result.json in {seed.folder}")
        elif status:
            say(what, f"FAILED: it ended with status {status}")
        return status, 0


def report(name: str, seeds: Sequence[Seed]) -> tuple[str, dict[str, Any]]:
    """The scores of tested seeds as a Markdown table and as plain values. Accuracies are in per cent in the table."""
    runs = [load(seed.run) for seed in seeds if seed.run]
    metric = runs[0].result["metric"]
    per_episode = Method(name, runs).scores
    mean, of_seeds = mean_and_t95(per_episode.new_tensor([run.scores.mean() for run in runs]))
    of_episodes = mean_and_ci95_over(per_episode)[1].item()
    summary: dict[str, Any] = {
        "experiment": name,
        "metric": metric,
        "seeds": [
            {
                "seed": run.result["seed"], metric: run.result[metric], f"{metric}_ci95": run.result[f"{metric}_ci95"],
                "outer_steps": run.result["outer_steps"], "run": str(run.folder),
            }
            for run in runs
        ],
        "mean": mean,
        "ci95_over_seeds": of_seeds if len(runs) > 1 else None,  # Student's t
        "ci95_over_episodes": of_episodes,
        "episodes": len(per_episode),
        "episodes_digest": runs[0].digest,
    }  # fmt: skip
    written = metric_of(metric)
    columns = (
        name,
        written.label(f"test {metric}"),
        f"± over {len(per_episode)} episodes",
        "± over seeds",
        "best at step",
    )
    lines = [f"| {' | '.join(columns)} | run |", "|---|---|---|---|---|---|"]
    for row in summary["seeds"]:
        score = f"{written.number(row[metric])} | {written.number(row[f'{metric}_ci95'])}"
        lines.append(f"| seed {row['seed']} | {score} | | {row['outer_steps']} | {row['run']} |")
    over = written.number(of_seeds) if len(runs) > 1 else "-"
    lines.append(f"| **mean** | **{written.number(mean)}** | {written.number(of_episodes)} | {over} | | |")
    return "\n".join(lines), summary
