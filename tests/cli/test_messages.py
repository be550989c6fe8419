"""A user's mistake is answered in one line with the numbers and the remedy; a mistake in code keeps its traceback."""

import errno
import os
from pathlib import Path

import pytest
import pytorch_lightning as pl
import yaml

from lightning_meta import errors
from lightning_meta.algorithms import MAML
from lightning_meta.cli import main
from lightning_meta.errors import ConfigError, in_one_line
from tests.cli.test_trainer import tiny  # noqa: F401 - a fixture

pytestmark = [
    pytest.mark.filterwarnings("ignore:LightningCLI's args parameter"),
    pytest.mark.filterwarnings("ignore:Initializing zero-element tensors"),
]


def line(args: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Of the error that a command ends with: one, with exit status 1, or 2 where it could not be parsed."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        main(args)
    message = end.value.code if isinstance(end.value.code, str) else capsys.readouterr().err
    assert isinstance(end.value.code, str) or end.value.code == 2
    found = [text for text in message.splitlines() if text.startswith("error: ")]
    assert len(found) == 1
    assert "Traceback" not in message
    return found[0]


SETTINGS = [
    ("--trainer.accelerator nonesuch", ["trainer.accelerator=nonesuch", "This machine has: ", "cpu"]),
    ("--trainer.devices 0", ["trainer.devices=0"]),
    (
        f"--trainer.accelerator cpu --trainer.devices {5 * os.cpu_count()}",
        [f"would start as many processes on {os.cpu_count()} CPU cores", f"at most {4 * os.cpu_count()} "],
    ),
    ("--trainer.strategy nonesuch", ["trainer.strategy=nonesuch", "ddp"]),
    ("--trainer.max_steps=-5", ["trainer.max_steps=-5", "-1"]),
    ("--trainer.limit_val_batches 1.5", ["trainer.limit_val_batches=1.5", "[0.0, 1.0]"]),
    ("--trainer.max_time soon", ["trainer.max_time=soon", "DD:HH:MM:SS"]),
    ("--trainer.accumulate_grad_batches 0", ["accumulate_grad_batches=0", "at least 1"]),
    ("--trainer.check_val_every_n_epoch 0", ["check_val_every_n_epoch=0", "at least 1"]),
    ("--trainer.val_check_interval 0", ["val_check_interval=0", "limit_val_batches=0"]),
    ("--seed_everything=-1", ["seed_everything=-1", "between 0 and 4294967295"]),
    ("--data.num_workers=-1", ["num_workers=-1", "at least 0"]),
    ("--data.n_way=-3", ["data.n_way=-3", "at least 1"]),
    ("--model.task_chunk_size 0", ["task_chunk_size=0", "at least 1"]),
    ("--model.backbone.hidden 0", ["Conv4 cannot be made with", "hidden=0"]),
    ("--model.backbone.hidden=-3", ["Conv4 cannot be made with", "hidden=-3", "negative dimension"]),
    ("--model.optimizer torch.optim.Adam --model.optimizer.lr=-1", ["model.optimizer", "learning rate: -1.0"]),
    (
        "--model.lr_scheduler torch.optim.lr_scheduler.StepLR --model.lr_scheduler.step_size 0",
        ["StepLR", "modulo by zero"],
    ),
    ("--trainer.logger pytorch_lightning.loggers.CometLogger", ["comet-ml", "pip install"]),
    ("--trainer.callbacks pytorch_lightning.callbacks.LearningRateFinder", ["model.optimizer.init_args.lr"]),
    ("--trainer.callbacks pytorch_lightning.callbacks.BatchSizeFinder", ["batch_size"]),
    (
        "--trainer.callbacks pytorch_lightning.callbacks.EarlyStopping --trainer.callbacks.monitor val/f1",
        ["val/f1", "val/acc"],
    ),
    (
        "--trainer.callbacks+ lightning_meta.reports.AdaptationCurve --trainer.callbacks.episodes=-5",
        ["AdaptationCurve.episodes=-5 must be at least 1"],
    ),
    ("--trainer.logger.save_dir a_file", ["Not a directory", "a_file", "--trainer.logger.save_dir"]),
    ("--trainer.logger.save_dir /proc/nonesuch", ["/proc/nonesuch", "--trainer.logger.save_dir"]),
    ("--trainer.logger lightning_meta.loggers.OwnFolderCSVLogger --trainer.logger.save_dir a_file", ["a_file"]),
    ("--trainer.logger false --trainer.default_root_dir a_file", ["File exists", "a_file"]),
    (
        "--trainer.logger false --trainer.default_root_dir former",
        ["former has a run in it", "--trainer.default_root_dir"],
    ),
]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("modell: x", "a config has no key 'modell'. Did you mean model?"),
        (
            "model: protonet",
            "model=protonet: in a file, a config is named by its path from there, to configs/model/protonet",
        ),
    ],
)
def test_a_wrong_file_is_told_what_it_should_have(
    text: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (config := tmp_path / "mine.yaml").write_text(text)
    monkeypatch.setattr("sys.argv", ["lightning_meta"])
    with pytest.raises(SystemExit):
        main(["fit", "--config", str(config)])
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize(("options", "expected"), SETTINGS, ids=[options for options, _ in SETTINGS])
def test_settings_that_cannot_be(
    tiny: Path,  # noqa: F811
    options: str,
    expected: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("a_file").touch()
    Path("former").mkdir()
    Path("former/config.yaml").touch()
    message = line(["fit", "--config", str(tiny), *options.split()], capsys)
    for text in expected:
        assert text in message
    assert not list(Path().rglob("*.ckpt"))


def test_devices_that_do_not_share_a_meta_batch_are_told_before_they_start(
    tiny: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(pl.Trainer, "fit", lambda *_, **__: pytest.fail("processes are started"))
    two = ["--trainer.strategy", "ddp", "--trainer.devices", "2", "--data.meta_batch_size", "5"]
    message = line(["fit", "--config", str(tiny), *two], capsys)
    assert message == "error: meta_batch_size=5 is global and must be a multiple of the 2 devices; take 4, say."
    assert not Path("runs").exists()


def save_weights_only(path: Path) -> None:
    """Checkpoints of weights alone."""
    config = yaml.safe_load(path.read_text())
    saving = next(one for one in config["trainer"]["callbacks"] if one["class_path"].endswith("EpisodicCheckpoint"))
    saving["init_args"] = {"save_weights_only": True}
    path.write_text(yaml.safe_dump(config))


def test_training_does_not_go_on_from_weights_alone(
    tiny: Path,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    save_weights_only(tiny)
    command = ["--config", str(tiny), "--trainer.max_steps", "2"]
    main(["fit", *command, "--test_after_fit", "false"])
    assert "save_weights_only" in line(["fit", *command, "--ckpt_path", "last"], capsys)
    main(["test", *command, "--ckpt_path", "last"])


def test_the_trainers_switches_turn_callbacks_off(tiny: Path) -> None:  # noqa: F811
    cli = main(["fit", "--config", str(tiny), "--trainer.enable_checkpointing", "false"])
    assert cli.trainer.checkpoint_callbacks == []
    assert not list(Path().rglob("*.ckpt"))
    assert list(Path().rglob("result.json"))


TEXTS = [
    ("empty.csv", b"", ["empty.csv has no rows", "'text'", "'label'"]),
    ("head.csv", b"text,label\n", ["head.csv has no rows"]),
    ("tabs.csv", b"text\tlabel\na b\tx\n", ["line 2", "parted by ',', not by '\\t'"]),
    ("latin.csv", "text,label\ncaf\xe9,x\n".encode("latin-1"), ["not in UTF-8", "0xe9", "iconv"]),
    ("quote.csv", b'text,label\n"a b,x\n', ["quote.csv cannot be read"]),
]


@pytest.mark.parametrize(("name", "content", "expected"), TEXTS, ids=[name for name, *_ in TEXTS])
def test_tables_of_texts_that_are_none(
    tiny: Path,  # noqa: F811
    name: str,
    content: bytes,
    expected: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path(name).write_bytes(content)
    data = ["--data", "TextClasses", "--data.file", name, "--data.split.fractions", "[0.64,0.16,0.2]"]
    message = line(["fit", "--config", str(tiny), *data], capsys)
    for text in expected:
        assert text in message


# ---- mistakes in code -----------------------------------------------------------------------------------------------


class Typo(MAML):
    """Made, but for a slip of its author."""

    def __init__(self, **kwargs: object) -> None:
        super().__init__(**kwargs)  # type: ignore[arg-type]
        self.lerner.eval()


class Slip(pl.Callback):
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        raise ValueError("a slip in a callback")


class Misuse(pl.Callback):
    """Asks Lightning's core for what is not there: its own mistake, though Lightning raises it."""

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: object) -> None:
        pl_module.log("x", "no number")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ("--model tests.cli.test_messages.Typo", Exception, "lerner"),
        ("--trainer.callbacks tests.cli.test_messages.Slip", ValueError, "a slip in a callback"),
        ("--trainer.callbacks tests.cli.test_messages.Misuse", ValueError, "no number"),
    ],
    ids=["constructor", "callback", "misuse of Lightning"],
)
def test_mistakes_in_code_keep_their_traceback(
    tiny: Path,  # noqa: F811
    options: str,
    error: type[Exception],
    words: str,
) -> None:
    with pytest.raises(error, match=words):
        main(["fit", "--config", str(tiny), *options.split()])


def test_the_environment_gives_the_traceback_back(
    tiny: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(errors.TRACEBACK, "1")
    with pytest.raises(ConfigError, match="devices=0"):
        main(["fit", "--config", str(tiny), "--trainer.devices", "0"])


def fails_by(error: Exception) -> None:
    raise error


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC, errno.EACCES, errno.ENOTDIR])
def test_a_place_that_cannot_be_written_to_is_named(number: int) -> None:
    with pytest.raises(SystemExit, match=r"^error: .+: some/place; take a folder that can be written to"):
        in_one_line(lambda: fails_by(OSError(number, errno.errorcode[number], "some/place")))


@pytest.mark.parametrize("error", [FileNotFoundError(errno.ENOENT, "none", "x"), KeyError("x"), RuntimeError("x")])
def test_other_errors_pass(error: Exception) -> None:
    with pytest.raises(type(error)):
        in_one_line(lambda: fails_by(error))
