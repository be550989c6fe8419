"""An algorithm is four files, and whatever lists algorithms finds it: the package, the command line, the contract."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lightning_meta import algorithms
from lightning_meta.datamodules import Glyphs
from lightning_meta.datamodules.images.glyph_renderer import EXAMPLES, SCRIPTS, SIZE, GlyphSet
from lightning_meta.datamodules.images.glyphs import write_cache
from lightning_meta.modules import EpisodicModule
from tests.algorithms.cases import ONE_OF_A_CLASS, joined
from tests.conftest import needs_learn2learn

ROOT = Path(__file__).parents[2]
FOUR_FILES = {
    "lightning_meta/algorithms/compare/toy.py": '''"""Toy: the nearest class mean on pixels.

Deviations: it has no paper.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_meta.core import Batch, TaskOutput
from lightning_meta.core.prototypes import class_means, exclude_absent, squared_distances
from lightning_meta.modules import EpisodicModule


class Toy(EpisodicModule[tuple[Tensor, Tensor]]):
    """Logits are negative squared distances to the means of the classes."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.log_scale = nn.Parameter(torch.tensor(-2.0))

    def adapt(self, support: Batch) -> tuple[Tensor, Tensor]:
        return class_means(support.x.flatten(1), support.y)

    def query_loss(self, means: tuple[Tensor, Tensor], query: Batch) -> TaskOutput:
        means_CD, present_C = means
        logits_QC = -self.log_scale.exp() * squared_distances(query.x.flatten(1), means_CD)
        logits_QC = exclude_absent(logits_QC, present_C)
        return TaskOutput(F.cross_entropy(logits_QC, query.y), logits_QC)
''',
    "configs/model/toy.yaml": """# Nearest class mean on pixels, at a learned temperature.
class_path: lightning_meta.algorithms.Toy
init_args:
  optimizer:
    class_path: torch.optim.Adam
    init_args:
      lr: 0.01
""",
    "configs/experiment/compare/toy_glyphs_5w1s.yaml": """# Toy on Glyphs, 5-way 1-shot.
# Run:      python -m lightning_meta fit --config configs/experiment/compare/toy_glyphs_5w1s.yaml
trainer: ../../trainer/default.yaml
trainer.max_steps: 10
data: ../../data/glyphs.yaml
model: ../../model/toy.yaml
""",
    "tests/algorithms/test_toy.py": '''"""The toy algorithm against a loop over classes."""

import torch

from lightning_meta.algorithms import Toy
from lightning_meta.core import Episode
from tests.conftest import Make

CASES: dict[str, Make] = {"toy": lambda: Toy()}


def test_the_class_is_that_of_the_nearest_mean(episodes: Episode) -> None:
    preds = Toy().double().play(episodes).preds
    for t, (x, y) in enumerate(zip(*episodes.support, strict=True)):
        means = [sum(image for image, label in zip(x, y, strict=True) if label == c) / 2 for c in range(3)]
        distances = [[(query - mean).square().sum() for mean in means] for query in episodes.query.x[t]]
        assert torch.equal(preds[t].argmax(1), torch.tensor(distances).argmin(1))
''',
}


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository with the four files, and with a data set that is there at once: noise for letters."""
    folder = tmp_path_factory.mktemp("clone")
    for part in ("lightning_meta", "configs", "tests"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    for path, text in FOUR_FILES.items():
        assert not (folder / path).exists()
        (folder / path).write_text(text)
    scripts = [names[0] for names in SCRIPTS.values() for _ in range(6)]
    images = np.random.default_rng(0).integers(256, size=(len(scripts), EXAMPLES, SIZE, SIZE), dtype=np.uint8)
    cache = Glyphs(root=str(folder / "data")).cache
    write_cache(cache, GlyphSet(images, [chr(ord("A") + i) for i in range(len(scripts))], scripts))
    return folder


def python(clone: Path, *args: str) -> str:
    """What a command says, which succeeds in the clone."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHONPATH", "PYTEST"))}
    command = [sys.executable, "-m", *args]
    run = subprocess.run(command, cwd=clone, env=environment, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


def test_the_command_line_fits_tests_and_lists_it(clone: Path) -> None:
    options = ["--trainer.fast_dev_run", "true", "--trainer.logger", "csv", "--trainer.accelerator", "cpu"]
    said = python(
        clone, "lightning_meta", "fit", "--config", "configs/experiment/compare/toy_glyphs_5w1s.yaml", *options
    )
    assert "run: Toy on Glyphs" in said
    assert re.search(r"test acc +\d+\.\d+ ± \d+\.\d+ %", said)
    said = python(clone, "lightning_meta", "list", "algorithms")
    assert re.search(r"^  toy +Learning to compare +Nearest class mean on pixels", said, re.MULTILINE)


@pytest.mark.slow
def test_the_contract_plays_it(clone: Path) -> None:
    contract = "tests/algorithms/test_contract.py"
    said = python(clone, "pytest", contract, "tests/algorithms/test_toy.py", "-k", "toy", "-v", "--basetemp", "tmp")
    played = re.findall(r"test_contract\.py::(\w+)\[\S*toy\S*\] (PASSED|SKIPPED)", said)
    assert [*dict(played)] == re.findall(r"^def (test_\w+)", (ROOT / contract).read_text(), re.MULTILINE)
    skipped = {name for name, outcome in played if outcome == "SKIPPED"}
    assert skipped == {"test_where_the_query_is_the_support_inductive_equals_transductive"}, "it has no normalisation"
    assert "test_toy.py::test_the_class_is_that_of_the_nearest_mean PASSED" in said


def test_a_name_may_be_there_once() -> None:
    with pytest.raises(ValueError, match="two cases are called b, c: "):
        joined([{"a": 1, "b": 2, "c": 3}, {"b": 2, "d": 4, "c": 5}])


@needs_learn2learn
def test_every_class_has_a_case() -> None:
    makes = ONE_OF_A_CLASS.values()
    played = {type(getattr(make, "values", [make])[0]()) for make in makes}  # some stand there with a mark
    classes = {cls for name in algorithms.__all__ if issubclass(cls := getattr(algorithms, name), EpisodicModule)}
    missing = {cls.__name__: f"tests/algorithms/test_{cls.__module__.split('.')[-1]}.py" for cls in classes - played}
    assert not missing, "these files need a case in CASES"
