"""W&B offline: a run of the command line leaves a file with everything in it, read back by our own reader."""

import csv
import re
import socket
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from time import monotonic

import pytest
import torch
import wandb

from lightning_meta.cli import main
from lightning_meta.datamodules import Glyphs
from lightning_meta.datamodules.episodes import ClassBank
from lightning_meta.loggers import OfflineFirstWandbLogger, _must_be_offline
from tests import wandb_file
from tests.wandb_file import BLOCK, FILE_HEADER, WandbRun

EXPERIMENT = Path(__file__).parents[2] / "configs" / "experiment" / "maml_glyphs_5w1s.yaml"
VARIABLES = ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_PROJECT", "WANDB_DIR")


@pytest.fixture(autouse=True)
def _no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


# ---- a whole run ----------------------------------------------------------------------------------------------------


def random_bank(*_: object) -> ClassBank:
    return ClassBank.from_classes(torch.randint(256, (10, 20, 1, 28, 28), dtype=torch.uint8))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where an experiment of three steps has run, with the loggers that it comes with."""
    folder = tmp_path_factory.mktemp("wandb")
    with pytest.MonkeyPatch.context() as patch:
        for name in VARIABLES:
            patch.delenv(name, raising=False)
        patch.setattr(Glyphs, "prepare_data", lambda self: None)
        patch.setattr(Glyphs, "load_source", random_bank)
        patch.setattr("sys.argv", ["lightning_meta"])
        patch.chdir(folder)
        sizes = "--data.n_query 2 --data.meta_batch_size 2 --data.val_episodes 3 --data.test_episodes 3"
        trainer = (
            "--trainer.max_steps 3 --trainer.log_every_n_steps 1 --trainer.accelerator cpu --model.backbone.hidden 8"
        )
        main(["fit", "--config", str(EXPERIMENT), *sizes.split(), *trainer.split()])
        wandb.finish()
        wandb.teardown()  # the process that writes the file has ended after this
        yield folder


@pytest.fixture(scope="module")
def run(folder: Path) -> WandbRun:
    (path,) = folder.glob("runs/wandb/offline-run-*/run-*.wandb")
    run = wandb_file.read(path)
    assert run.finished
    return run


def test_metrics_equal_those_of_the_csv_logger(run: WandbRun, folder: Path) -> None:
    (path,) = folder.glob("runs/**/metrics.csv")
    with path.open() as file:
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
    assert config["seed_everything"] == 0
    assert config["git_commit"] is None or re.fullmatch(r"[0-9a-f]{40}(-dirty)?", config["git_commit"])


def test_name_group_and_tags_come_from_the_experiment(run: WandbRun) -> None:
    assert (run.name, run.group, run.project) == ("maml_glyphs_5w1s", "MAML", "lightning_meta")
    assert sorted(run.tags) == ["1-shot", "5-way", "glyphs"]


@pytest.mark.parametrize("picture", ["adaptation_curve", "episode_0"])
def test_pictures_are_in_the_run(picture: str, run: WandbRun, folder: Path) -> None:
    ((name,),) = run.values(f"test/{picture}.filenames")
    (copy,) = folder.glob(f"runs/wandb/offline-run-*/files/{name}")
    (original,) = folder.glob(f"runs/**/pictures/{picture}.png")
    assert copy.read_bytes() == original.read_bytes()


def test_nothing_is_written_outside_the_run_folders(folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} == {"runs"}


# ---- the logger -----------------------------------------------------------------------------------------------------


@pytest.fixture
def server() -> Iterator[str]:
    """Address of a server that takes connections."""
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


@pytest.mark.parametrize(
    ("mode", "offline"), [("online", False), ("offline", True), ("dryrun", True), ("disabled", False)]
)
@pytest.mark.parametrize("key", [None, "0" * 40])
def test_the_mode_overrules_the_key(mode: str, offline: bool, key: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", mode)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    if key:
        monkeypatch.setenv("WANDB_API_KEY", key)
    assert _must_be_offline() == offline


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

    def connect(address: tuple[str, int], timeout: float) -> socket.socket:
        asked.append(address)
        return socket.socket()

    monkeypatch.setattr(socket, "create_connection", connect)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    for url in ("https://wandb.example.org", "http://wandb.example.org", "http://wandb.example.org:8080"):
        monkeypatch.setenv("WANDB_BASE_URL", url)
        assert not _must_be_offline()
    assert asked == [("wandb.example.org", port) for port in (443, 80, 8080)]


def test_checkpoints_to_upload_are_no_error_offline(tmp_path: Path) -> None:
    logger = OfflineFirstWandbLogger(save_dir=str(tmp_path), log_model=True)
    assert logger._offline
    assert not logger._log_model


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
