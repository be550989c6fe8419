"""An adapted model that leaves the house: what a meta-learner has learned from one support set, as one file.

python -m lightning_meta export RUN --support PLACE [--out FILE.pt2 | FILE.onnx]
python -m lightning_meta export RUN --out FOLDER

RUN and the support set are those of `predict`. The file takes any number of inputs `(Q, ...)`, made like those of
training (images in [0, 1]), and returns what `module.predict` does: probabilities `(Q, N)` in the order of the class
names, which stand in a JSON file beside it, or numbers on the scale of training. `.pt2` is a program of `torch.export`,
which needs torch alone; `.onnx` runs in ONNX Runtime and elsewhere. The file is compared with the module before it is
said to be done.

Without a support set the meta-learner itself is written, as a folder to be shared (see `shared_folder.py`).
"""

import argparse
import json
import logging
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from lightning_meta import shared_folder
from lightning_meta.backbones import norm_protocol
from lightning_meta.cli.predict import check, load_run, read_task, trained_run
from lightning_meta.cli.predict_rows import read_known
from lightning_meta.compat import tree_flatten, tree_unflatten
from lightning_meta.core import Batch
from lightning_meta.datamodules.audio.audio_classes import AudioClasses
from lightning_meta.datamodules.classification import ClassificationDataModule
from lightning_meta.datamodules.rows import ReadsRows
from lightning_meta.datamodules.tables.tables import Tables
from lightning_meta.errors import ConfigError, reason
from lightning_meta.extras import need
from lightning_meta.modules import EpisodicModule, StreamModule

TOLERANCE = 1e-4  # of probabilities, or of scaled numbers, between the file and the module
QUERIES = (2, 5)  # numbers of inputs with which the file is tried


class AdaptedModel(nn.Module):
    """A module with what it learned from a support set, as a network from inputs to predictions.

    Args:
        module: in evaluation mode.
        support: the examples of one task.
        outputs: columns of a prediction: classes, or numbers of a target.
    """

    def __init__(self, module: EpisodicModule[Any], support: Batch, outputs: int) -> None:
        super().__init__()
        self.module, self.outputs = module, outputs
        with torch.no_grad():
            adapted = module.adapt(module.ordered(support) if isinstance(module, StreamModule) else support)
        leaves, self.structure = tree_flatten(adapted)
        self.count = len(leaves)
        for number, leaf in enumerate(leaves):
            self.register_buffer(f"adapted_{number}", leaf.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        leaves = [self.get_buffer(f"adapted_{number}") for number in range(self.count)]
        preds = self.module.predict(tree_unflatten(leaves, self.structure), x, self.outputs)
        return preds[:, : self.outputs]


def export(model: AdaptedModel, example: Tensor, file: Path) -> float:
    """Write a model as its file's suffix says, and how far the file's predictions are from the model's.

    Args:
        model: what is exported.
        example: inputs, two or more, of which only the shape matters.
        file: ends in .pt2 or .onnx.

    Raises:
        ConfigError: torch cannot export the network, the file says something else, or a package is missing.
    """
    queries = torch.export.Dim("queries", min=1)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, of its own deprecations
            program = torch.export.export(model.eval(), (example,), dynamic_shapes=({0: queries},))
    except Exception as error:  # of as many kinds as there are things that it cannot follow
        raise ConfigError(
            f"torch.export cannot follow {type(model.module).__name__} with its network; export a metric method or "
            f"MAML on a network of this template. ({type(error).__name__}: {reason(error)})"
        ) from error
    file.parent.mkdir(parents=True, exist_ok=True)
    run = _write_onnx(program, file) if file.suffix == ".onnx" else _write_program(program, file)
    with torch.no_grad():
        tried = [example[:1].expand(count, *example.shape[1:]) for count in QUERIES]
        tried = [torch.rand_like(x) if x.is_floating_point() else x for x in tried]
        worst = max(float((run(x) - model(x)).abs().max()) for x in tried)
    if not worst <= TOLERANCE:
        file.unlink()
        raise ConfigError(f"what torch exported differs from the model by {worst:.1e}; it was not kept.")
    return worst


def _write_program(program: torch.export.ExportedProgram, file: Path) -> Any:
    torch.export.save(program, file)
    return torch.export.load(file).module()


def _write_onnx(program: torch.export.ExportedProgram, file: Path) -> Any:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        runtime = need(package, f"writing {file}")
    for name in ("onnxscript", "onnx_ir", "torch.onnx"):  # which tell of every step
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(program, dynamo=True, verbose=False).save(file)  # type: ignore[union-attr]
    session = runtime.InferenceSession(file)
    name = session.get_inputs()[0].name
    return lambda x: torch.from_numpy(session.run(None, {name: x.numpy()})[0])


def of_images(data: ClassificationDataModule, inverted: bool) -> dict[str, Any]:
    """What an input is, as a white image shows it."""
    with tempfile.TemporaryDirectory() as folder:
        Image.new("RGB", (64, 64), "white").save(file := Path(folder) / "white.png")
        white = float(data.prepare_image(file).float().mean() / 255)
    white = 1 - white if inverted else white
    return {
        "inputs": "images in [0, 1], their longer sides cut off, then made small",
        "white": white,
        "note": "white is 0 and black is 1: give 1 - image" if white < 0.5 else "white is 1 and black is 0",
    }


def of_sounds(data: AudioClasses) -> dict[str, Any]:
    """What an input is."""
    return {"inputs": "log-mels in [0, 1], by LogMels of lightning_meta.core.sound", **asdict(data.picture)}


def share(run: Path, checkpoint: Path | None, folder: Path | None) -> None:
    if folder is None or folder.suffix in (".pt2", ".onnx"):
        raise ConfigError(
            "export needs --support PLACE, what the model is to be adapted to; or, for the meta-learner itself, --out "
            "FOLDER."
        )
    _, data, checkpoint = load_run(run, checkpoint)
    shared_folder.write(run, checkpoint, type(data).__qualname__, folder)
    print(f"{folder}: {', '.join(sorted(file.name for file in folder.iterdir()))}; predict and export take it as a run")


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        "python -m lightning_meta export",
        description="Write what a meta-learner has learned from one support set as one file, for use without it.",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a training run, or its experiment's name")
    parser.add_argument("--support", type=Path, metavar="PLACE", help="the support set, as of predict")
    parser.add_argument(
        "--out", type=Path, metavar="PLACE", help="ends in .pt2 or .onnx (RUN/adapted.pt2); without --support a folder"
    )
    parser.add_argument("--ckpt_path", type=Path, metavar="FILE", help="checkpoint (the run's best one)")
    parser.add_argument("--invert", action="store_true", help="exchange dark and light of the support images")
    given = parser.parse_args(arguments)
    run = trained_run(given.run)
    if given.support is None:
        share(run, given.ckpt_path, given.out)
        return
    file = given.out or run / "adapted.pt2"
    if file.suffix not in (".pt2", ".onnx"):
        raise ConfigError(f"--out {file} must end in .pt2, a program of torch.export, or in .onnx.")
    module, data, checkpoint = load_run(run, given.ckpt_path)
    if isinstance(data, ReadsRows):
        _, support, classes, scale, _ = read_known(module, data, given.support)
        inputs = "features" if isinstance(data, Tables) else "token ids"
        facts: dict[str, Any] = {"inputs": inputs, **data.state_dict()}  # how they are made of cells or words
        if scale is not None:
            facts["predictions"] = "times target_std, plus target_mean, on the scale of the file"
            facts |= {"target_mean": scale.mean, "target_std": scale.std}
    else:
        task = read_task(given.support, None, data, given.invert)
        check(module, task)
        support, classes = task.support, task.classes
        facts = of_sounds(data) if isinstance(data, AudioClasses) else of_images(data, given.invert)
    outputs = len(classes) or support.y.shape[-1]
    worst = export(AdaptedModel(module, support, outputs), support.x[:1].repeat(2, *[1] * (support.x.ndim - 1)), file)
    protocol = norm_protocol(module)
    about = {
        "algorithm": type(module).__name__, "trained_on": data.name, "checkpoint": str(checkpoint), "classes": classes,
        "input": [None, *support.x.shape[1:]], "dtype": str(support.x.dtype).removeprefix("torch."),
        "normalisation": protocol, **facts,
    }  # fmt: skip
    beside = file.with_suffix(".json")
    beside.write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    together = " (a prediction depends on which inputs are given together)" if "transductive" in protocol else ""
    print(f"{file}: {type(module).__name__} adapted to {len(support.y)} examples, {protocol}{together}")
    print(f"inputs and classes: {beside}; largest difference from the module: {worst:.1e}")
