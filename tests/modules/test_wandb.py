"""W&B offline: a run of the command line leaves a file with everything in it, read back by our own reader."""

import csv
import json
import os
import re
import shutil
import socket
import struct
import zlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from time import monotonic
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
import wandb
from PIL import Image
from pytorch_lightning.loggers import CSVLogger

from lightning_meta.algorithms import ProtoSegmentation
from lightning_meta.backbones import Conv4
from lightning_meta.callbacks import EpisodeTable, episode_table
from lightning_meta.callbacks.episode_table import _by_class
from lightning_meta.cli import main
from lightning_meta.datamodules import Glyphs
from lightning_meta.datamodules.class_bank import ClassBank
from lightning_meta.loggers import (
    ANSWER_TIMEOUT,
    CONNECT_TIMEOUT,
    RUN_ID,
    OfflineFirstWandbLogger,
    _must_be_offline,
)
from tests import wandb_file
from tests.conftest import SIZE, scenes
from tests.wandb_file import BLOCK, FILE_HEADER, WandbRun

CONFIGS = Path(__file__).parents[2] / "configs"


def forget_settings(patch: pytest.MonkeyPatch) -> None:
    """No setting of W&B holds, and what a test sets is gone after it."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        patch.delenv(name)
    for name in ("WANDB_DATA_DIR", "WANDB_MODE"):  # set by the loggers
        patch.setenv(name, "")
        patch.delenv(name)


@pytest.fixture(autouse=True)
def _no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    forget_settings(monkeypatch)


# ---- a whole run ----------------------------------------------------------------------------------------------------


def random_bank(*_: object) -> ClassBank:
    return ClassBank.from_classes(torch.randint(256, (10, 20, 1, 28, 28), dtype=torch.uint8))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where an experiment of three steps has run, and was resumed for one more, without a test."""
    folder = tmp_path_factory.mktemp("wandb") / "work"
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        forget_settings(patch)
        patch.setattr(Glyphs, "prepare_data", lambda self: None)
        patch.setattr(Glyphs, "load_source", random_bank)
        patch.setattr("sys.argv", ["lightning_meta"])
        patch.chdir(folder)
        sizes = "--data.n_query 2 --data.meta_batch_size 2 --data.val_episodes 3 --data.test_episodes 3"
        trainer = "--trainer.log_every_n_steps 1 --trainer.accelerator cpu --model.backbone.hidden 8"
        logger = ["--trainer.logger", str(CONFIGS / "logger" / "wandb_checkpoints.yaml")]
        experiment = CONFIGS / "experiment/initialize/maml_glyphs_5w1s.yaml"
        fit = ["fit", "--config", str(experiment), *sizes.split(), *trainer.split(), *logger, "--seed_everything", "7"]
        main([*fit, "--trainer.max_steps", "3"])
        wandb.finish()
        (version,) = folder.glob("runs/maml_glyphs_5w1s/*")
        shutil.copytree(version, folder.parent / "first")
        last = str(version / "checkpoints" / "last.ckpt")
        main([*fit, "--trainer.max_steps", "4", "--ckpt_path", last, "--test_after_fit", "false"])
        wandb.finish()
        wandb.teardown()  # the process that writes the file has ended after this
        yield folder


@pytest.fixture(scope="module")
def first(folder: Path) -> Path:
    """The folder of the run as it was before the resume."""
    return folder.parent / "first"


@pytest.fixture(scope="module")
def runs(folder: Path) -> list[WandbRun]:
    paths = sorted(folder.glob("runs/wandb/offline-run-*/run-*.wandb"))  # in the order of time
    runs = [wandb_file.read(path) for path in paths]
    assert [run.finished for run in runs] == [True, True]
    return runs


@pytest.fixture(scope="module")
def run(runs: list[WandbRun]) -> WandbRun:
    return runs[0]


def test_metrics_equal_those_of_the_csv_logger(run: WandbRun, first: Path) -> None:
    with (first / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    for name, count in {"train/loss": 3, "train/acc": 3, "val/acc": 1, "val/acc_ci95": 1, "test/acc": 1}.items():
        in_csv = [float(row[name]) for row in rows if row.get(name)]
        assert run.values(name) == pytest.approx(in_csv, rel=1e-6)
        assert len(in_csv) == count
    assert all(0 <= value <= 1 for value in run.values("val/acc") + run.values("test/acc"))


def test_the_config_is_the_resolved_one_with_the_commit(run: WandbRun) -> None:
    config = run.config
    assert config["data"]["class_path"] == "lightning_meta.datamodules.Glyphs"
    assert config["data"]["init_args"] | {"n_way": 5, "k_shot": 1, "meta_batch_size": 2} == config["data"]["init_args"]
    assert config["data"]["init_args"]["train"]["n_query"] == 1
    model = config["model"]["init_args"]
    assert config["model"]["class_path"] == "lightning_meta.algorithms.MAML"
    assert (model["n_way"], model["inner_lr"], model["inner_steps"], model["eval_inner_steps"]) == (5, 0.4, 1, 3)
    assert model["backbone"]["init_args"]["hidden"] == 8
    assert model["optimizer"]["init_args"]["lr"] == 0.003
    assert config["trainer"]["max_steps"] == 3
    assert config["seed_everything"] == 7
    assert config["git_commit"] is None or re.fullmatch(r"[0-9a-f]{40}(-dirty)?", config["git_commit"])


def test_name_group_and_tags_come_from_the_experiment(run: WandbRun) -> None:
    assert (run.name, run.group) == ("maml_glyphs_5w1s-seed7", "MAML-Glyphs-5w1s")
    assert run.project == "lightning_meta"
    assert sorted(run.tags) == ["1-shot", "5-way", "glyphs"]


@pytest.mark.parametrize("picture", ["adaptation_curve", "episode_0"])
def test_pictures_are_in_the_run(picture: str, run: WandbRun, folder: Path, first: Path) -> None:
    ((name,),) = run.values(f"test/{picture}.filenames")
    (copy,) = folder.glob(f"runs/wandb/offline-run-*/files/{name}")
    assert copy.read_bytes() == (first / "pictures" / f"{picture}.png").read_bytes()


def test_the_summary_ends_with_the_test_result(run: WandbRun, first: Path) -> None:
    result = json.loads((first / "result.json").read_text())
    for name in ("acc", "acc_ci95"):
        assert run.summary[f"test/{name}"] == pytest.approx(result[name], rel=1e-6)


def test_the_table_of_test_episodes_has_images_and_predictions(run: WandbRun, first: Path) -> None:
    ((name,),) = [[path for path in files if path.endswith(".table.json")] for files in run.artifacts["run_table"]]
    (files,) = run.artifacts["run_table"]
    table = json.loads(files[name].read_text())
    assert table["columns"] == ["episode", "acc", "loss", "support", "query", "predictions"]
    with (first / "test_episodes.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(table["data"]) == len(rows) == 3
    for row, (episode, acc, loss, support, query, predictions) in zip(rows, table["data"], strict=True):
        assert (episode, acc, loss) == (int(row["episode"]), float(row["acc"]), float(row["loss"]))
        assert (support["width"], query["width"]) == (30 + 2, 2 * 30 + 2)  # of 28 pixels with frames of 2
        for image in (support, query):
            assert Image.open(files[image["path"]]).size == (image["width"], 5 * 30 + 2)
        lines = [line.split() for line in predictions.split("\n")]  # a line for each class
        right = [prediction == str(label) for label, line in enumerate(lines) for prediction in line]
        assert len(right) == 10
        assert sum(right) / 10 == pytest.approx(acc)


def test_rows_of_the_table_are_classes_in_any_order_of_examples() -> None:
    """Streams read the support in random order."""
    assert _by_class(torch.tensor([2, 0, 2, 0]), torch.arange(4)).tolist() == [[1, 3], [0, 2]]


def test_scenes_are_in_the_table_without_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mask has a class for each pixel: there are no rows of classes to picture."""
    tables: list[tuple[list[str], list[list[float]]]] = []
    log_table = SimpleNamespace(log_table=lambda name, columns, cells: tables.append((columns, cells)))
    monkeypatch.setattr(episode_table, "_wandb_loggers", lambda trainer: [log_table])
    backbone = Conv4(hidden=6, image_size=2 * SIZE, halvings=2, norm="transductive")
    logger = CSVLogger(tmp_path, name="", version="")
    trainer = pl.Trainer(accelerator="cpu", logger=logger, callbacks=[EpisodeTable()], inference_mode=False)
    trainer.test(ProtoSegmentation(backbone), scenes("masks"), verbose=False)
    ((columns, cells),) = tables
    assert columns[0] == "episode" and "iou" in columns and "support" not in columns
    assert [row[0] for row in cells] == list(range(7))


def test_adaptation_curves_have_an_axis_of_their_own(run: WandbRun, first: Path) -> None:
    with (first / "adaptation_curve.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 11
    for name in ("step", "acc", "acc_ci95", "loss"):
        assert run.values(f"adaptation/{name}") == pytest.approx([float(row[name]) for row in rows])
        assert run.x_axes[f"adaptation/{name}"] == "adaptation/step"
        assert f"adaptation/{name}" not in run.summary


def test_checkpoints_are_artifacts_also_offline(run: WandbRun, folder: Path, first: Path) -> None:
    checkpoints = [files["model.ckpt"] for files in run.artifacts["model"]]
    assert all(path.is_relative_to(folder / "runs" / "wandb") for path in checkpoints)
    (best,) = first.glob("checkpoints/best-*.ckpt")
    last = first / "checkpoints" / "last.ckpt"
    assert [path.read_bytes() for path in checkpoints] == [best.read_bytes(), last.read_bytes()]


def test_a_resumed_training_goes_on_with_its_run(runs: list[WandbRun]) -> None:
    first, second = runs
    assert first.id == second.id
    steps = [[row["trainer/global_step"] for row in run.history if "train/loss" in row] for run in runs]
    assert steps == [[0, 1, 2], [3]]


def test_nothing_is_written_outside_the_run_folders(folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} == {"runs"}


# ---- the logger -----------------------------------------------------------------------------------------------------


class Answer(BaseHTTPRequestHandler):
    """A server of which only the root is asked, and which does not know it."""

    def do_HEAD(self) -> None:
        self.send_error(404)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    """Address of a server that answers."""
    with HTTPServer(("127.0.0.1", 0), Answer) as answering:
        Thread(target=answering.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{answering.server_port}"
        answering.shutdown()


@pytest.fixture
def dead_server() -> Iterator[str]:
    """Address of a server that takes connections, and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


@pytest.fixture
def silent_server() -> Iterator[str]:
    """Address of a server that answers nobody: its queue of connections is full."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listening:
        waiting = [socket.socket() for _ in range(4)]
        for client in waiting:
            client.setblocking(False)
            client.connect_ex(listening.getsockname())
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        for client in waiting:
            client.close()


def test_without_a_key_it_is_offline() -> None:
    assert _must_be_offline()


@pytest.mark.parametrize(("mode", "offline"), [("offline", True), ("dryrun", True), ("disabled", False)])
@pytest.mark.parametrize("key", [None, "0" * 40])
def test_the_mode_overrules_the_key(mode: str, offline: bool, key: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", mode)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    if key:
        monkeypatch.setenv("WANDB_API_KEY", key)
    assert _must_be_offline() == offline


def test_the_mode_online_needs_no_key_but_a_server(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """(The key may be in a file that wandb reads.) Without a server wandb would try for minutes."""
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_BASE_URL", server)
    assert not _must_be_offline()
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    assert offline_within_4_seconds()


@pytest.mark.parametrize("mode", ["online", None])
def test_a_server_that_takes_connections_but_does_not_answer_is_waited_for_30_seconds_at_most(
    mode: str | None, dead_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lightning_meta.loggers.ANSWER_TIMEOUT", 0.5)
    assert CONNECT_TIMEOUT + ANSWER_TIMEOUT < 30
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", dead_server)
    if mode:
        monkeypatch.setenv("WANDB_MODE", mode)
    assert offline_within_4_seconds()


def test_with_a_key_and_a_server_it_is_online(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", server)
    assert not _must_be_offline()


def offline_within_4_seconds() -> bool:
    start = monotonic()
    offline = _must_be_offline()
    return offline and monotonic() - start < 4


def test_with_a_key_and_nobody_there_it_is_offline_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    assert offline_within_4_seconds()


def test_with_a_key_and_a_server_that_hangs_it_is_offline_soon(
    silent_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", silent_server)
    assert offline_within_4_seconds()


def test_a_name_that_does_not_resolve_is_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setattr(socket, "getaddrinfo", raise_unknown_host)
    assert _must_be_offline()


def raise_unknown_host(*_: object, **__: object) -> None:
    raise socket.gaierror(-2, "Name or service not known")


def test_the_port_follows_the_scheme(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, int]] = []

    def connect(address: tuple[str, int], *_: object) -> socket.socket:
        asked.append(address)
        raise ConnectionRefusedError

    monkeypatch.setattr(socket, "create_connection", connect)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    for url in ("https://wandb.example.org", "http://wandb.example.org", "http://wandb.example.org:8080"):
        monkeypatch.setenv("WANDB_BASE_URL", url)
        assert _must_be_offline()
    assert asked == [("wandb.example.org", port) for port in (443, 80, 8080)]


def test_an_id_that_was_given_goes_before_that_of_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save({RUN_ID: "saved"}, tmp_path / "with.ckpt")
    torch.save({}, tmp_path / "without.ckpt")

    def continued(checkpoint: str, **settings: str) -> str | None:
        logger = OfflineFirstWandbLogger(save_dir=str(tmp_path), **settings)
        logger.continue_run_of(tmp_path / checkpoint)
        assert logger._wandb_init["id"] == logger.version
        assert logger._wandb_init["resume"] == "allow"
        return logger.version

    assert continued("with.ckpt") == "saved"
    assert continued("without.ckpt") is None
    assert continued("with.ckpt", id="given") == "given"
    monkeypatch.setenv("WANDB_RUN_ID", "from-environment")
    assert continued("with.ckpt") is None  # W&B reads the variable


def test_the_project_comes_from_argument_then_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_PROJECT", "from-environment")
    assert OfflineFirstWandbLogger(save_dir=str(tmp_path)).name == "from-environment"
    assert OfflineFirstWandbLogger(save_dir=str(tmp_path), project="given").name == "given"


# ---- the reader -----------------------------------------------------------------------------------------------------


def test_the_reader_joins_records_across_blocks() -> None:
    """Written by hand: a record that fills all but 5 bytes of the first block, one of three blocks, one of a byte."""

    def chunk(kind: int, data: bytes) -> bytes:
        return struct.pack("<IHB", zlib.crc32(bytes([kind]) + data), len(data), kind) + data

    room = BLOCK - 7
    first = b"a" * (BLOCK - FILE_HEADER - 7 - 5)
    second = b"b" * (2 * room + 10)
    content = b":W&B\x00\x00\x00" + chunk(1, first) + b"\0" * 5
    content += (
        chunk(2, second[:room]) + chunk(3, second[room : 2 * room]) + chunk(4, second[2 * room :]) + chunk(1, b"c")
    )
    assert list(wandb_file.records(content)) == [first, second, b"c"]
    with pytest.raises(AssertionError, match="cut off"):
        list(wandb_file.records(content[:-1]))
    with pytest.raises(AssertionError, match="damaged"):
        list(wandb_file.records(content[:-1] + b"d"))
