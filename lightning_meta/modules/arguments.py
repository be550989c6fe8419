"""The arguments of a module in its checkpoint: plain values, and of everything else that it was given."""

from collections.abc import Mapping
from inspect import signature
from typing import Any

from torch import Tensor

from lightning_meta.errors import ConfigError

NOT_SAVED = "not saved: "


def as_saved(cls: type, given: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint holds of the arguments that `cls` was given.

    From Python, collaborators (backbone, loss, metric, ...) arrive as objects, which have no place in a file. In place
    of each there is a note with its name. Objects that are the defaults of `cls` are left out.
    """
    defaults = {name: parameter.default for name, parameter in signature(cls).parameters.items()}
    saved = {}
    for name, value in given.items():
        if _is_plain(value):
            saved[name] = value
        elif defaults.get(name) is not value:
            saved[name] = f"{NOT_SAVED}{getattr(value, '__name__', type(value).__name__)}"
    return saved


def refuse_notes(cls: type, given: Mapping[str, Any]) -> None:
    """Raise `ConfigError` when an argument is a note of `as_saved`: a default in its stead would be another model."""
    notes = {name: value for name, value in given.items() if isinstance(value, str) and value.startswith(NOT_SAVED)}
    if notes:
        objects = ", ".join(f"{name} ({note.removeprefix(NOT_SAVED)})" for name, note in notes.items())
        arguments = ", ".join(f"{name}=..." for name in notes)
        raise ConfigError(
            f"the checkpoint is of a {cls.__name__} that was given {objects} in Python, which a file cannot hold; give "
            f"the same again: {cls.__name__}.load_from_checkpoint(path, {arguments})."
        )


def _is_plain(value: Any) -> bool:
    """Whether `torch.load(weights_only=True)` would make it again. Subclasses (NumPy's numbers) it would not."""
    if type(value) in (list, tuple):
        return all(map(_is_plain, value))
    if type(value) is dict:
        return all(map(_is_plain, [*value, *value.values()]))
    return value is None or type(value) in (bool, int, float, complex, str, bytes, Tensor)
