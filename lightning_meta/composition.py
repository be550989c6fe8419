"""Configs composed by reference: `model: ../model/maml.yaml`, then `model.init_args.inner_lr: 0.1`.

jsonargparse reads files named on the command line, but loses a reference when a dotted key of the same file refines it.
So a config file is resolved here, before it is parsed.
"""

from pathlib import Path
from typing import Any

import yaml

from lightning_meta.errors import ConfigError


def compose(path: Path, named_in: tuple[Path, ...] = ()) -> Any:
    """Load a YAML file; follow references, then apply dotted keys in their order.

    A string that ends in `.yaml` is replaced by the content of that file, relative to the file that names it. A dotted
    key replaces the value at that place, as a whole. `named_in` are the files that led to this one.
    """
    try:
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(f"config file {path}: {error.strerror}.") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"config file {path} is not valid YAML: {error}") from error
    content = _follow(content, (*named_in, path.resolve()))
    return _expand(content, path) if isinstance(content, dict) else content


def _follow(value: Any, files: tuple[Path, ...]) -> Any:
    """Replace references in `value`, which stands in the last of the `files` that led here."""
    if isinstance(value, dict):
        return {key: _follow(item, files) for key, item in value.items()}
    if isinstance(value, list):
        return [_follow(item, files) for item in value]
    if isinstance(value, str) and value.endswith(".yaml"):
        reference = (files[-1].parent / value).resolve()
        if not reference.is_file():
            raise ConfigError(f"{files[-1]} refers to {value}, but there is no file {reference}.")
        if reference in files:
            raise ConfigError(f"{files[-1]} refers to {value}, which leads back to it.")
        return compose(reference, files)
    return value


def _expand(content: dict[str, Any], path: Path) -> dict[str, Any]:
    config: dict[str, Any] = {}
    for key, value in content.items():
        *parents, last = str(key).split(".")
        place = config
        for parent in parents:
            place = place.setdefault(parent, {})
            if not isinstance(place, dict):
                raise ConfigError(f"{path}: '{key}' goes through '{parent}', which is not a mapping.")
        place[last] = value
    return config
