"""Tutorials run as they stand, on noise in place of the letters; their commands are accepted; they become pages."""

import json
import re
import runpy
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from lightning_meta.cli import main
from lightning_meta.cli.trainer import resolve
from lightning_meta.core.episode import Split
from lightning_meta.datamodules import Glyphs
from lightning_meta.datamodules.class_bank import ClassBank
from lightning_meta.reproduce.command import parse
from lightning_meta.reproduce.runs import find_runs
from tests.conftest import needs_learn2learn

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted((ROOT / "docs" / "tutorials").glob("*.py"))
TEXTS = [path.read_text() for path in sorted((ROOT / "docs" / "tutorials").iterdir()) if path.is_file()]
# What stands in fenced blocks, in scripts within comments.
BLOCKS = [
    re.sub(r"^# ?", "", block, flags=re.MULTILINE).replace("\\\n", "")
    for text in TEXTS
    for block in re.findall(r"^(?:# )?```bash\n(.*?)^(?:# )?```$", text, re.MULTILINE | re.DOTALL)
]
LINES = sorted({line.strip() for block in BLOCKS for line in block.splitlines()})
COMMANDS = [line.split("lightning_meta ", 1)[1] for line in LINES if re.search(r"-m lightning_meta (fit|test) ", line)]


@pytest.fixture(autouse=True)
def _noise_for_letters(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def noise(data: Glyphs, split: Split) -> ClassBank:
        generator = torch.Generator().manual_seed(["train", "val", "test"].index(split))
        return ClassBank.from_classes(torch.randint(256, (30, 20, 1, 28, 28), dtype=torch.uint8, generator=generator))

    monkeypatch.setattr(Glyphs, "prepare_data", lambda self: None)
    monkeypatch.setattr(Glyphs, "load_source", noise)
    monkeypatch.setattr("sys.argv", ["lightning_meta"])
    monkeypatch.chdir(tmp_path)


def run(name: str) -> dict[str, Any]:
    """The names that a tutorial has made."""
    return runpy.run_path(str(ROOT / "docs" / "tutorials" / f"{name}.py"))


def chance(scores: dict[str, float], n_way: int) -> bool:
    """Noise cannot be told apart: what reads more has seen the labels of the query set."""
    return abs(scores["test/acc"] - 1 / n_way) < 0.1


def test_train_maml() -> None:
    made = run("train_maml")
    assert made["trainer"].global_step == 10
    assert chance(made["scores"], 5)


def test_write_an_algorithm() -> None:
    made = run("write_an_algorithm")
    assert made["trainer"].global_step == 10
    assert made["losses"].keys() == {"vmap", "loop"}
    support, means = made["tasks"].support, made["means"]
    features = made["module"].backbone(support.x[0])
    for label in range(5):
        torch.testing.assert_close(means[label], features[support.y[0] == label].mean(0))
    assert chance(made["scores"], 5)


def test_your_data() -> None:
    made = run("your_data")
    assert made["of_images"]["test/acc"] > 0.5, "squares of different colours at different heights"
    assert made["of_texts"]["test/acc"] > 0.3, "a third by chance"
    assert made["of_tables"]["test/mse"] < 1, "that of the mean of all machines"
    episodes = made["lines"].dataset("test").batches([range(3)])
    x, y = next(iter(episodes)).query
    slopes = (y[:, 1:] - y[:, :-1]) / (x[:, 1:] - x[:, :-1])
    torch.testing.assert_close(slopes, slopes[:, :1].expand_as(slopes), rtol=1e-2, atol=1e-2)


def test_your_network() -> None:
    made = run("your_network")
    assert type(made["network"].norm) is torch.nn.BatchNorm2d, "left as it was"
    pretrained, frozen = (made[name].backbone.network for name in ("baseline", "frozen"))
    start = made["protonet"].backbone.network
    for name, value in pretrained.state_dict().items():
        assert torch.equal(start.state_dict()[name], value)
    assert torch.equal(frozen.conv.weight, pretrained.conv.weight)
    assert torch.equal(frozen.norm.bias, pretrained.norm.bias)
    assert not torch.equal(frozen.out.weight, pretrained.out.weight), "which was trained on"
    assert chance(made["scores"], 5)


def test_your_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    made = run("your_parts")
    data, module = made["data"], made["maml"].eval()
    preds, right, worst = [], [], []
    for episode in (data.dataset("test")[number] for number in range(40)):
        logits = module.query_loss(module.adapt(episode.support), episode.query).preds
        preds.append(logits)
        of_class = [(logits.argmax(1) == episode.query.y)[episode.query.y == c].double().mean() for c in range(5)]
        right.append(torch.stack(of_class).mean())
        worst.append(torch.stack(of_class).min())
    assert made["scores"]["test/acc"] == pytest.approx(float(torch.stack(right).mean()), abs=1e-6)
    assert made["scores"]["test/worst_class"] == pytest.approx(float(torch.stack(worst).mean()), abs=1e-6)
    targets = episode.query.y
    expected = -(0.9 * F.one_hot(targets, 5) + 0.02).mul(logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(made["smoothed"](logits, targets), expected)
    assert made["largest"].loss > 1
    assert [path.name for path in made["report"].paths] == ["losses.png"] and made["report"].paths[0].is_file()
    # The options of its table, with what stands before the training in a file.
    text = (ROOT / "docs/tutorials/your_parts.py").read_text()
    Path("my_parts.py").write_text(text.partition("# ## All of them at work")[0])
    monkeypatch.syspath_prepend(".")
    options = re.findall(r"`(--\S+ my_parts\.\w+)`", text)
    assert len(options) == 3
    config = resolve(["fit", "--config", str(ROOT / "configs/experiment/initialize/maml_glyphs_5w1s.yaml"),
                      *" ".join(options).split()])  # fmt: skip
    assert config["model"]["init_args"]["loss_fn"] == "my_parts.smoothed"
    assert config["model"]["init_args"]["metric"]["class_path"] == "my_parts.AccuracyAndWorst"
    assert config["trainer"]["callbacks"][-1]["class_path"] == "my_parts.Losses"


@pytest.mark.slow
def test_compare_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    run("compare_runs")
    row = r"^\| `protonet_glyphs_5w1s` \| 1 \| 40 \|.*\| -?\d+\.\d+ ± \d+\.\d+ \|$"
    assert re.search(row, capsys.readouterr().out, re.MULTILINE), "a paired difference"
    assert len(list(Path("runs/wandb").glob("offline-run-*"))) == 1
    assert len(list(Path("comparison").iterdir())) > 1


def test_use_a_trained_one() -> None:
    made = run("use_a_trained_one")
    assert not made["probabilities"][:, 3:].any(), "three classes, though training had five"
    torch.testing.assert_close(made["probabilities"].sum(1), torch.ones(4))
    trained = made["trainer"].lightning_module.eval()
    again = trained.predict(trained.adapt(made["Batch"](made["images"], made["labels"])), made["images"])
    torch.testing.assert_close(again, made["module"].predict(made["adapted"], made["images"]))


@needs_learn2learn
def test_from_learn2learn() -> None:
    """The script compares the gradients itself; here that they are of second order, and not zero."""
    made = run("from_learn2learn")
    torch.testing.assert_close(made["ours"], made["theirs"])
    assert made["their_gradient"].abs().max() > 1e-3


def test_options_in_place_of_those_of_libfewshot_are_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    page = (ROOT / "docs" / "which_method.md").read_text()
    values = {
        "--model": "maml", "--model.backbone": "Conv4", "--model.optimizer": "Adam", "--data": "image_folder",
        "--model.lr_scheduler": "lightning_meta.schedules.CosineAnnealing", "--data.root": "my_images",
        "--trainer.strategy": "ddp", "--model.optimizer.lr": "0.1", "--model.inner_lr": "0.1",
    }  # fmt: skip
    options = [*dict.fromkeys(re.findall(r"--[a-z_.]+", page.partition("## Coming from LibFewShot")[2]))]
    assert len(options) > 20
    words = [word for option in options if option != "--ckpt_path" for word in (option, values.get(option, "5"))]
    config = resolve(["fit", "--config", "maml_glyphs_5w1s", *words])
    assert config["data"]["class_path"].endswith("ImageFolder") and config["data"]["init_args"]["k_shot"] == 5


@pytest.mark.parametrize("command", COMMANDS)
def test_the_command_line_accepts(command: str, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(ROOT)
    words = shlex.split(command, comments=True)
    if "--ckpt_path" in words:  # there is no run here
        place = words.index("--ckpt_path")
        del words[place : place + 2]
    with pytest.raises(SystemExit) as ended:
        main([*words, "--print_config"])
    assert ended.value.code == 0
    assert "class_path: lightning_meta.algorithms." in capsys.readouterr().out


def test_scripts_of_slurm_get_experiments_that_there_are() -> None:
    calls = [shlex.split(line) for line in LINES if line.startswith("sbatch")]
    assert len(calls) == 2
    for words in calls:
        script = next(word for word in words if word.endswith(".sbatch"))
        assert (ROOT / script).is_file()
        given, _ = parse(words[words.index(script) + 1 :][:1])
        assert find_runs(given.names, ROOT / "configs/experiment", Path("runs"), None, [0], [])


def test_links_to_scripts_lead_to_the_pages_that_they_become(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mkdocs")
    monkeypatch.syspath_prepend(ROOT / "docs")
    monkeypatch.delitem(sys.modules, "pages", raising=False)
    from pages import on_page_markdown

    page = SimpleNamespace(file=SimpleNamespace(src_uri="algorithms.md"))
    text = on_page_markdown(
        "[a](tutorials/your_data.py) [b](https://x.org/tutorials/c.py) [c](use.md#d)", page, None, None
    )
    assert text == "[a](tutorials/your_data.md) [b](https://x.org/tutorials/c.py) [c](use.md#d)"


def test_a_script_becomes_text_and_code(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mkdocs")
    monkeypatch.syspath_prepend(ROOT / "docs")
    monkeypatch.delitem(sys.modules, "pages", raising=False)
    from pages import tutorial

    script = "# # Title\n#\n# Text.\n\nimport os\n\n\ndef f():\n    # why\n    return 1\n\n    # more\n\n# End.\n"
    assert tutorial(script) == (
        "# Title\n\nText.\n\n```python\nimport os\n\n\ndef f():\n    # why\n    return 1\n\n    # more\n```\n\nEnd."
    )


def test_methods_of_other_libraries_are_those_that_are_here(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mkdocs")
    monkeypatch.syspath_prepend(ROOT / "docs")
    monkeypatch.delitem(sys.modules, "pages", raising=False)
    from pages import PEERS, peers

    assert PEERS in (ROOT / "docs" / "which_method.md").read_text()
    rows = re.findall(r"^\| .* \| \[(\w+)\]\(algorithms/(\w+)\.md\).* \| `(\w+)` \|$", peers(), re.MULTILINE)
    assert ("ProtoNet", "compare", "protonet") in rows and len(rows) > 30
    assert all((ROOT / "configs" / "model" / f"{config}.yaml").is_file() for _, _, config in rows)
    known = {name for methods in json.loads((ROOT / "docs" / "peers.json").read_text()).values() for name in methods}
    assert len(known) > 40


def test_every_tutorial_has_a_test_and_a_place_on_the_site() -> None:
    site, tests = (ROOT / "mkdocs.yml").read_text(), Path(__file__).read_text()
    for path in SCRIPTS:
        assert f"tutorials/{path.stem}.md" in site
        assert f"def test_{path.stem}(" in tests
