"""The demo as a user runs it: three minutes, so only with `make test-slow`."""

import json
from pathlib import Path

import pytest

from lightning_meta.cli import main


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:LightningCLI's args parameter")
def test_demo_beats_nearest_neighbour_on_unseen_scripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for command, name in (("fit", "maml_glyphs_5w1s"), ("test", "nearest_neighbour_glyphs_5w1s")):
        main([command, "--config", name, "--trainer.logger", "csv"])
    maml, floor = (
        json.loads(Path(f"runs/{name}/version_0/result.json").read_text())
        for name in ("maml_glyphs_5w1s", "nearest_neighbour_glyphs_5w1s")
    )
    assert maml["acc"] - maml["acc_ci95"] > floor["acc"] + floor["acc_ci95"] + 0.15
