"""Packages that only some commands and loggers need, each in an extra of the package's `pyproject.toml`."""

from importlib import import_module
from types import ModuleType

from lightning_utilities.core.imports import RequirementCache

from lightning_meta.errors import ConfigError, reason

EXTRAS = {  # as in pyproject.toml and in requirements-<extra>.txt
    "sweep": ("optuna>=5.0",),
    "dashboard": ("wandb-workspaces>=0.4",),
    "loggers": ("tensorboard>=2.18", "mlflow>=3.0"),
    "trackio": ("trackio>=0.40",),
    "networks": ("timm>=1.0", "safetensors>=0.4"),
    "export": ("safetensors>=0.4", "onnx>=1.18", "onnxscript>=0.5", "onnxruntime>=1.22"),
    "serve": ("gradio>=6.31",),
    "tables": ("pyarrow>=18.0", "scipy>=1.14"),
    "transport": ("POT>=0.9.5",),
    "language": ("sacrebleu>=2.4",),
    "music": ("mido>=1.3",),
    "mujoco": ("mujoco>=4.0",),
    "metaworld": ("metaworld>=3.1",),
}
OTHERS = {"mlflow": ("mlflow-skinny>=3.0",), "tensorboard": ("tensorboardX>=2.2",)}  # which serve as well


def check(package: str, what: str) -> None:
    """Raise `ConfigError` with the extra that has an optional package where that is missing or too old.

    Args:
        package: as pip calls it.
        what: needs it, as the message says.
    """
    requirement, install = _remedy(package)
    if not any(RequirementCache(one) for one in (requirement, *OTHERS.get(package, ()))):
        raise ConfigError(f"{what} needs {requirement}, which is not installed: {install}")


def need(package: str, what: str) -> ModuleType:
    """Import an optional package; `ConfigError` as by `check`, and where it is installed but cannot be imported."""
    check(package, what)
    try:
        return import_module(package.replace("-", "_"))
    except Exception as error:  # a broken package fails as whatever it stumbles over
        requirement, install = _remedy(package)
        raise ConfigError(
            f"{what} needs {requirement}, which is installed but cannot be imported: {reason(error)} Install it anew: "
            f"{install}"
        ) from error


def _remedy(package: str) -> tuple[str, str]:
    """What is asked for, and how it is installed."""
    extra, requirement = next(
        (extra, one) for extra, wanted in EXTRAS.items() for one in wanted if one.startswith(f"{package}>=")
    )
    return requirement, (
        f"pip install 'lightning_meta[{extra}]', or in a clone pip install -r requirements-{extra}.txt"
    )
