"""Heads on a trained classifier's features: whose checkpoints they take, and what they refuse."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lightning_meta import algorithms
from lightning_meta.algorithms import BDCSPN, SimpleShot
from lightning_meta.cli import main
from lightning_meta.cli.predict import Task, probabilities
from lightning_meta.core import Batch
from lightning_meta.core.episode import EpisodeShape
from lightning_meta.errors import ConfigError
from lightning_meta.modules import PretrainedModule, TransductiveModule
from tests.algorithms.cases import ALGORITHMS
from tests.conftest import blobs, conv4

BACKBONE = {
    "class_path": "lightning_meta.backbones.Conv4",
    "init_args": {"image_size": 16, "hidden": 6, "norm": "running"},
}

LOGGER = {"class_path": "pytorch_lightning.loggers.CSVLogger", "init_args": {"save_dir": "runs", "name": ""}}


def config(algorithm: str, **init_args: Any) -> dict[str, Any]:
    return {
        "trainer": {
            "accelerator": "cpu", "max_steps": 4, "max_epochs": -1, "num_sanity_val_steps": 0, "log_every_n_steps": 1,
            "enable_progress_bar": False, "enable_model_summary": False,
            "logger": LOGGER,
            "callbacks": [{"class_path": "lightning_meta.callbacks.EpisodicCheckpoint"}],
        },
        "data": {
            "class_path": "tests.conftest.Blobs",
            "init_args": {
                "n_way": 3, "k_shot": 2, "n_query": 2, "steps_per_epoch": 2, "val_episodes": 5, "test_episodes": 7,
            },
        },
        "model": {
            "class_path": f"lightning_meta.algorithms.{algorithm}",
            "init_args": {"backbone": BACKBONE, "task_mode": "loop"} | init_args,
        },
    }  # fmt: skip


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a run of Baseline, in a new working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["lightning_meta"])
    Path("baseline.yaml").write_text(yaml.safe_dump(config("Baseline")))
    main(["fit", "--config", "baseline.yaml", "--test_after_fit", "false"])
    return Path("runs/baseline")


def play_test(algorithm: str, checkpoint: Path | str, **init_args: Any) -> Any:
    Path("other.yaml").write_text(yaml.safe_dump(config(algorithm, **init_args)))
    return main(["test", "--config", "other.yaml", "--ckpt_path", str(checkpoint)])


@pytest.mark.parametrize("algorithm", ["SimpleShot", "RFS", "PTMAP", "ProtoNet"])
def test_the_backbone_of_another_algorithms_run_is_tested(trained: Path, algorithm: str) -> None:
    """By the name of the run; the score is that of a module which got the weights by hand."""
    cli = play_test(algorithm, "baseline")
    path = next(trained.rglob("epoch*.ckpt"), None) or next(trained.rglob("*.ckpt"))
    saved = torch.load(cli.trainer.ckpt_path or path, weights_only=True)["state_dict"]
    module = getattr(algorithms, algorithm)(conv4("running")).eval()
    module.backbone.load_state_dict({k.removeprefix("backbone."): w for k, w in saved.items() if "backbone." in k})
    if isinstance(module, PretrainedModule) and module.features == "cl2n":
        module.center_on(cli.model.center[None])
    data = blobs()
    data.setup("test")
    tasks = data.dataset("test").__getitems__(range(7))
    acc = (module.play(tasks).preds.argmax(2) == tasks.query.y).double().mean().item()
    assert cli.trainer.callback_metrics["test/acc"].item() == pytest.approx(acc, abs=1e-6)


def test_a_run_teaches_by_its_name_and_the_student_is_tested_without_it(trained: Path) -> None:
    Path("student.yaml").write_text(yaml.safe_dump(config("BornAgain", teacher="baseline")))
    cli = main(["fit", "--config", "student.yaml", "--test_after_fit", "false"])
    assert "train/distilled" in cli.trainer.callback_metrics
    for path in trained.rglob("*.ckpt"):
        path.unlink()
    assert "test/acc" in play_test("SimpleShot", "student").trainer.callback_metrics


def test_one_that_trains_more_than_a_backbone_says_what_it_lacks(trained: Path) -> None:
    with pytest.raises(SystemExit, match=r"R2D2 needs .*log_lambda.*Baseline has not"):
        play_test("R2D2", trained)


def test_training_does_not_go_on_from_another_algorithms_checkpoint(trained: Path) -> None:
    Path("other.yaml").write_text(yaml.safe_dump(config("SimpleShot")))
    (path, *_) = trained.rglob("*.ckpt")
    with pytest.raises(SystemExit, match=r"holds a lightning_meta\.algorithms\.Baseline"):
        main(["fit", "--config", "other.yaml", "--ckpt_path", str(path)])


def test_a_single_query_is_refused_where_all_are_read_together() -> None:
    module = BDCSPN(conv4(), n_classes=12)
    module.check_task(EpisodeShape(8, 1, 1), "train")
    module.check_task(EpisodeShape(3, 2, 2), "test")
    with pytest.raises(ConfigError, match=r"BDCSPN .*test episodes have n_query=1"):
        module.check_task(EpisodeShape(3, 2, 1), "test")


@pytest.mark.parametrize("algorithm", [BDCSPN, SimpleShot])
def test_predict_keeps_queries_together_only_where_they_are_read_so(
    algorithm: type[PretrainedModule], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With two at once, the probabilities are still those of all at once."""
    monkeypatch.setattr("lightning_meta.cli.predict.CHUNK", 2)
    module = algorithm(conv4("running"), n_classes=12, features="l2n").eval()
    support = Batch(torch.rand(6, 1, 16, 16), torch.arange(3).repeat(2))
    task = Task(["a", "b", "c"], support, torch.rand(7, 1, 16, 16), [])
    with torch.no_grad():
        together = module.predict(module.adapt(support), task.query)[:, :3]
    torch.testing.assert_close(probabilities(module, task), together, rtol=1e-4, atol=1e-5)


def test_the_transductive_ones_are_those_of_their_family_and_tpn() -> None:
    """The contract checks that they are, and that no other is. TPN is trained to compare."""
    modules = [make() for make in ALGORITHMS.values() if callable(make)]  # others are marked, as slow
    family = [module for module in modules if type(module).__module__.split(".")[2] == "transductive"]
    others = [module for module in modules if module.transductive and module not in family]
    assert all(module.transductive for module in family) and [type(module).__name__ for module in others] == ["TPN"]
    assert all(isinstance(module, TransductiveModule) for module in family)
    assert len(family) >= 6
