"""Early stopping as docs/use.md writes it: it ends by validation, and the test takes the best checkpoint."""

import json
import re
import shlex
from pathlib import Path

import pytest
import yaml

from lightning_meta.cli import main
from lightning_meta.cli.composition import compose
from tests.cli.test_trainer import ROOT, tiny  # noqa: F401 - a fixture

pytestmark = pytest.mark.filterwarnings("ignore:LightningCLI's args parameter")
DOCS = (ROOT / "docs/use.md").read_text()
# Nothing is learned, so that no validation is better than the first one, at step 2 of 40.
STUCK = ["--trainer.max_steps", "40", "--model.optimizer", "torch.optim.SGD", "--model.optimizer.lr", "0"]


def stops_at_the_third_validation(words: list[str]) -> None:
    cli = main(["fit", *words])
    assert cli.trainer.global_step == 3 * 2
    result = json.loads(Path("runs/stops/version_0/result.json").read_text())
    assert (result["outer_steps"], result["trained_steps"]) == (2, 6)
    assert cli.trainer.ckpt_path.endswith("best-step=2.ckpt")


def test_from_the_command_line(tiny: Path) -> None:  # noqa: F811
    (command,) = re.findall(r"fit --config \S+ (.*EarlyStopping.*patience) 5", DOCS)
    stops_at_the_third_validation(["--config", str(tiny), "--name", "stops", *STUCK, *shlex.split(command), "2"])


def test_from_a_config(tiny: Path) -> None:  # noqa: F811
    """Beside the callbacks that are there."""
    (text,) = [block for block in re.findall(r"```yaml\n(.*?)```", DOCS, re.DOTALL) if "EarlyStopping" in block]
    whole = yaml.safe_load(tiny.read_text())
    Path("trainer.yaml").write_text(yaml.safe_dump(whole.pop("trainer")))
    text = text.replace("../trainer/default.yaml", "trainer.yaml").replace("patience: 5", "patience: 2")
    Path("stops.yaml").write_text(f"{text}{yaml.safe_dump(whole)}")
    stops_at_the_third_validation(["--config", "stops.yaml", *STUCK])


def test_a_plus_appends_to_a_list(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("a: [1]\nb: null\n")
    (tmp_path / "config.yaml").write_text("part: base.yaml\npart.a+: [2, 3]\npart.b+: 4\npart.c+: 5\n")
    assert compose(tmp_path / "config.yaml") == {"part": {"a": [1, 2, 3], "b": [4], "c": [5]}}
