"""Where a run is: named by what it is, in a folder of its own, where the next command finds it."""

from pathlib import Path

import pytest
import torch
import yaml

from lightning_meta import algorithms
from lightning_meta.cli import main
from lightning_meta.cli.trainer import file_name
from lightning_meta.results.compare import main as compare
from tests.cli.test_trainer import fails, tiny  # noqa: F401 - a fixture
from tests.conftest import Blobs

pytestmark = pytest.mark.filterwarnings("ignore:LightningCLI's args parameter")

SHORT = ["--trainer.max_steps", "2"]


class OtherBlobs(Blobs):
    """The same under another name."""


def steps(checkpoint: str) -> int:
    return torch.load(checkpoint, weights_only=True)["global_step"]


def test_an_exchanged_algorithm_is_another_experiment(
    tiny: Path,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The README's sequence: train, exchange the algorithm, train, go on with each, compare."""
    main(["fit", "--config", str(tiny), *SHORT])
    main(["fit", "--config", str(tiny), *SHORT, "--model", "ProtoNet"])
    assert sorted(path.name for path in Path("runs").iterdir()) == ["protonet_blobs_3w2s", "tiny"]
    main(["fit", "--config", str(tiny), "--ckpt_path", "last"])
    main(["fit", "--config", str(tiny), "--model", "ProtoNet", "--ckpt_path", "last"])
    folders = [Path("runs/tiny/version_0"), Path("runs/protonet_blobs_3w2s/version_0")]
    assert [steps(f"{folder}/checkpoints/last.ckpt") for folder in folders] == [4, 4]
    assert sorted(Path("runs").glob("*/version_*")) == sorted(folders)
    compare([*map(str, folders)])
    assert "`protonet_blobs_3w2s" in capsys.readouterr().out


def test_exchanged_data_are_another_experiment_and_exchanged_settings_are_not(tiny: Path) -> None:  # noqa: F811
    main(["fit", "--config", str(tiny), *SHORT, "--data", "tests.cli.test_run_folders.OtherBlobs"])
    main(["fit", "--config", str(tiny), *SHORT, "--model", "MAML", "--model.inner_lr", "0.2", "--data.n_query", "3"])
    assert sorted(path.name for path in Path("runs").iterdir()) == ["maml_otherblobs_3w2s", "tiny"]


def test_a_name_that_was_given_stays(tiny: Path) -> None:  # noqa: F811
    main(["fit", "--config", str(tiny), *SHORT, "--model", "ProtoNet", "--name", "mine"])
    assert [path.name for path in Path("runs").iterdir()] == ["mine"]


def test_the_config_of_a_run_has_its_name_until_the_algorithm_is_exchanged(tiny: Path) -> None:  # noqa: F811
    main(["fit", "--config", str(tiny), *SHORT])
    again = ["fit", "--config", "runs/tiny/version_0/config.yaml"]
    main(again)
    main([*again, "--model", "ProtoNet"])
    found = sorted(str(path.relative_to("runs")) for path in Path("runs").glob("*/*"))
    assert found == ["protonet_blobs_3w2s/version_0", "tiny/version_0", "tiny/version_1"]


def test_last_is_the_newest_of_the_same_model(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    shared = ["--name", "shared", *SHORT]
    main(["fit", "--config", str(tiny), *shared])
    main(["fit", "--config", str(tiny), *shared, "--model", "ProtoNet"])
    main(["fit", "--config", str(tiny), "--name", "shared", "--ckpt_path", "last"])
    assert steps("runs/shared/version_0/checkpoints/last.ckpt") == 4
    another = ["--model", "Siamese", "--ckpt_path", "last"]
    message = fails(["fit", "--config", str(tiny), "--name", "shared", *another], capsys)
    package = "lightning_meta.algorithms"
    assert f"only checkpoints of {package}.MAML, {package}.ProtoNet in runs/shared" in message


@pytest.mark.parametrize(
    ("cls", "expected"),
    [
        (algorithms.ProtoNet, "protonet"),
        (algorithms.MAMLPlusPlus, "maml_plus_plus"),
        (algorithms.R2D2, "r2d2"),
        (algorithms.KFO, "kfo"),
        (algorithms.MatchingNet, "matching_net"),
        (algorithms.FullContextMatchingNet, "full_context_matching_net"),
        (algorithms.BaselineNearestNeighbour, "baseline_nearest_neighbour"),
        (algorithms.CovaMNet, "covariance_net"),
        (algorithms.ConditionalNeuralProcess, "cnp"),
        (algorithms.MAML, "maml"),
    ],
)
def test_runs_are_called_as_the_experiments_of_the_algorithm(cls: type, expected: str) -> None:
    assert file_name(cls) == expected


def test_runs_of_an_algorithm_with_one_config_are_called_as_that() -> None:
    """So that the folder says what stands after `--model`."""
    models = {
        path.stem: yaml.safe_load(path.read_text())["class_path"] for path in Path("configs/model").glob("*.yaml")
    }
    alone = {config: path for config, path in models.items() if [*models.values()].count(path) == 1}
    assert {config: file_name(getattr(algorithms, path.rpartition(".")[2])) for config, path in alone.items()} == {
        config: config for config in alone
    }
    assert len(alone) > 50


# ---- without a logger -----------------------------------------------------------------------------------------------


def test_a_run_without_logger_has_a_folder_too(tiny: Path) -> None:  # noqa: F811
    """Nothing is strewn over the working folder."""
    command = ["fit", "--config", str(tiny), "--trainer.logger", "false", *SHORT]
    main(command)
    assert sorted(path.name for path in Path().iterdir()) == ["runs", "tiny.yaml"]
    run = Path("runs/tiny/version_0")
    for name in ("config.yaml", "result.json", "test_episodes.csv", "checkpoints/last.ckpt"):
        assert (run / name).is_file(), name
    main(command)
    main(["fit", "--config", str(run / "config.yaml")])
    assert sorted(path.name for path in run.parent.iterdir()) == ["version_0", "version_1", "version_2"]
    main(["test", "--config", str(tiny), "--trainer.logger", "false", "--ckpt_path", "best"])
    assert (run.parent / "version_3/result.json").is_file()


# ---- the config of a run that went on -------------------------------------------------------------------------------


def test_the_config_of_a_resumed_run_begins_anew(tiny: Path) -> None:  # noqa: F811
    main(["fit", "--config", str(tiny), *SHORT])
    main(["fit", "--config", str(tiny), "--ckpt_path", "last"])
    config = Path("runs/tiny/version_0/config.yaml")
    assert yaml.safe_load(config.read_text())["ckpt_path"] is None
    assert "# begun from" not in config.read_text()
    main(["fit", "--config", str(config)])
    rows = Path("runs/tiny/version_1/metrics.csv").read_text().splitlines()[1:]
    assert len([row for row in rows if row]) >= 4 + 2, "from the first step on"


def test_the_config_of_a_run_that_another_one_began_says_so_and_begins_anew(tiny: Path) -> None:  # noqa: F811
    main(["fit", "--config", str(tiny), *SHORT])
    main(["fit", "--config", str(tiny), "--ckpt_path", "best"])
    best = "runs/tiny/version_0/checkpoints/best-step=2.ckpt"
    text = Path("runs/tiny/version_1/config.yaml").read_text()
    assert f"\n# begun from: {best}\n" in text
    assert yaml.safe_load(text)["ckpt_path"] is None
    main(["test", "--config", str(tiny), "--ckpt_path", best])
    assert yaml.safe_load(Path("runs/tiny/version_2/config.yaml").read_text())["ckpt_path"] == best
