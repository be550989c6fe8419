"""A trained meta-learner as a folder to be shared, as model hubs have them: weights, settings, a card. No pickle in it.

- `model.safetensors`: the weights.
- `about.json`: what a checkpoint has beside them to make the module again, and its result.
- `config.yaml`: the run's.
- `README.md`: a card, from the result of the run's test where there is one.

`predict` and `export` take such a folder in place of a run.
"""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from lightning_meta import checkpoints
from lightning_meta.errors import ConfigError
from lightning_meta.extras import need
from lightning_meta.results.table import score

WEIGHTS, ABOUT = "model.safetensors", "about.json"
KEPT = ("hyper_parameters", "hparams_name", "global_step", "epoch", "pytorch-lightning_version", "provenance")


def write(run: Path, checkpoint: Path, data: str, folder: Path) -> None:
    """Make the folder.

    Args:
        run: with its `config.yaml`.
        checkpoint: of the run.
        data: the class of the datamodule, whose state in the checkpoint is kept too.
        folder: a new one, or an empty one.

    Raises:
        ConfigError: there are files in the folder, or the checkpoint holds what JSON cannot.
    """
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"{folder} is not empty; give a folder that is new or empty.")
    safetensors = need("safetensors", f"writing {folder}")
    from safetensors.torch import save_file

    saved = checkpoints.read(checkpoint)
    result = run / "result.json"
    about = {key: saved[key] for key in (*KEPT, data) if key in saved}
    about |= {"result": json.loads(result.read_text())} if result.is_file() else {}
    try:
        text = json.dumps(about, indent=1)
    except TypeError as error:
        raise ConfigError(
            f"{checkpoint} holds settings that are no plain values ({error}); it cannot be shared."
        ) from error
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.contiguous().clone() for name, value in saved["state_dict"].items()}
    save_file(tensors, folder / WEIGHTS, {"format": "pt", "safetensors": safetensors.__version__})
    (folder / ABOUT).write_text(text + "\n")
    (folder / "config.yaml").write_text((run / "config.yaml").read_text())
    (folder / "README.md").write_text(card(about))


def card(about: dict[str, Any]) -> str:
    """The model card."""
    result, settings = about.get("result"), about["hyper_parameters"]
    model = settings.get("_class_path", "").rpartition(".")[-1]
    trained = (about.get("provenance") or {}).get("trained_on") or "unknown data"
    lines = [
        "---", "library_name: pytorch-lightning", "tags: [meta-learning, few-shot-learning]", "---", "",
        f"# {model}, meta-trained on {trained}", "", f"{about['global_step']:,} outer steps.", "",
    ]  # fmt: skip
    if result:
        commit = result.get("git_commit") or "unknown"
        cells = [result["data"], score(result), result["episodes"], result["normalisation"], result["seed"]]
        lines += [
            "| tested on | score (95 % interval) | episodes | normalisation | seed |", "|---|---|---|---|---|",
            f"| {' | '.join(map(str, cells))} |", "", f"Made by `{result['command']}` at commit {commit}.", "",
        ]  # fmt: skip
    lines += [
        "```bash",
        "python -m lightning_meta predict THIS_FOLDER --support my/support --query my/query",
        "```",
        "",
    ]
    return "\n".join(lines)


@contextmanager
def checkpoint_of(folder: Path) -> Iterator[Path]:
    """A file that Lightning can load, made of a shared folder, for as long as it is needed.

    Raises:
        ConfigError: the folder is damaged.
    """
    need("safetensors", f"reading {folder}")
    from safetensors.torch import load_file

    try:
        content = json.loads((folder / ABOUT).read_text()) | {"state_dict": load_file(folder / WEIGHTS)}
    except Exception as error:  # of many kinds
        raise ConfigError(
            f"{folder} is damaged: {WEIGHTS} or {ABOUT} cannot be read ({type(error).__name__})."
        ) from error
    with tempfile.TemporaryDirectory() as place:
        torch.save(content, file := Path(place) / "model.ckpt")
        yield file
