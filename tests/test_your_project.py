"""docs/your_project.md: an algorithm in a package of the user's, outside the clone, and an upgrade that keeps it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from lightning_meta.cli import main
from lightning_meta.core import Batch
from tests.conftest import Blobs  # noqa: F401 - named in a config

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "your_project.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
(ALGORITHM,) = [block for language, block in BLOCKS if language == "python"]
BEGIN, FIT, UPGRADE = [block for language, block in BLOCKS if language == "bash"]
TINY = """
trainer: {accelerator: cpu, max_steps: 2, max_epochs: -1, num_sanity_val_steps: 0, enable_progress_bar: false,
  enable_model_summary: false, log_every_n_steps: 1, enable_checkpointing: false, logger: false}
data: {class_path: tests.conftest.Blobs, init_args: {n_way: 3, k_shot: 2, n_query: 3, steps_per_epoch: 2,
  val_episodes: 2, test_episodes: 4}}
model: {class_path: ProtoNet, init_args: {backbone: {class_path: Conv4,
  init_args: {image_size: 16, hidden: 4, norm: running}}}}
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the page's package, and nothing else."""
    (tmp_path / "my_pkg").mkdir()
    (tmp_path / "my_pkg" / "algorithms.py").write_text(ALGORITHM)
    (tmp_path / "my_pkg" / "__init__.py").write_text("from my_pkg.algorithms import MyAlgo\n")
    monkeypatch.chdir(tmp_path)
    for name in [name for name in sys.modules if name.partition(".")[0] == "my_pkg"]:
        monkeypatch.delitem(sys.modules, name)
    return tmp_path


@pytest.mark.filterwarnings("ignore:LightningCLI's args parameter")
def test_an_algorithm_of_the_users_is_trained(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(project)
    (project / "tiny.yaml").write_text(TINY)
    cli = main(["fit", "--config", "tiny.yaml", "--model", "my_pkg.MyAlgo", "--model.sharpness", "20"])
    assert type(cli.model).__module__ == "my_pkg.algorithms" and cli.trainer.global_step == 2
    assert cli.config["fit"].name == "my_algo_blobs_3w2s", "of its folder in runs/"
    module, x = cli.model.eval(), torch.rand(7, 1, 16, 16)
    support = Batch(x[:4], torch.tensor([0, 1, 0, 1]))
    features = module.backbone(x)
    means = torch.stack([features[0:4:2].mean(0), features[1:4:2].mean(0)])
    logits = -20 * torch.stack([(features[4:] - mean).abs().mean(1) for mean in means], 1)
    found = module.predict(module.adapt(support), x[4:])
    torch.testing.assert_close(found[:, :2], logits.softmax(1))


def test_the_command_of_the_page_finds_it_outside_the_clone(project: Path) -> None:
    words = FIT.split()
    assert words[:3] == ["python", "-m", "lightning_meta"]
    done = subprocess.run(
        [sys.executable, *words[1:], "--print_config"], cwd=project, capture_output=True, text=True, timeout=300,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    model = yaml.safe_load(done.stdout)["model"]
    assert model["class_path"] in ("my_pkg.MyAlgo", "my_pkg.algorithms.MyAlgo")
    assert model["init_args"]["sharpness"] == 20 and model["init_args"]["backbone"]["class_path"].endswith("Conv4")


def test_an_upgrade_keeps_what_is_the_users(tmp_path: Path) -> None:
    identity = {f"GIT_{who}_{what}": "a@b" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    env = {**os.environ, **identity, "GIT_CONFIG_GLOBAL": os.devnull}

    def bash(script: str, place: Path) -> None:
        subprocess.run(["bash", "-euc", script], cwd=place, env=env, check=True, capture_output=True, timeout=60)

    upstream, work = tmp_path / "upstream", tmp_path / "my_project"
    upstream.mkdir()
    bash(
        "git init -q -b main; mkdir lightning_meta; echo 1 > lightning_meta/a.py; git add .; git commit -qm 1", upstream
    )
    bash(BEGIN.replace("UPSTREAM", str(upstream)), tmp_path)
    bash("echo 'mine' > my_pkg/__init__.py; echo '# Mine' > README.md; git add .; git commit -qm mine", work)
    bash("echo 2 > lightning_meta/a.py; echo 3 > lightning_meta/b.py; git add .; git commit -qm 2", upstream)
    bash(UPGRADE, work)
    assert (work / "lightning_meta/a.py").read_text() == "2\n" and (work / "lightning_meta/b.py").is_file()
    assert (work / "my_pkg/__init__.py").read_text() == "mine\n" and (work / "README.md").read_text() == "# Mine\n"
