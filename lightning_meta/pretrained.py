"""Weights that a backbone starts from: those of a file, or of the backbone of a run."""

from collections import Counter
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_meta import checkpoints
from lightning_meta.backbones import Backbone
from lightning_meta.errors import ConfigError, reason
from lightning_meta.extras import need
from lightning_meta.run_folders import trained_folder

INSIDE = ("state_dict", "model", "model_state_dict")  # where files keep the weights among other things
COUNTER = "num_batches_tracked"  # of torch's batch normalisation, which ours does not have


def start_from(backbone: nn.Module, place: str, option: str = "pretrained") -> str:
    """Give a backbone the weights of a file or a run, all that it has; returns what was done, in words.

    The names of the weights may begin otherwise there, `backbone.` or `module.encoder.`: the beginning that fits most
    of them is left out. What the backbone does not have, such as a classifier, is passed over.

    Args:
        backbone: whose weights change.
        place: a file (`.pt`, `.pth`, `.ckpt`, `.safetensors`), or a run or an experiment by folder or name: the best
            checkpoint of its newest run, or else the last one.
        option: that names the place, for messages.

    Raises:
        ConfigError: there is no such place, it cannot be read, or not all weights are there in their shapes.
    """
    path = file_of(place, option)
    there = weights_in(path, option)
    tensors = backbone.authors_tensors() if isinstance(backbone, Backbone) else backbone.state_dict()
    own = {name: value for name, value in tensors.items() if not name.endswith(COUNTER)}
    beginning = _beginning(there, own)
    found = {name: there[beginning + name] for name in own if beginning + name in there}
    missing = [name for name in own if name not in found]
    other = [f"{name} {tuple(v.shape)} in place of {tuple(own[name].shape)}" for name, v in found.items()
             if v.shape != own[name].shape]  # fmt: skip
    fitting = len(found) - len(other)
    if missing or other:
        faults = [f"not there: {_some(missing)}"] * bool(missing) + [f"of another shape: {_some(other)}"] * bool(other)
        raise ConfigError(
            f"{option}={place}: {fitting} of the backbone's {len(own)} tensors are in {path}; {'; '.join(faults)}. "
            "Give the backbone the settings that the weights were trained with."
        )
    for name, value in own.items():
        value.copy_(found[name])
    passed = [name for name in there if name.removeprefix(beginning) not in own and not name.endswith(COUNTER)]
    over = f"; passed over: {_some(passed)}" if passed else ""
    return f"the backbone starts from {path}: {len(own)} of its {len(own)} tensors{over}."


def backbone_of(place: str, option: str = "pretrained") -> Backbone:
    """The backbone that a run has trained, with its settings there; the arguments are those of `start_from`."""
    path = file_of(place, option)
    model = checkpoints.read(path).get("hyper_parameters", {}).get("_class_path")
    if model is None:
        raise ConfigError(
            f"{option}={place}: {path} does not say of which class it is; give a run of the command line."
        )
    package, _, name = model.rpartition(".")
    module = getattr(import_module(package), name).load_from_checkpoint(path, map_location="cpu")
    backbone = getattr(module, "backbone", None)
    if not isinstance(backbone, Backbone):
        raise ConfigError(f"{option}={place}: {name} has no backbone; give a run of an algorithm that has one.")
    return backbone


def file_of(place: str, option: str = "pretrained") -> Path:
    """The file that a place means."""
    if Path(place).is_file():
        return Path(place)
    folder = trained_folder(place)
    newest = checkpoints.last(checkpoints.below(folder)) if folder else None
    if newest is None:
        what = f"there is no checkpoint in {folder}/" if folder else "there is neither a file nor a run of this name"
        remedy = (
            "a run that was trained" if Path(place).suffix else f"train that experiment first: fit --config {place}"
        )
        raise ConfigError(f"{option}={place}: {what}; give a file of weights, or {remedy}.")
    run = checkpoints.run_of(newest.path)
    return checkpoints.best_or_last(run) if run else newest.path


def weights_in(path: Path, option: str = "pretrained") -> Mapping[str, Tensor]:
    """The tensors of a file by name."""
    content: Any
    if path.suffix == ".safetensors":
        need("safetensors", f"reading {path}")
        from safetensors.torch import load_file

        content = load_file(path)
    else:
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises many kinds for files that are none of its own
            raise ConfigError(
                f"{option}={path} cannot be read as weights (torch.save(network.state_dict(), path) writes them): "
                f"{reason(error)[:200]}"
            ) from error
    inside = next((key for key in INSIDE if isinstance(content, dict) and isinstance(content.get(key), dict)), None)
    content = content[inside] if inside else content
    tensors = {name: v for name, v in content.items() if isinstance(v, Tensor)} if isinstance(content, dict) else {}
    if not tensors:
        raise ConfigError(
            f"{option}={path} holds no tensors by name; write it by torch.save(network.state_dict(), path)."
        )
    return tensors


def _beginning(there: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str:
    """What stands before the backbone's names in those of the file; of equally good ones, the shortest."""
    begins: Counter[str] = Counter()
    for name in there:
        parts = name.split(".")
        for place in range(len(parts)):
            if ".".join(parts[place:]) in own:
                begins["".join(f"{part}." for part in parts[:place])] += 1
    return min(begins, key=lambda beginning: (-begins[beginning], len(beginning)), default="")


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
