"""The commands of `python -m lightning_meta`: one file each, and what they share.

`main` and `MetaCLI`, of fit, validate and test, can be imported from here; torch and Lightning only then.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_meta.cli.trainer import MetaCLI, main

__all__ = ["MetaCLI", "main"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from lightning_meta.cli import trainer

    return getattr(trainer, name)
