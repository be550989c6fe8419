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


def test_the_floor_is_what_requirements_allow() -> None:
    """Each lower bound is tried by `make test-floor`, in its first release."""
    lines = (ROOT / "constraints-floor.txt").read_text().splitlines()
    floor = dict(line.split("==") for line in lines if not line.startswith("#"))
    bounds = dict(re.findall(r"^([\w-]+)(?:\[\w+\])?>=([\d.]+)", (ROOT / "requirements.txt").read_text(), re.M))
    tried = {name: version for name, version in bounds.items() if name not in ("ruff", "mypy", "pre-commit", "numpy")}
    assert set(floor) == {*tried, "numpy"}
    assert all(re.fullmatch(rf"{re.escape(bound)}(\.\d+)*", floor[name]) for name, bound in tried.items())
