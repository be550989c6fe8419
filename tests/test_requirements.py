"""What the package declares is what is installed for it."""

import re
import sys
import tomllib
from pathlib import Path

import pytest

from lightning_meta import extras
from lightning_meta.errors import ConfigError

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


def test_extras_are_declared_as_they_are_asked_for() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {name: tuple(wanted) for name, wanted in declared.items()} == extras.EXTRAS
    for name, wanted in declared.items():
        lines = (ROOT / f"requirements-{name}.txt").read_text().splitlines()
        assert [line for line in lines if not line.startswith("#")] == wanted


def test_a_missing_package_is_asked_for_by_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(extras.EXTRAS, "some", ("nonesuch-package>=1.0",))
    with pytest.raises(ConfigError, match=r"this needs nonesuch-package>=1\.0, .*'lightning_meta\[some\]'.*-some\.txt"):
        extras.need("nonesuch-package", "this")
    monkeypatch.setitem(extras.EXTRAS, "some", ("torch>=99",))
    with pytest.raises(ConfigError, match=r"torch>=99"):
        extras.need("torch", "this")
    monkeypatch.setitem(extras.EXTRAS, "some", ("torch>=2.0",))
    assert extras.need("torch", "this").__name__ == "torch"


def test_a_package_that_cannot_be_imported_is_named_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Blocked, and broken by what it needs."""
    monkeypatch.setattr(extras, "RequirementCache", lambda *_: True)
    monkeypatch.setitem(extras.EXTRAS, "some", ("some-broken-package>=1.0",))
    install = r"Install it anew: pip install 'lightning_meta\[some\]'.*-some\.txt$"
    monkeypatch.setitem(sys.modules, "some_broken_package", None)
    with pytest.raises(
        ConfigError, match=rf"^this needs some-broken-package>=1\.0, .* None in sys\.modules\. {install}"
    ):
        extras.need("some-broken-package", "this")
    monkeypatch.delitem(sys.modules, "some_broken_package")
    (tmp_path / "some_broken_package.py").write_text("raise OSError('libsome.so:\\n  no such file')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=rf"cannot be imported: libsome\.so: no such file\. {install}"):
        extras.need("some-broken-package", "this")
