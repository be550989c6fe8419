"""Adapted models as files: they predict what the module does, for any number of queries, without this package."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_meta.algorithms import MAML, R2D2, CommonMean, ProtoNet
from lightning_meta.backbones import MLP, Conv4
from lightning_meta.cli import predict
from lightning_meta.cli.export import AdaptedModel, export, main
from lightning_meta.cli.predict import load_run
from lightning_meta.core import Batch
from lightning_meta.errors import ConfigError, DataError
from lightning_meta.metrics import EpisodicMSE
from lightning_meta.modules import EpisodicModule
from tests.cli.test_predict import at_work, work  # noqa: F401 - fixtures

MAKE: dict[str, Any] = {
    "protonet": lambda: ProtoNet(Conv4(image_size=16, hidden=8, norm="running")),
    "protonet, inductive": lambda: ProtoNet(Conv4(image_size=16, hidden=8, norm="inductive")),
    "r2d2": lambda: R2D2(Conv4(image_size=16, hidden=8, norm="running"), penalty=0.1),
    "maml": lambda: MAML(Conv4(image_size=16, hidden=8, norm="inductive"), n_way=3, inner_lr=0.1),
}


def adapted(module: EpisodicModule[Any]) -> AdaptedModel:
    for _ in range(30):  # running averages as of a training
        module.train().backbone(torch.rand(20, 1, 16, 16))
    torch.manual_seed(1)
    return AdaptedModel(module.eval(), Batch(torch.rand(6, 1, 16, 16), torch.arange(3).repeat(2)), 3)


@pytest.mark.parametrize("name", MAKE)
def test_a_program_predicts_what_the_module_does(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = adapted(MAKE[name]())
    file = tmp_path / "new" / "adapted.pt2"
    assert export(model, torch.rand(2, 1, 16, 16), file) < 1e-5
    program = torch.export.load(file).module()
    for queries in (1, 7):
        x = torch.rand(queries, 1, 16, 16)
        found = program(x)
        assert found.shape == (queries, 3)
        with torch.no_grad():
            expected = model.module.predict(model.module.adapt(Batch(*support())), x)[:, :3]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(program(x), torch.full((7, 3), 1 / 3), atol=1e-3)  # it does tell them apart


def support() -> Batch:
    """Of `adapted`."""
    torch.manual_seed(1)
    x = torch.rand(6, 1, 16, 16)
    torch.manual_seed(2)  # for the queries
    return Batch(x, torch.arange(3).repeat(2))


def test_numbers_are_exported_too(tmp_path: Path) -> None:
    known = Batch(torch.randn(5, 3), torch.randn(5, 1))
    for module in (
        CommonMean(MLP(in_features=3, hidden=[])),
        MAML(MLP(in_features=3), n_way=1, inner_lr=0.01, loss_fn=F.mse_loss, metric=EpisodicMSE()),
    ):
        model = AdaptedModel(module.eval(), known, 1)
        export(model, torch.randn(2, 3), tmp_path / "adapted.pt2")
        x = torch.randn(4, 3)
        torch.testing.assert_close(torch.export.load(tmp_path / "adapted.pt2").module()(x), model(x))


def test_onnx(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    model = adapted(MAKE["protonet"]())
    assert export(model, torch.rand(2, 1, 16, 16), tmp_path / "adapted.onnx") < 1e-5
    session, x = runtime.InferenceSession(tmp_path / "adapted.onnx"), torch.rand(7, 1, 16, 16)
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), model(x), rtol=1e-4, atol=1e-5)


def test_the_command_writes_a_program_and_what_it_takes(
    at_work: Path,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    main(["runs/protonet/version_0", "--support", "three", "--out", "mine/adapted.pt2"])
    about = json.loads(Path("mine/adapted.json").read_text())
    assert about["classes"] == ["black", "grey", "white"] and about["input"] == [None, 1, 16, 16]
    found = torch.export.load("mine/adapted.pt2").module()(torch.full((1, 1, 16, 16), 245 / 255)).detach()
    assert found.shape == (1, 3) and found.sum() == pytest.approx(1)
    assert "ProtoNet adapted to 6 examples, inductive" in capsys.readouterr().out


class Branches(nn.Module):
    """A network that looks at values, which torch.export cannot follow."""

    in_shape, out_features = (1, 16, 16), 4

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1)[:, :4] * (2 if x.sum() > 0 else 1)


def test_mistakes_are_one_line(at_work: Path) -> None:  # noqa: F811
    with pytest.raises(ConfigError, match=r"--out mine\.bin must end in \.pt2"):
        main(["runs/protonet/version_0", "--support", "three", "--out", "mine.bin"])
    with pytest.raises(ConfigError, match=r"3 classes \(black, grey, white\), which this checkpoint cannot play"):
        main(["runs/maml/version_0", "--support", "three"])
    with pytest.raises(DataError, match=r"nowhere is no folder; --support must be one"):
        main(["runs/maml/version_0", "--support", "nowhere"])
    with pytest.raises(ConfigError, match=r"torch\.export cannot follow ProtoNet with its network"):
        export(
            AdaptedModel(ProtoNet(Branches()).eval(), support(), 3), torch.rand(2, 1, 16, 16), at_work / "adapted.pt2"
        )


def test_a_shared_folder_is_taken_as_a_run(
    at_work: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("safetensors")
    main(["runs/protonet/version_0", "--out", "shared"])
    assert {file.name for file in Path("shared").iterdir()} == {
        "README.md",
        "about.json",
        "config.yaml",
        "model.safetensors",
    }
    assert "# ProtoNet, meta-trained on ImageFolder" in Path("shared/README.md").read_text()
    ours, theirs = load_run(Path("shared"))[0], load_run(Path("runs/protonet/version_0"))[0]
    for (name, value), other in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
        assert torch.equal(value, other), name
    monkeypatch.chdir(at_work)
    predict.main(["shared", "--support", "three", "--query", "query"])
    assert Path("shared/predictions/predictions.csv").is_file()
    with pytest.raises(ConfigError, match=r"shared is not empty"):
        main(["runs/protonet/version_0", "--out", "shared"])
    with pytest.raises(ConfigError, match=r"export needs --support PLACE"):
        main(["runs/protonet/version_0"])
    Path("shared/about.json").write_text("{")
    with pytest.raises(ConfigError, match=r"shared is damaged"):
        load_run(Path("shared"))
