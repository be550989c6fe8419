"""Private names of other libraries are as they are used here; a new one has a line in `compat.py`."""

import inspect
import re
from functools import reduce
from importlib import import_module
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.func import grad, vmap
from torchvision import models

from lightning_meta import compat

ROOT = Path(__file__).parents[1] / "lightning_meta"


@pytest.mark.parametrize(
    ("owner", "method", "form"),
    [(owner, method, form) for owner, methods in compat.METHODS.items() for method, form in methods.items()],
)
def test_methods_have_the_arguments_that_are_passed(owner: str, method: str, form: str) -> None:
    module, name = owner.rsplit(".", 1)
    found = inspect.signature(getattr(getattr(import_module(module), name), method))
    bare = [parameter.replace(annotation=parameter.empty) for parameter in found.parameters.values()]
    assert str(found.replace(parameters=bare, return_annotation=found.empty)) == form


@pytest.mark.parametrize("path", compat.ATTRIBUTES)
def test_the_trainer_holds_them(path: str) -> None:
    reduce(
        getattr, path.split("."), pl.Trainer(accelerator="cpu", devices=1, strategy="ddp", logger=False, barebones=True)
    )


def test_transforms_can_be_told() -> None:
    seen = []

    def watched(x: torch.Tensor) -> torch.Tensor:
        seen.append([level.key() for level in compat.get_interpreter_stack()])
        return x.sin()

    vmap(grad(watched))(torch.zeros(2))
    assert seen == [[compat.TransformType.Vmap, compat.TransformType.Grad]]
    assert not compat.get_interpreter_stack()


def test_arguments_behind_keywords_are_known() -> None:
    """Those of a class that a function hands its keywords to."""
    found = compat.get_signature_parameters(models.resnet18)
    assert {"weights", "num_classes", "norm_layer"} <= {argument.name for argument in found}
    assert next(argument for argument in found if argument.name == "num_classes").default == 1000


def test_bases_of_normalisation() -> None:
    assert issubclass(nn.BatchNorm2d, compat.BatchNormBase) and issubclass(nn.SyncBatchNorm, compat.BatchNormBase)
    assert issubclass(nn.InstanceNorm2d, compat.InstanceNormBase)
    assert issubclass(nn.BatchNorm1d, compat.NormBase) and issubclass(nn.InstanceNorm1d, compat.NormBase)


def test_trees_are_those_of_named_tuples_and_keep_their_order() -> None:
    leaves, structure = compat.tree_flatten({"b": (1, [2]), "a": 3})
    assert compat.tree_unflatten(leaves, structure) == {"b": (1, [2]), "a": 3}
    assert compat.tree_leaves(compat.tree_map(str, [1, (2,)])) == ["1", "2"]
    assert compat.tree_structure((1, 2)) == compat.tree_structure((3, 4))


def test_nothing_private_is_imported_elsewhere() -> None:
    private = re.compile(
        r"^\s*(from|import) (torch|pytorch_lightning|jsonargparse|torchmetrics)\S*(\._| import .*\b_[a-zA-Z])", re.M
    )
    assert [
        str(file) for file in ROOT.rglob("*.py") if file.name != "compat.py" and private.search(file.read_text())
    ] == []
    called = {name for file in ROOT.rglob("*.py") for name in re.findall(r"super\(\)\.(_[a-z]\w+)", file.read_text())}
    assert called <= {"_mode", *(name for methods in compat.METHODS.values() for name in methods)}
