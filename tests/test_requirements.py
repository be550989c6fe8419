"""What the package declares is what is installed for it."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_package_declares_what_a_run_installs() -> None:
    text = (ROOT / "requirements.txt").read_text()
    run = text[text.index("# run") : text.index("# test and lint")]
    lines = [line.split("#")[0].strip().replace('"', "'") for line in run.splitlines()]
    installed = [line for line in lines if line and not re.match("learn2learn|qpth", line)]
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert declared == installed
