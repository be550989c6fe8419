"""The container's files agree with the repository: what is copied exists, and its commands are those of the README."""

import json
import re
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "docker/Dockerfile").read_text()


def test_what_is_copied_into_the_image_exists() -> None:
    sources = [word for line in re.findall(r"^COPY (.+)$", DOCKERFILE, re.MULTILINE) for word in line.split()[:-1]]
    assert set(sources) == {"requirements.txt", "constraints.txt", "configs", "lightning_meta"}
    assert all((ROOT / source).exists() for source in sources)


def test_the_image_trains_the_demo_by_default() -> None:
    words = {key: json.loads(value) for key, value in re.findall(r"^(ENTRYPOINT|CMD) (.+)$", DOCKERFILE, re.MULTILINE)}
    demo = re.search(r"^DEMO_CONFIG \?= (\S+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert demo
    assert words["ENTRYPOINT"] + words["CMD"] == ["python", "-m", "lightning_meta", "fit", "--config", demo[1]]
    assert (ROOT / demo[1]).is_file()


def test_two_machines_run_torchrun_with_as_many_processes_as_the_trainer_has_devices() -> None:
    train = yaml.safe_load((ROOT / "docker/compose.two-nodes.yaml").read_text())["services"]["train"]
    options = dict(re.fullmatch(r"--(.+?)=(.+)", word).groups() for word in train["entrypoint"] if "=" in word)
    chosen = dict(re.fullmatch(r"--(.+?)=(.+)", word).groups() for word in train["command"] if "=" in word)
    assert options["nnodes"] == chosen["trainer.num_nodes"] == "2"
    assert options["nproc-per-node"].startswith("${GPUS:?") and chosen["trainer.devices"] == "${GPUS}"
    default = re.fullmatch(r"\$\{CONFIG:-(.+)\}", chosen["config"])
    assert default and (ROOT / default[1]).is_file()
