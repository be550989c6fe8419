"""The command line: a whole run leaves what it promises, and wrong input gets one clear message."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import yaml

from lightning_meta.cli import main
from lightning_meta.cli.composition import compose
from lightning_meta.core import Adam
from lightning_meta.core.episode import Split
from lightning_meta.datamodules.class_bank import ClassBank
from lightning_meta.errors import ConfigError
from tests.conftest import Blobs

ROOT = Path(__file__).parents[2]

TINY = """
trainer:
  accelerator: cpu
  max_steps: 4
  max_epochs: -1
  num_sanity_val_steps: 0
  enable_progress_bar: false
  enable_model_summary: false
  log_every_n_steps: 1
  logger:
    - class_path: pytorch_lightning.loggers.CSVLogger
      init_args: {save_dir: runs, name: ""}
  callbacks: CALLBACKS
data:
  class_path: tests.conftest.Blobs
  init_args: {n_way: 3, k_shot: 2, n_query: 2, steps_per_epoch: 2, val_episodes: 5, test_episodes: 7}
model:
  class_path: lightning_meta.algorithms.MAML
  init_args:
    backbone:
      class_path: lightning_meta.backbones.Conv4
      init_args: {image_size: 16, hidden: 6}
    inner_lr: 0.1
"""


def tiny_config(reports: dict[str, Any]) -> str:
    """With the callbacks of every run, and these arguments of the report."""
    *others, report = yaml.safe_load((ROOT / "configs/trainer/default.yaml").read_text())["callbacks"]
    return TINY.replace("CALLBACKS", json.dumps([*others, report | {"init_args": reports}]))


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small experiment in an empty folder that is the working directory. It draws nothing, which takes seconds."""
    path = tmp_path / "tiny.yaml"
    path.write_text(tiny_config({"only": []}))
    monkeypatch.chdir(tmp_path)
    return path


@pytest.fixture
def drawn(tiny: Path) -> Path:
    """The same with pictures."""
    tiny.write_text(tiny_config({}))
    return tiny


def fails(args: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run, expect an exit, and return the message: short, without a traceback."""
    with pytest.raises(SystemExit) as exit_info:
        main(args)
    message = exit_info.value.code if isinstance(exit_info.value.code, str) else capsys.readouterr().err
    assert "Traceback" not in message
    assert len(message.splitlines()) <= 12
    return message


pytestmark = pytest.mark.filterwarnings("ignore:LightningCLI's args parameter")


def test_fit_tests_the_best_checkpoint_and_says_where_everything_is(
    drawn: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["fit", "--config", str(drawn), "--name", "demo"])
    run = Path("runs/demo/version_0")
    result = json.loads((run / "result.json").read_text())
    episodes = (run / "test_episodes.csv").read_text().splitlines()
    assert len(episodes) == 1 + 7 == 1 + result["episodes"]
    scores = torch.tensor([float(line.split(",")[1]) for line in episodes[1:]])
    assert result["acc"] == pytest.approx(scores.mean().item(), abs=1e-5)
    for path in ("config.yaml", "metrics.csv", "checkpoints/last.ckpt", "pictures/episode_0.png"):
        assert (run / path).is_file(), path
    summary = capsys.readouterr().out
    for text in (f"{100 * result['acc']:.2f} ± {100 * result['acc_ci95']:.2f} %", "7 episodes", "3-way 2-shot"):
        assert text in summary
    for text in ("transductive", "test_episodes.csv", "pictures/", "best-step="):
        assert text in summary

    # The saved config and checkpoint reproduce the number.
    best = next((run / "checkpoints").glob("best-*.ckpt"))
    main(["test", "--config", str(run / "config.yaml"), "--ckpt_path", str(best)])
    again = json.loads(Path("runs/demo/version_1/result.json").read_text())
    assert (again["acc"], again["acc_ci95"]) == (result["acc"], result["acc_ci95"])


def test_the_summary_counts_the_episodes_that_were_played(tiny: Path) -> None:
    limited = ["--trainer.limit_test_batches", "2", "--data.eval_meta_batch_size", "2"]
    main(["fit", "--config", str(tiny), *limited])
    assert json.loads(Path("runs/tiny/version_0/result.json").read_text())["episodes"] == 4


def test_explicit_settings_win_over_the_checkpoints(tiny: Path) -> None:
    main(["fit", "--config", str(tiny), "--test_after_fit", "false"])
    last = "runs/tiny/version_0/checkpoints/last.ckpt"
    assert not Path("runs/tiny/version_0/result.json").exists()
    main(["test", "--config", str(tiny), "--ckpt_path", last, "--model.eval_inner_steps", "3"])
    assert json.loads(Path("runs/tiny/version_1/result.json").read_text())["eval_inner_steps"] == 3


@pytest.mark.parametrize("command", ["test", "validate"])
def test_scores_of_untrained_weights_are_called_that_first_and_last(
    tiny: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    warning = f"warning: {command} without --ckpt_path: the model has the weights that it starts with"
    main([command, "--config", str(tiny)])
    said = capsys.readouterr()
    assert said.err.count(warning) == 2
    assert bool(re.search(r"trained +no outer steps", said.out)) == (command == "test")
    main(["fit", "--config", str(tiny)])
    assert warning not in capsys.readouterr().err
    main([command, "--config", str(tiny), "--ckpt_path", "runs/tiny/version_1/checkpoints/last.ckpt"])
    assert warning not in capsys.readouterr().err


def test_reports_are_chosen_on_the_command_line(drawn: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = "--trainer.callbacks+ lightning_meta.reports.EpisodeGallery --trainer.callbacks.episodes 1"
    main(["fit", "--config", str(drawn), *own.split()])
    pictures = {path.stem for path in Path("runs/tiny/version_0/pictures").iterdir()}
    assert pictures == {"adaptation_curve", "calibration", "episode_0", "layer_similarity"}
    drawn.write_text(tiny_config({"skip": ["EpisodeGalery"]}))
    assert "no report EpisodeGalery" in fails(["fit", "--config", str(drawn)], capsys)


def test_unknown_keys_are_named(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = fails(["fit", "--config", str(tiny), "--model.inner_lrr", "1"], capsys)
    assert "'inner_lrr' is not accepted" in message
    assert "--model.help lightning_meta.algorithms.MAML" in message
    assert "max_stepz" in fails(["fit", "--config", str(tiny), "--trainer.max_stepz", "1"], capsys)
    tiny.write_text(tiny.read_text().replace("inner_lr:", "inner_rate:"))
    assert "'inner_rate' is not accepted" in fails(["fit", "--config", str(tiny)], capsys)


def test_wrong_types_are_named(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = fails(["fit", "--config", str(tiny), "--model.inner_lr", "abc"], capsys)
    assert "model.inner_lr=abc must be a number" in message


def test_a_linked_value_is_never_overridden_silently(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = fails(["fit", "--config", str(tiny), "--model.n_way", "7"], capsys)
    assert "model.n_way=7" in message
    assert "data.n_way=3" in message


def test_the_way_of_the_data_reaches_the_head(tiny: Path) -> None:
    cli = main(["fit", "--config", str(tiny), "--data.n_way", "4", "--trainer.fast_dev_run", "true"])
    assert cli.model.learner[-1].out_features == 4


def test_maml_learns_with_an_inner_optimizer_from_the_command_line(tiny: Path) -> None:
    """Rates and weight decays move, and a test with the same options takes them from the checkpoint."""
    learned = "--model.inner_optimizer lightning_meta.core.LearnedRates --model.inner_optimizer.weight_decay 0.01 "
    adam = "--model.inner_optimizer.optimizer lightning_meta.core.Adam --model.inner_lr 0.05"
    arguments = ["--config", str(tiny), *learned.split(), *adam.split()]
    fitted = main(["fit", *arguments, "--test_after_fit", "false"]).model.inner_optimizer
    assert fitted.optimizer == Adam(0.05)
    for table, start in ((fitted.rates, 0.05), (fitted.decays, 0.01)):
        assert all(value.item() != pytest.approx(start, rel=1e-5) for value in table.values())
    tested = main(["test", *arguments, "--ckpt_path", "runs/tiny/version_0/checkpoints/last.ckpt"]).model
    assert tested.inner_optimizer.rates["1/weight"] == fitted.rates["1/weight"]


def test_arguments_dropped_with_a_class_are_reported(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of collaborators as well. What an exchange of the whole model or data keeps and drops: see test_exchange.py."""
    collaborator = ["--model.backbone", "MLP", "--model.backbone.in_features", "256"]
    main(["fit", "--config", str(tiny), *collaborator, "--trainer.fast_dev_run", "true"])
    note = capsys.readouterr().err
    assert "discarding init_args" in note
    assert "'hidden': 6" in note


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--data.n_way", "50"], ["n_way=50", "12 classes", "lower n_way"]),
        (["--data.k_shot", "9", "--data.n_query", "9"], ["k_shot=9 + n_query=9", "12"]),
        (["--data.train.n_way", "5"], ["5-way", "n_way=3", "train"]),
        (["--model.backbone.in_channels", "3"], ["(3, 16, 16)", "(1, 16, 16)"]),
        (["--data.meta_batch_size", "0"], ["meta_batch_size=0"]),
        (["--trainer.inference_mode", "true"], ["inference_mode"]),
        (["--trainer.strategy", "fsdp"], ["trainer.strategy=fsdp", "take ddp"]),
        (["--ckpt_path", "none.ckpt"], ["none.ckpt", "does not exist"]),
    ],
    ids=lambda value: value[0] if value[0].startswith("--") else "",
)
def test_impossible_requests_name_the_numbers(
    tiny: Path, args: list[str], expected: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    message = fails(["fit", "--config", str(tiny), "--trainer.logger", "false", *args], capsys)
    for text in expected:
        assert text in message


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--model", "ProtoNet", "--data.test.n_way", "20"], ["test episodes", "n_way=20", "12 classes"]),
        (["--data.test.k_shot", "30"], ["test episodes", "k_shot=30", "12"]),
        (["--data.val.n_query", "30"], ["val episodes", "n_query=30", "12"]),
        (["--data.test.n_way", "4"], ["test episodes are 4-way", "n_way=3"]),
        (["--data", "tests.cli.test_trainer.FewTestClasses"], ["test episodes", "n_way=3", "2 classes"]),
    ],
    ids=lambda value: " ".join(value[-2:]) if value[0].startswith("--") else "",
)
def test_what_cannot_be_tested_is_known_before_the_first_step(
    tiny: Path, args: list[str], expected: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    message = fails(["fit", "--config", str(tiny), *args], capsys)
    for text in expected:
        assert text in message
    assert not list(Path("runs").rglob("*.ckpt"))
    assert not list(Path("runs").rglob("metrics.csv"))


def test_where_nothing_is_tested_there_need_not_be_test_data(tiny: Path) -> None:
    data = ["--data", "tests.cli.test_trainer.FewTestClasses"]
    main(["fit", "--config", str(tiny), *data, "--test_after_fit", "false"])


class FewTestClasses(Blobs):
    def load_source(self, split: Split) -> ClassBank:
        return super().load_source(split).thinned(2 if split == "test" else 12)


def test_damaged_and_foreign_checkpoints(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["fit", "--config", str(tiny), "--test_after_fit", "false", "--trainer.max_steps", "2"])
    good = Path("runs/tiny/version_0/checkpoints/last.ckpt")
    Path("cut.ckpt").write_bytes(good.read_bytes()[: good.stat().st_size // 2])
    torch.save({"weights": torch.zeros(1)}, "foreign.ckpt")
    test = ["test", "--config", str(tiny), "--trainer.logger", "false", "--ckpt_path"]
    assert "cannot be read" in fails([*test, "cut.ckpt"], capsys)
    assert "no Lightning checkpoint" in fails([*test, "foreign.ckpt"], capsys)
    assert "ProtoNet" in fails([*test, str(good), "--model", "ProtoNet"], capsys)
    assert "size mismatch" in fails([*test, str(good), "--model.backbone.hidden", "5"], capsys)


def test_divergence_names_step_and_episodes_and_keeps_the_last_checkpoint(
    tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = fails(["fit", "--config", str(tiny), "--model.inner_lr", "1e38"], capsys)
    assert "step" in message
    assert "inner_lr" in message
    assert not list(Path("runs").rglob("*.ckpt"))


class Impatient(pl.Callback):
    """Presses Ctrl-C where no step is in progress."""

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        signal.raise_signal(signal.SIGINT)

    def on_sanity_check_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("args", [["fit", "--trainer.num_sanity_val_steps", "1"], ["fit"]], ids=["before", "after"])
def test_ctrl_c_outside_of_training_has_the_exit_status_of_ctrl_c(
    tiny: Path, args: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    command = [args[0], "--config", str(tiny), *args[1:], "--trainer.callbacks", "tests.cli.test_trainer.Impatient"]
    with pytest.raises(SystemExit) as end:
        main(command)
    assert end.value.code == 130
    assert "Traceback" not in capsys.readouterr().err


OLD = "AdaptationCurve LayerSimilarity EpisodeGallery SineFits SequenceError LearningCurves ProcessFits Completions"


def test_a_run_of_an_older_config_goes_on_with_its_drawings(tiny: Path) -> None:
    """Which names each of them among the callbacks, as configs did before there was one line for all."""
    names = ["EpisodicCheckpoint", "EpisodeTable", *OLD.split(), "EmbeddingMap", "Calibration", "RunSummary"]
    listed = [{"class_path": f"lightning_meta.callbacks.{name}"} for name in names]
    tiny.write_text(TINY.replace("CALLBACKS", json.dumps(listed)))
    main(["fit", "--config", str(tiny), "--test_after_fit", "false"])
    run = Path("runs/tiny/version_0")
    saved = re.sub(r"lightning_meta\.reports\.", "lightning_meta.callbacks.", (run / "config.yaml").read_text())
    (run / "config.yaml").write_text(saved)
    assert saved.count("class_path: lightning_meta.callbacks.") == len(names)
    more = ["--ckpt_path", "last", "--trainer.max_steps", "6", "--test_after_fit", "true"]
    cli = main(["fit", "--config", str(run / "config.yaml"), *more])
    assert cli.trainer.fit_loop.epoch_loop.global_step == 6
    result = json.loads((run / "result.json").read_text())
    assert result["episodes"] == 7 and result["logs"]["ece"] > 0
    pictures = {path.stem for path in (run / "pictures").iterdir()}
    assert pictures == {"adaptation_curve", "calibration", "episode_0", "episode_1", "layer_similarity"}


def test_references_and_dotted_keys_compose(tmp_path: Path) -> None:
    (tmp_path / "part.yaml").write_text("a: 1\nb: {c: 2, d: 3}\n")
    (tmp_path / "list.yaml").write_text("- x\n- y\n")
    (tmp_path / "whole.yaml").write_text("part: part.yaml\npart.b.c: 5\npart.e: list.yaml\n")
    assert compose(tmp_path / "whole.yaml") == {"part": {"a": 1, "b": {"c": 5, "d": 3}, "e": ["x", "y"]}}
    (tmp_path / "broken.yaml").write_text("part: missing.yaml\n")
    with pytest.raises(ConfigError, match=r"broken.yaml refers to missing.yaml"):
        compose(tmp_path / "broken.yaml")
    (tmp_path / "invalid.yaml").write_text("a: [1\n")
    with pytest.raises(ConfigError, match=r"invalid.yaml is not valid YAML"):
        compose(tmp_path / "invalid.yaml")


def test_print_config_resolves_references(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["fit", "--config", "maml_sinusoid_5s", "--print_config"])
    assert ended.value.code == 0
    config = yaml.safe_load(capsys.readouterr().out)
    assert config["model"]["init_args"]["backbone"]["class_path"] == "lightning_meta.backbones.MLP"
    assert config["trainer"]["inference_mode"] is False


def test_help_takes_less_than_four_seconds() -> None:
    """Processor time, because other work on the machine may slow the clock."""
    start = os.times()
    out = subprocess.run(
        [sys.executable, "-m", "lightning_meta", "--help"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    end = os.times()
    assert all(command in out for command in ("fit", "validate", "test", "predict"))
    assert end.children_user + end.children_system - start.children_user - start.children_system < 4


def test_start_up_does_not_import_learn2learn() -> None:
    code = "import sys, lightning_meta.cli; sys.exit('learn2learn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
