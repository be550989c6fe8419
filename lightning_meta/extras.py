"""Packages that only some commands and loggers need, each in an extra of the package's `pyproject.toml`."""

from importlib import import_module
from types import ModuleType

from lightning_utilities.core.imports import RequirementCache

from lightning_meta.errors import ConfigError

EXTRAS = {  # as in pyproject.toml and in requirements-<extra>.txt
    "sweep": ("optuna>=5.0",),
    "dashboard": ("wandb-workspaces>=0.4",),
    "loggers": ("tensorboard>=2.18", "mlflow>=3.0"),
    "trackio": ("trackio>=0.40",),
}


def need(package: str, what: str) -> ModuleType:
    """Import an optional package, or raise `ConfigError` with the extra that has it.

    Args:
        package: as pip calls it.
        what: needs it, as the message says.
    """
    extra, requirement = next(
        (extra, one) for extra, wanted in EXTRAS.items() for one in wanted if one.startswith(f"{package}>=")
    )
    module = package.replace("-", "_")
    of_another_package = not RequirementCache(package) and RequirementCache(module=module)  # such as mlflow-skinny
    if not (RequirementCache(requirement) or of_another_package):
        raise ConfigError(
            f"{what} needs {requirement}, which is not installed: pip install 'lightning_meta[{extra}]', or in a clone "
            f"pip install -r requirements-{extra}.txt"
        )
    return import_module(module)
