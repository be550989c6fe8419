"""Any network where a backbone is asked for: `torchvision.models.resnet18` stands for `Wrapped` around it.

What is said of the backbone is said of `Wrapped` where that has such an argument (`norm`, `in_shape`, `cut`), and of
the network otherwise: `--model.backbone my_file.MyNet --model.backbone.width 8`.
"""

import re
from inspect import isclass, signature
from pkgutil import resolve_name
from typing import Any, get_type_hints

from lightning_meta.errors import ConfigError

KEY = "backbone"  # the last word of a setting that is one
WRAPPED = "lightning_meta.backbones.Wrapped"
DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")


def is_foreign(path: Any) -> bool:
    """Whether a class path is that of a network which is no `Backbone`; not where nothing has this name.

    Raises:
        ConfigError: it is something else, or cannot be imported.
    """
    if not isinstance(path, str) or not DOTTED.fullmatch(path) or path.startswith("lightning_meta."):
        return False
    from torch import nn  # not by `list` and `--help`, which are quick

    from lightning_meta.backbones import Backbone

    module, _, name = path.rpartition(".")
    try:
        # Not by the whole path: `torchvision.models.alexnet` is a function and also a module.
        found = getattr(resolve_name(module), name)
    except AttributeError:
        return False
    except ModuleNotFoundError as error:
        if error.name and f"{path}.".startswith(f"{error.name}."):
            return False
        raise ConfigError(f"backbone={path} cannot be imported: {error}.") from error
    made = found if isclass(found) else _returned(path, found)
    if not (isclass(made) and issubclass(made, nn.Module)):
        raise ConfigError(f"backbone={path}: {getattr(made, '__name__', made)} is no network (torch.nn.Module).")
    if issubclass(made, Backbone):
        return False
    if not isclass(found):
        _refuse_classes(path, found)
    return True


def _refuse_classes(path: str, function: Any) -> None:
    """Raise `ConfigError` where an argument is a class that needs arguments, for which there are no settings."""
    from lightning_meta.compat import get_signature_parameters

    for argument in get_signature_parameters(function):
        default = argument.default
        if isclass(default) and any(
            other.default is other.empty and other.kind not in (other.VAR_POSITIONAL, other.VAR_KEYWORD)
            for other in signature(default).parameters.values()
        ):
            name = path.rpartition(".")[-1]
            raise ConfigError(
                f"backbone={path} has an argument {argument.name} that is a class, {default.__name__}, for which "
                f"there are no settings. In a file my_networks.py write `def {name}() -> torch.nn.Module: return "
                f"{path}()`, and take my_networks.{name}."
            )


def _returned(path: str, function: Any) -> Any:
    """What a function says that it returns."""
    made = get_type_hints(function).get("return") if callable(function) and hasattr(function, "__name__") else None
    if made is None:
        name = path.rpartition(".")[-1]
        raise ConfigError(
            f"backbone={path} is neither a class nor a function that says that it returns a network; write "
            f"`def {name}(...) -> torch.nn.Module:`, whose arguments can then be settings."
        )
    return made


def of_wrapped() -> set[str]:
    """The arguments of `Wrapped`."""
    from lightning_meta.backbones import Wrapped

    return {*signature(Wrapped).parameters}


def with_wrapped(value: Any, key: str = "") -> Any:
    """A config, or a part of it that is called `key`, with `Wrapped` around foreign networks."""
    if key == KEY and isinstance(value, str) and is_foreign(value):
        return _around({"class_path": value}, {})
    if not isinstance(value, dict):
        return value
    value = {name: with_wrapped(inner, name) for name, inner in value.items()}
    if key != KEY:
        return value
    arguments = value.get("init_args") or {}
    if is_foreign(value.get("class_path")):
        return _around({"class_path": value["class_path"]}, arguments)
    if value.get("class_path") == WRAPPED and isinstance(network := arguments.get("network"), dict | str):
        return _around(network if isinstance(network, dict) else {"class_path": network}, arguments)
    return value


def _around(network: dict[str, Any], arguments: dict[str, Any]) -> dict[str, Any]:
    """`Wrapped` around a network, to each those of the arguments that it takes."""
    own = {name: value for name, value in arguments.items() if name in of_wrapped()}
    others = {name: value for name, value in arguments.items() if name not in own}
    if others:
        network = {**network, "init_args": {**(network.get("init_args") or {}), **others}}
    return {"class_path": WRAPPED, "init_args": {**own, "network": network}}
