"""Any network where a backbone is asked for: on the command line, in a config, and in what a run leaves behind."""

import csv
import sys
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
import yaml

from lightning_meta.backbones import Conv4, Wrapped
from lightning_meta.checkpoints import best_or_last, read
from lightning_meta.cli import main, predict
from lightning_meta.cli.composition import around_networks, compose
from lightning_meta.cli.predict import load_run
from tests.cli.test_messages import line
from tests.cli.test_predict import EXPERIMENT, LEVELS, save
from tests.cli.test_trainer import tiny  # noqa: F401 - a fixture

pytestmark = pytest.mark.filterwarnings("ignore:LightningCLI's args parameter")
OWN = """
import torch
from torch import nn

from lightning_meta.backbones import Conv4


class Net(nn.Module):
    def __init__(self, width: int = 4, size: int = 16, depth: int = 1) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, width, 3, stride=2), nn.BatchNorm2d(width)
        self.out = nn.Linear(width * ((size - 1) // 2) ** 2, 5)

    def forward(self, x):
        return self.out(self.norm(self.conv(x)).relu().flatten(1))


def make(width: int = 3) -> nn.Module:
    return Net(width)


def ours(hidden: int = 3) -> Conv4:
    return Conv4(1, 16, hidden)


def bare(width=3):
    return Net(width)


class Two(Net):
    def forward(self, x):
        return super().forward(x), x


class NotANetwork:
    pass


class Untyped(Net):
    def __init__(self, width):
        super().__init__(width)


def untyped(width) -> nn.Module:
    return Net(width + 1)


network = Net()
"""
WRAPPED = "lightning_meta.backbones.Wrapped"


@pytest.fixture(autouse=True)
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of the user's in the folder where the command runs."""
    (tmp_path / "my_networks.py").write_text(OWN)
    (tmp_path / "needs_another.py").write_text("import a_package_that_is_not_there\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)  # as `python -m` does
    for name in ("my_networks", "needs_another"):
        monkeypatch.delitem(sys.modules, name, raising=False)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (
            "--model.backbone my_networks.Net --model.backbone.width 8 --model.backbone.norm inductive",
            f"--model.backbone {WRAPPED} --model.backbone.network my_networks.Net --model.backbone.network.width 8 "
            "--model.backbone.norm inductive",
        ),
        (
            "--model.backbone.init_args.width 8 --model.init_args.backbone.class_path=my_networks.make",
            f"--model.init_args.backbone.network.width 8 --model.init_args.backbone {WRAPPED} "
            "--model.init_args.backbone.network my_networks.make",
        ),
        ("--model.backbone my_networks.ours --model.backbone.hidden 4", None),
        ("--model.backbone Conv4 --model.backbone.hidden 4", None),
        ("--model.backbone lightning_meta.backbones.Conv4", None),
        ("--model my_networks.Net --model.backbone.hidden 4", None),
        ("--model.backbone nonesuch.Net --model.backbone.width 4", None),
        ("--model.backbone my_networks.Nte", None),
        ("--model.backbone backbone.yaml", None),
    ],
)
def test_options_of_a_network_get_the_wrapping_between(given: str, expected: str | None) -> None:
    assert around_networks(given.split()) == (expected or given).split()


@pytest.mark.parametrize(
    "backbone",
    [
        {"class_path": "my_networks.Net", "init_args": {"width": 8, "norm": "inductive"}},
        {"class_path": WRAPPED, "init_args": {"network": "my_networks.Net", "norm": "inductive", "width": 8}},
    ],
    ids=["implicit", "explicit"],
)
def test_configs_get_it_too(backbone: dict[str, Any]) -> None:
    Path("model.yaml").write_text(yaml.safe_dump({"class_path": "MAML", "init_args": {"backbone": backbone}}))
    Path("outer.yaml").write_text("model: model.yaml\nmodel.init_args.backbone.init_args.depth: 2\n")
    found = compose(Path("outer.yaml"))["model"]["init_args"]["backbone"]
    network = {"class_path": "my_networks.Net", "init_args": {"width": 8, "depth": 2}}
    assert found == {"class_path": WRAPPED, "init_args": {"norm": "inductive", "network": network}}
    Path("word.yaml").write_text("backbone: my_networks.make\n")
    assert compose(Path("word.yaml"))["backbone"]["init_args"]["network"] == {"class_path": "my_networks.make"}
    Path("ours.yaml").write_text("backbone: {class_path: lightning_meta.backbones.Conv4, init_args: {hidden: 3}}\n")
    assert compose(Path("ours.yaml"))["backbone"]["init_args"] == {"hidden": 3}


@pytest.mark.parametrize("algorithm", ["MAML", "ProtoNet"])
@pytest.mark.parametrize("path", ["my_networks.Net", "my_networks.make"])
def test_a_users_network_is_trained(path: str, algorithm: str, tiny: Path) -> None:  # noqa: F811
    chosen = ["--model", algorithm, "--model.backbone", path, "--model.backbone.init_args.width", "6"]
    cli = main(["fit", "--config", str(tiny), *chosen, "--trainer.fast_dev_run", "1"])
    assert isinstance(cli.model.backbone, Wrapped)
    assert cli.model.backbone.network.conv.out_channels == 6


def test_a_network_of_torchvision_is_trained(tiny: Path) -> None:  # noqa: F811
    chosen = ["--model.backbone", "torchvision.models.mobilenet_v3_small", "--model.backbone.width_mult", "0.1"]
    cli = main(["fit", "--config", str(tiny), *chosen, "--trainer.fast_dev_run", "1"])
    assert cli.model.backbone.out_features == cli.model.learner[1].in_features == 104, "what its classifier got"


def test_a_network_without_types_is_trained(tiny: Path) -> None:  # noqa: F811
    chosen = ["--model.backbone", "my_networks.Untyped", "--model.backbone.width", "6"]
    cli = main(["fit", "--config", str(tiny), *chosen, "--trainer.fast_dev_run", "1"])
    assert cli.model.backbone.network.conv.out_channels == 6


def test_short_names_are_of_our_backbones(tiny: Path) -> None:  # noqa: F811
    """Also where others have them: `MLP` is one of torchvision's too."""
    chosen = ["--model", "ProtoNet", "--model.backbone", "MLP", "--model.backbone.in_features", "256"]
    cli = main(["fit", "--config", str(tiny), *chosen, "--trainer.fast_dev_run", "1"])
    assert type(cli.model.backbone).__module__ == "lightning_meta.backbones.mlp"
    ours = main(["fit", "--config", str(tiny), "--model.backbone", "my_networks.ours", "--trainer.fast_dev_run", "1"])
    assert isinstance(ours.model.backbone, Conv4)


@pytest.mark.parametrize("algorithm", ["MAML", "ProtoNet"])
def test_a_run_is_tested_resumed_loaded_and_put_to_use(algorithm: str) -> None:
    """All of which make the network again, from the class path in config and checkpoint."""
    for level in range(0, 240, 40):
        for index in range(4):
            save(Path(f"train/{level}/{index}.png"), level + index)
    for name in ("black", "white"):
        for index in range(2):
            save(Path(f"support/{name}/{index}.png"), LEVELS[name] + index)
        save(Path(f"query/{name}.png"), LEVELS[name] + 3)
    Path("experiment.yaml").write_text(EXPERIMENT)
    command = ["--config", "experiment.yaml", "--name", "own", "--model", algorithm]
    command += ["--model.backbone", "my_networks.Net", "--model.backbone.width", "6", "--model.backbone.norm"]
    command += ["inductive"]
    main(["fit", *command, "--test_after_fit", "false"])
    run = Path("runs/own/version_0")
    saved = yaml.safe_load((run / "config.yaml").read_text())["model"]["init_args"]["backbone"]
    assert saved["class_path"] == WRAPPED and saved["init_args"]["norm"] == "inductive"
    assert saved["init_args"]["network"] == {
        "class_path": "my_networks.Net", "init_args": {"width": 6, "size": 16, "depth": 1},
    }  # fmt: skip

    tested = main(["test", "--config", str(run / "config.yaml"), "--ckpt_path", str(run)])
    weights = read(best_or_last(run))["state_dict"]
    torch.testing.assert_close(dict(tested.model.state_dict()), dict(weights), rtol=0, atol=0)
    main(["fit", *command, "--test_after_fit", "false", "--trainer.max_steps", "4", "--ckpt_path", "last"])
    assert read(run / "checkpoints/last.ckpt")["global_step"] == 4
    module, _, _ = load_run(run)
    assert module.backbone.network.conv.out_channels == 6
    predict.main([str(run), "--support", "support", "--query", "query", "--out", "answer"])
    with Path("answer/predictions.csv").open(newline="") as file:
        assert [row["file"] for row in csv.DictReader(file)] == ["black.png", "white.png"]


REFUSED = {
    "my_networks.Nte": ["model.backbone=my_networks.Nte", "Did you mean my_networks.Net"],
    "my_network.Net": ["model.backbone=my_network.Net", "there is no package or file called my_network here"],
    "torchvision.models.resnet81": ["Did you mean torchvision.models.resnet18"],
    "my_networks.NotANetwork": ["NotANetwork is no network (torch.nn.Module)"],
    "my_networks.bare": ["my_networks.bare", "def bare(...) -> torch.nn.Module:"],
    "my_networks.network": ["my_networks.network is neither a class nor a function"],
    "my_networks.Two": ["Two returns a tuple, not one tensor of features"],
    "needs_another.Net": ["cannot be imported: No module named 'a_package_that_is_not_there'"],
    "my_networks.Net --model.backbone.widht 8": ["'widht' is not accepted by Net. Did you mean width?"],
    "my_networks.make --model.backbone.widht 8": ["'widht' is not accepted by make. Did you mean width?"],
    "my_networks.Untyped": ["Untyped is given as width=None was not checked", "no type there: write `width: int`"],
    "my_networks.Untyped --model.backbone.width x": ["cannot be made with width=x", "write `width: int`"],
    "my_networks.untyped": ["unsupported operand", "What untyped is given as width=None", "write `width: int`"],
    "my_networks.Net --model.backbone.size 28": ["Net cannot take inputs of shape (1, 16, 16), which Blobs has"],
    "torchvision.models.squeezenet1_1 --model.backbone.in_shape [2,16,16]": ["it takes images of 3 channels"],
    "torchvision.models.swin_t": ["an argument downsample_layer", "def swin_t() -> torch.nn.Module:"],
    "torchvision.models.alexnet": ["(1, 16, 16), which Blobs has; they are too small for its strides"],
    "torchvision.models.densenet121": ["(1, 16, 16), which Blobs has; they are too small for its strides"],
    "torch.nn.Conv2d --model.backbone.in_channels 1 --model.backbone.out_channels 2 --model.backbone.kernel_size 3": [
        "how many features Conv2d gives", "--model.backbone.in_shape [channels,height,width]",
    ],
}  # fmt: skip


@pytest.mark.parametrize("given", REFUSED)
def test_mistakes_are_told_in_one_line(
    given: str,
    tiny: Path,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    message = line(["fit", "--config", str(tiny), "--model.backbone", *given.split()], capsys)
    for text in REFUSED[given]:
        assert text in message


def test_weights_that_cannot_be_downloaded_are_told_in_one_line(
    tiny: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def no_network(*_: Any, **__: Any) -> None:
        raise URLError("no network")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", no_network)
    chosen = ["--model.backbone", "torchvision.models.resnet18", "--model.backbone.weights", "DEFAULT"]
    message = line(["fit", "--config", str(tiny), *chosen], capsys)
    assert "a download failed" in message and "no network" in message
