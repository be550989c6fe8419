"""One file per algorithm: the paper and the deviations from it at the top, then two hooks for one task.

Every class of an algorithm in the folders below can be imported from here.
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_meta.modules import MetaModule

__all__: list[str] = []

for file in sorted(Path(__file__).parent.glob("*/[a-z]*.py")):
    module = f"{__name__}.{file.parent.name}.{file.stem}"
    for name, value in vars(import_module(module)).items():
        if isinstance(value, type) and issubclass(value, MetaModule) and value.__module__ == module:
            globals()[name] = value
            __all__ += [name]

if TYPE_CHECKING:  # a type checker does not run the loop

    def __getattr__(name: str) -> Any: ...
