"""The cross-domain table: two tiny runs on two tiny data sets, against what `test` says of each pair."""

import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from lightning_meta.benchmark import domains, heads
from lightning_meta.cli import main
from lightning_meta.cli.names import configs
from lightning_meta.core.episode import Split
from lightning_meta.datamodules import ClassificationDataModule
from lightning_meta.datamodules.class_bank import ClassBank
from lightning_meta.errors import ConfigError, DataError
from tests.conftest import SIZE
from tests.modules.test_pretrained import config

SHAPE = {"n_way": 3, "k_shot": 2, "n_query": 2, "steps_per_epoch": 2, "val_episodes": 2, "test_episodes": 6}
WORDS = "--n_way 3 --k_shot 2 --n_query 2 --episodes 6"


class Stripes(ClassificationDataModule):
    """Ten classes: noise over stripes of one width each."""

    def load_source(self, split: Split) -> ClassBank:
        generator = torch.Generator().manual_seed(len(split))
        stripes = (torch.arange(SIZE) // torch.arange(1, 11)[:, None] % 2)[:, None, None, None, :]
        noise = torch.rand(10, 8, 1, SIZE, SIZE, generator=generator)
        return ClassBank.from_classes(((0.5 * stripes + 0.5 * noise) * 255).to(torch.uint8))


def of(data: str, algorithm: str = "ProtoNet") -> dict[str, Any]:
    """An experiment on one of the two."""
    content = config(algorithm)
    del content["model"]["init_args"]["task_mode"]
    content["trainer"]["callbacks"] += [{"class_path": "lightning_meta.callbacks.RunSummary"}]
    return content | {"data": {"class_path": data, "init_args": SHAPE}}


BLOBS, STRIPES = "tests.conftest.Blobs", "tests.benchmark.test_domains.Stripes"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working folder with a run on each: `on_blobs`, `on_stripes`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("domains"))
        patch.setattr("sys.argv", ["lightning_meta"])
        for name, data in (("on_blobs", BLOBS), ("on_stripes", STRIPES)):
            Path(f"{name}.yaml").write_text(yaml.safe_dump(of(data)))
            main(["fit", "--config", f"{name}.yaml", "--test_after_fit", "false"])
        yield Path.cwd()


@pytest.fixture
def trained(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(folder)
    return folder


def test_each_cell_is_what_test_says_of_the_run_and_the_data(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    domains.main(f"on_blobs on_stripes {WORDS}".split())
    printed = capsys.readouterr().out
    table = json.loads(Path("runs/domains/domains.json").read_text())
    assert [row["trained_on"] for row in table["rows"]] == ["Blobs", "Stripes"]
    assert table["n_way"] == 3
    assert len({row["episodes_digest"] for row in table["rows"]}) == 1
    numbers = []
    for row, run in zip(table["rows"], ("on_blobs", "on_stripes"), strict=True):
        assert [*row["tested_on"]] == ["blobs", "stripes"]
        for column, data in (("blobs", BLOBS), ("stripes", STRIPES)):
            cli = main(["test", "--config", f"{run}.yaml", "--ckpt_path", run, "--data", data, "--name", "again"])
            measured = cli.trainer.callback_metrics
            cell = row["tested_on"][column]
            assert cell["data"].lower() == column
            assert cell["acc"] == pytest.approx(measured["test/acc"].item())
            assert cell["acc_ci95"] == pytest.approx(measured["test/acc_ci95"].item())
            numbers.append(f"{100 * cell['acc']:.2f} ± {100 * cell['acc_ci95']:.2f}")
        own = json.loads((Path(row["run"]) / "domains.json").read_text())
        assert own == row | {key: table[key] for key in table if key != "rows"}
    lines = [line for line in printed.splitlines() if line.startswith("| ")]
    assert lines[0] == "| trained on | run | blobs | stripes |"
    assert lines[1:] == [
        f"| Blobs | `on_blobs` | {numbers[0]} | {numbers[1]} |",
        f"| Stripes | `on_stripes` | {numbers[2]} | {numbers[3]} |",
    ]
    assert len({*numbers}) > 1
    assert Path("runs/domains/domains.md").read_text().splitlines() == printed.splitlines()[:4]


def test_a_run_on_mixed_data_and_a_folder_of_images(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sources = {name: {"class_path": data} for name, data in (("blobs", BLOBS), ("stripes", STRIPES))}
    content = of("lightning_meta.datamodules.Mixed")
    content["data"] = {"class_path": content["data"]["class_path"], "init_args": SHAPE | {"sources": sources}}
    Path("on_both.yaml").write_text(yaml.safe_dump(content))
    main(["fit", "--config", "on_both.yaml", "--test_after_fit", "false"])
    domains.main(f"on_both on_blobs {WORDS}".split())
    rows = json.loads(Path("runs/domains/domains.json").read_text())["rows"]
    assert [row["trained_on"] for row in rows] == ["Blobs + Stripes", "Blobs"]
    assert [[*row["tested_on"]] for row in rows] == [["blobs", "stripes"]] * 2

    with pytest.raises(ConfigError, match=r"on several data sets, Blobs \+ Stripes; heads are compared on one"):
        heads.main(["on_both"])

    for name, grey in (("dark", 20), ("middle", 120), ("light", 220)):
        (trained / "my photos" / name).mkdir(parents=True)
        for number in range(6):
            Image.new("RGB", (20, 24), (grey + 3 * number,) * 3).save(trained / "my photos" / name / f"{number}.png")
    before = sorted(path for path in (trained / "my photos").rglob("*.png"))
    domains.main(["on_blobs", "--data", "my photos", *WORDS.split()])
    assert "| trained on | run | my_photos |" in capsys.readouterr().out
    assert sorted(path for path in (trained / "my photos").rglob("*.png")) == before


@pytest.mark.parametrize(
    ("words", "kind", "said"),
    [
        ("nothing", DataError, "nothing"),
        ("on_blobs --data omniglott", ConfigError, "omniglott is no file.*omniglot"),
        (f"on_stripes {WORDS} --n_way 11", ConfigError, "stripes: n_way=11, but the split has 10 classes"),
        ("on_blobs --episodes 0", ConfigError, "episodes=0 must be at least 1"),
        (f"on_blobs --data sinusoid {WORDS}", ConfigError, "sinusoid is a Sinusoid, which has no classes of images"),
    ],
)
def test_what_cannot_be_compared_is_said_in_one_line(trained: Path, words: str, kind: Any, said: str) -> None:
    with pytest.raises(kind, match=said) as error:
        domains.main(words.split())
    assert "\n" not in str(error.value)


def test_the_commands_of_the_page_are_accepted() -> None:
    text = (Path(__file__).parents[2] / "docs/data.md").read_text().replace("\\\n", "")
    commands = [shlex.split(line)[5:] for line in text.splitlines() if "benchmark domains " in line]
    assert len(commands) == 2
    for words in commands:
        given = domains.options().parse_args(words)
        assert set(map(str, given.runs)) <= configs("experiment").keys()
        assert {*(given.data or ()), "my_photos"} - {"my_photos"} <= configs("data").keys()


def test_data_sets_of_one_name_are_told_apart() -> None:
    assert domains.trained_on(of(BLOBS)["data"]) == {"blobs": {"class_path": BLOBS, "init_args": {}}}
    folder = {"class_path": "lightning_meta.datamodules.ImageFolder", "init_args": {"root": "a/my.photos", "n_way": 5}}
    assert domains.trained_on(folder) == {"my_photos": folder | {"init_args": {"root": "a/my.photos"}}}
