"""A backbone that starts from weights: of a file or a run, all or nothing, and never twice."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_meta.algorithms import ANIL, MAML, ProtoNet
from lightning_meta.backbones import Wrapped
from lightning_meta.checkpoints import best_or_last, read
from lightning_meta.cli import main
from lightning_meta.errors import ConfigError
from lightning_meta.modules import EpisodicModule
from lightning_meta.pretrained import file_of, start_from
from tests.cli.test_trainer import tiny  # noqa: F401 - a fixture
from tests.conftest import SIZE, blobs, conv4
from tests.modules.test_episodic import trainer

pytestmark = pytest.mark.filterwarnings("ignore:LightningCLI's args parameter")


def network() -> nn.Module:
    layers = [nn.Conv2d(1, 3, 3, stride=4), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3 * 16, 5), nn.Linear(5, 9)]
    made = nn.Sequential(*layers)
    made[1].running_mean.normal_()
    return made


def weights(backbone: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in backbone.state_dict().items()}


def equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


# ---- where weights come from ----------------------------------------------------------------------------------------

SAVED: dict[str, Callable[[nn.Module], Any]] = {
    "state_dict": lambda network: network.state_dict(),
    "within another network": lambda network: {f"module.encoder.{n}": v for n, v in network.state_dict().items()},
    "among others": lambda network: {"epoch": 3, "model": network.state_dict(), "optimizer": {"lr": 0.1}},
    "Lightning's": lambda network: {"state_dict": ProtoNet(Wrapped(network, cut="4", norm="running")).state_dict()},
    "Lightning's of MAML": lambda network: {"state_dict": MAML(Wrapped(network, cut="4"), n_way=3).state_dict()},
}  # fmt: skip


@pytest.mark.parametrize("save", SAVED.values(), ids=SAVED)
def test_a_file_gives_a_backbone_all_its_weights(save: Callable[[nn.Module], Any], tmp_path: Path) -> None:
    file, source = tmp_path / "weights.pt", network()
    torch.save(save(source), file)
    module = MAML(Wrapped(network(), cut="4"), n_way=3, pretrained=str(file))
    trainer().test(module, datamodule=blobs(), verbose=False)
    assert equal(weights(module.backbone), weights(Wrapped(source, cut="4")))


def test_running_averages_come_along(tmp_path: Path) -> None:
    source = network()
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    backbone = Wrapped(network(), cut="4", norm="running")
    start_from(backbone, str(tmp_path / "weights.pth"))
    assert torch.equal(backbone.network[1].running_mean, source[1].running_mean)


def test_what_was_passed_over_is_said(tmp_path: Path) -> None:
    file = tmp_path / "weights.pt"
    torch.save(network().state_dict(), file)
    said = start_from(Wrapped(network(), cut="4"), str(file))
    assert said == (
        f"the backbone starts from {file}: 6 of its 6 tensors; passed over: 1.running_mean, 1.running_var, 4.weight "
        "and 1 more."
    )


def test_a_run_of_one_algorithm_starts_another(tiny: Path) -> None:  # noqa: F811
    """Pre-training, then a method that compares features."""
    command = ["--config", str(tiny), "--model.backbone.norm", "running"]
    main(["fit", *command, "--model", "Baseline", "--name", "pretraining", "--test_after_fit", "false"])
    run = Path("runs/pretraining/version_0")
    best = best_or_last(run)
    for place in (str(run), str(run.parent), "pretraining", str(best)):
        assert file_of(place).resolve() == best.resolve()
    cli = main(["test", *command, "--model", "ProtoNet", "--name", "next", "--model.pretrained", "pretraining"])
    saved = read(best)["state_dict"]
    expected = {n.removeprefix("backbone."): v for n, v in saved.items() if n.startswith("backbone.")}
    assert len(expected) > 10 and equal(weights(cli.model.backbone), expected)
    Path("runs/reproduce").mkdir()
    moved = Path("runs/pretraining").rename("runs/reproduce/pretraining")
    Path("runs/pretraining/version_0").mkdir(parents=True)  # a test of it leaves one without a checkpoint
    assert file_of("pretraining").is_relative_to(moved.absolute())


def test_a_frozen_backbone_embeds_with_them(tmp_path: Path) -> None:
    """Its features are computed once, for which it must have its weights."""
    source, folder = conv4("running"), str(tmp_path / "features")
    torch.save(source.state_dict(), tmp_path / "weights.pt")
    torch.manual_seed(5)
    module = ProtoNet(conv4("running"), freeze=True, feature_folder=folder, pretrained=str(tmp_path / "weights.pt"))
    found = trainer().test(module, datamodule=blobs(), verbose=False)
    assert found == trainer().test(ProtoNet(source), datamodule=blobs(), verbose=False)


# ---- when -----------------------------------------------------------------------------------------------------------


def pretrained(file: Path, make: Callable[..., EpisodicModule], **arguments: Any) -> EpisodicModule:
    return make(conv4(), pretrained=str(file), **arguments)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    torch.manual_seed(7)
    path = tmp_path / "conv4.pt"
    torch.save(conv4().state_dict(), path)
    return path


def test_training_starts_from_them_and_what_it_makes_is_kept(file: Path, tmp_path: Path) -> None:
    given = torch.load(file)
    module = pretrained(file, MAML, n_way=3, inner_lr=0.1)
    untouched = pretrained(file, ANIL, n_way=3, inner_steps=1)
    untouched.optimizer = lambda parameters: torch.optim.SGD(parameters, lr=0.0)
    trainer().fit(untouched, datamodule=blobs())
    assert equal(weights(untouched.backbone), given), "a step of length 0 from there"
    run = trainer(max_steps=2)
    run.fit(module, datamodule=blobs())
    trained = weights(module.backbone)
    assert not equal(trained, given)
    run.test(module, datamodule=blobs(), verbose=False)
    assert equal(weights(module.backbone), trained), "not again after training"
    run.save_checkpoint(tmp_path / "last.ckpt")
    file.unlink()  # which nobody needs any more
    again = pretrained(file, MAML, n_way=3, inner_lr=0.1)
    trainer(max_steps=2).fit(again, datamodule=blobs(), ckpt_path=tmp_path / "last.ckpt")
    assert equal(weights(again.backbone), trained)
    loaded = MAML.load_from_checkpoint(tmp_path / "last.ckpt", backbone=conv4())
    trainer().test(loaded, datamodule=blobs(), verbose=False)
    assert equal(weights(loaded.backbone), trained)


# ---- mistakes -------------------------------------------------------------------------------------------------------


class Without(EpisodicModule):
    """No backbone."""


def write(path: Path, content: Any) -> None:
    path.write_text(content) if isinstance(content, str) else torch.save(content, path)


REFUSED: dict[str, tuple[Any, str]] = {
    "text": ("no weights", "cannot be read as weights .torch.save.network.state_dict"),
    "a network": (nn.Linear(2, 2), "cannot be read as weights"),
    "no tensors": ({"a": 1}, "holds no tensors by name"),
    "another network": (
        network().state_dict(),
        r"0 of the backbone's 12 tensors are in .*not there: blocks.0.0.weight",
    ),
    "another width": (
        conv4(hidden=7).state_dict(),
        r"0 of the backbone's 12 tensors .*of another shape: blocks.0.0.weight \(7, 1, 3, 3\) in place of \(6, 1, 3,",
    ),
    "part of it": (
        {name: value for name, value in conv4().state_dict().items() if name.startswith("blocks.0")},
        r"3 of the backbone's 12 tensors .*not there: blocks.1.0.weight, .*and 6 more",
    ),
}


@pytest.mark.parametrize(("content", "words"), REFUSED.values(), ids=REFUSED)
def test_a_wrong_file_is_told_in_one_line(content: Any, words: str, tmp_path: Path) -> None:
    write(tmp_path / "file.pt", content)
    module = pretrained(tmp_path / "file.pt", ProtoNet)
    before = weights(module.backbone)
    with pytest.raises(ConfigError, match=words) as refusal:
        trainer().fit(module, datamodule=blobs())
    assert len(str(refusal.value).splitlines()) == 1
    assert equal(weights(module.backbone), before)


def test_places_without_weights_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="pretrained=nonesuch: there is neither a file nor a run of this name"):
        start_from(conv4(), "nonesuch")
    Path("runs/empty").mkdir(parents=True)
    with pytest.raises(ConfigError, match="pretrained=empty: there is no checkpoint in runs/empty/"):
        start_from(conv4(), "empty")
    with pytest.raises(ConfigError, match=r"pretrained=a\.pt is for a backbone, but Without has none"):
        trainer().test(Without(pretrained="a.pt"), datamodule=blobs())


@pytest.mark.skipif(find_spec("safetensors") is not None, reason="safetensors is installed")
def test_without_safetensors_its_extra_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").touch()
    with pytest.raises(ConfigError, match=r"safetensors>=0.4.*lightning_meta\[networks\]"):
        start_from(conv4(), str(tmp_path / "a.safetensors"))


# ---- freezing -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("freeze", "frozen"),
    [("blocks.1", ("blocks.0.", "blocks.1.")), ("blocks.0.0", ("blocks.0.0.",)), ("backbone", ("blocks.",))],
)
@pytest.mark.parametrize("algorithm", [MAML, ANIL])
def test_layers_up_to_one_keep_their_weights(algorithm: type[MAML], freeze: str, frozen: tuple[str, ...]) -> None:
    module = algorithm(conv4(), n_way=3, inner_lr=0.1, freeze=freeze)
    before = weights(module.backbone)
    trainer(max_steps=2).fit(module, datamodule=blobs())
    for name, value in weights(module.backbone).items():
        assert torch.equal(value, before[name]) == name.startswith(frozen), name
    assert not any(name.removeprefix("0.").startswith(frozen) for name in module.theta())


def test_a_layer_that_is_not_there_cannot_be_frozen() -> None:
    with pytest.raises(ConfigError, match="freeze=layer3: the backbone has no such layer with weights; it has blocks"):
        MAML(conv4(), n_way=3, freeze="layer3")
    wrapped = Wrapped(network(), [1, SIZE, SIZE])
    module = MAML(wrapped, n_way=3, freeze="0")
    assert not module.backbone.network[0].weight.requires_grad and module.backbone.network[1].weight.requires_grad
