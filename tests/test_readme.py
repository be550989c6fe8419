"""README and docs: commands are accepted as they are written, Python runs, links lead to files."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_meta.algorithms import MAML
from lightning_meta.backbones import Conv4
from lightning_meta.cli import main
from lightning_meta.cli.seeds import split
from lightning_meta.core import Batch, Episode
from lightning_meta.datamodules import Glyphs
from lightning_meta.datamodules.class_bank import ClassBank
from lightning_meta.modules import EpisodicModule
from lightning_meta.reproduce.command import parse
from lightning_meta.reproduce.runs import find_runs
from tests.conftest import meta_gradient, random_episodes

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXT = "\n".join(page.read_text() for page in PAGES)
BLOCKS: list[tuple[str, str]] = re.findall(r"^```(bash|python)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
LINES = "\n".join(code for language, code in BLOCKS if language == "bash").replace("\\\n", "").splitlines()
# Those with a package of the user's are run by the test of their page, which writes it.
COMMANDS = sorted(
    line.split("lightning_meta ", 1)[1]
    for line in {*LINES}
    if re.search(r"-m lightning_meta (fit|test) ", line) and "my_pkg." not in line
)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_command_line_accepts(command: str, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("sys.argv", ["lightning_meta"])
    command = command.replace("EXPERIMENT", "configs/experiment/initialize/maml_omniglot_5w1s.yaml")
    words = shlex.split(command, comments=True)
    if "--seeds" in words:
        numbers, words = split(words)
        assert len(numbers) > 1
    with pytest.raises(SystemExit) as ended:
        main([*words, "--print_config"])
    assert ended.value.code == 0
    assert "class_path: lightning_meta.algorithms." in capsys.readouterr().out


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text())
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert missing == []


def test_the_front_page_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_reproduce_accepts_its_commands() -> None:
    words = [shlex.split(line, comments=True)[4:] for line in LINES if "-m lightning_meta reproduce" in line]
    assert len(words) > 5
    for given, extra in map(parse, words):
        assert find_runs(given.names, ROOT / "configs/experiment", given.runs, None, [0], extra, given.suffix)


def noise(*shape: int) -> torch.Tensor:
    return torch.randint(256, shape, dtype=torch.uint8)


def python_with(text: str) -> str:
    """The block of Python that has this text in it."""
    (code,) = [code for language, code in BLOCKS if language == "python" and text in code]
    return code


def test_training_from_python(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Glyphs, "prepare_data", lambda self: None)
    monkeypatch.setattr(Glyphs, "load_source", lambda self, split: ClassBank.from_classes(noise(20, 20, 1, 28, 28)))
    seen: dict[str, Any] = {}
    code = python_with("trainer.fit(MAML(").replace("max_steps=400", "max_steps=1, fast_dev_run=True")
    exec(code, seen)
    assert seen["trainer"].global_step == 1


def test_an_algorithm_in_30_lines_is_maml() -> None:
    seen: dict[str, Any] = {}
    code = python_with("class MyMAML(EpisodicModule)")
    exec(code, seen)
    assert len(code.splitlines()) <= 32
    theirs: EpisodicModule = seen["MyMAML"](n_way=3).double()
    ours = MAML(Conv4(downsample="stride"), n_way=3, inner_lr=0.4, inner_steps=1).double()
    ours.load_state_dict(dict(zip(ours.state_dict(), theirs.state_dict().values(), strict=True)))
    tasks = random_episodes()
    tasks = Episode(*(Batch(batch.x.repeat(1, 1, 1, 2, 2)[..., :28, :28], batch.y) for batch in tasks))
    expected, found = (list(meta_gradient(module, tasks).values()) for module in (ours, theirs))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
