"""Errors that a user can mend. The command line prints them as one line, without a traceback.

Ours are `UserError`. Of other libraries' errors `user_error_behind` tells those that mean the user's settings or the
place of the files; all others are mistakes in code and keep their traceback.
"""

import errno
import linecache
import os
import sys
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any
from urllib.error import URLError

TRACEBACK = "LIGHTNING_META_TRACEBACK"  # set in the environment: no error loses its traceback
HINT = f"({TRACEBACK}=1 shows where.)"
# Who checks settings, and says so by a `raise` of its own. Not pytorch_lightning.core, which checks our code.
CHECKING = (
    "pytorch_lightning.accelerators", "pytorch_lightning.callbacks", "pytorch_lightning.loggers",
    "pytorch_lightning.loops", "pytorch_lightning.plugins", "pytorch_lightning.profilers",
    "pytorch_lightning.strategies", "pytorch_lightning.trainer", "pytorch_lightning.tuner", "lightning_fabric",
    "torch.optim", "torch.utils.data", "wandb",
)  # fmt: skip
# A place that cannot be written to.
PLACE = (
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENOSPC, errno.EDQUOT,
    errno.ENAMETOOLONG, errno.ELOOP,
)  # fmt: skip


class UserError(RuntimeError):
    """Something in the request or its surroundings is wrong; the message names the facts and the remedy."""

    status = 1  # of the process that it ends


class ConfigError(UserError):
    """Two settings disagree, or one of them cannot be."""


class UsageError(UserError):
    """A command line that means nothing."""

    status = 2


class DataError(UserError):
    """Data are missing, corrupt or too few."""


class DivergenceError(UserError):
    """Training has produced a loss or weights that are not finite."""


def require_at_least(least: int, **values: int | None) -> None:
    """Raise `ConfigError` where one of the values is smaller; None is no value."""
    for name, value in values.items():
        if value is not None and value < least:
            raise ConfigError(f"{name}={value} must be at least {least}.")


def user_error_behind(error: BaseException) -> UserError | None:
    """The error that a user can mend, if an exception is one or was raised because of one.

    A `UserError` anywhere in the chain of causes; or another one in it that a library raised on purpose because of
    settings, or that the file system has against a place. None: a mistake in code.
    """
    behind: BaseException | None = error
    while behind is not None:  # a UserError may also have been met while another error was handled
        if isinstance(behind, UserError):
            return behind
        behind = behind.__cause__ or behind.__context__
    for link in reversed([*causes(error)]):
        if isinstance(link, OSError) and (link.errno in PLACE or _makes_folders(link)):
            place = f": {link.filename}" if link.filename else ""
            return ConfigError(
                f"{link.strerror}{place}; take a folder that can be written to (--trainer.logger.save_dir, --out), or "
                f"make this one so. {HINT}"
            )
        if isinstance(link, URLError):
            return ConfigError(
                f"a download failed: {reason(link)} Weights or data that are fetched need a network, or the file where "
                f"it would be kept. {HINT}"
            )
        if refuses_settings(link):
            return ConfigError(f"{reason(link)} {HINT}")
    return None


def refuses_settings(error: BaseException) -> bool:
    """Whether Lightning, a logger or an optimizer of torch refuses what it was given.

    Then the last line that ran is a `raise` in one of those modules; or the setting took part in its arithmetic.
    """
    if any(cls.__name__ == "MisconfigurationException" for cls in type(error).__mro__):
        return True
    *_, last = [None, *frames(error)]
    if last is None or not _is_in(last.tb_frame.f_globals.get("__name__", ""), CHECKING):
        return False
    line = linecache.getline(last.tb_frame.f_code.co_filename, last.tb_lineno).strip()
    return line.startswith("raise ") or isinstance(error, ArithmeticError)


def refused_in_construction(error: BaseException) -> ConfigError | None:
    """What to tell the user when an object could not be made of the configuration; None: a mistake in code.

    Numbers of which nothing can be made fail in arithmetic or in torch; the message names the innermost object of ours
    that was being made, and what plain values it was given.
    """
    *_, root = causes(error)
    untyped = _untyped_settings(root)
    wrong = (ValueError, ArithmeticError, RuntimeError, *((TypeError,) if untyped else ()))
    if not isinstance(root, wrong) or user_error_behind(error):
        return None
    made = [t.tb_frame for t in frames(root) if t.tb_frame.f_code.co_name == "__init__"]
    made = [f for f in made if not _is_in(f.f_globals.get("__name__", ""), ("torch", "jsonargparse"))]
    if not made:
        return ConfigError(f"{reason(root)} {untyped}{HINT}") if untyped else None
    found, names = made[-1].f_locals, _arguments(made[-1])
    given = ", ".join(f"{name}={found[name]}" for name in names if isinstance(found.get(name), int | float | str))
    cls = type(found[made[-1].f_code.co_varnames[0]]).__name__
    return ConfigError(f"{cls} cannot be made with {given or 'these settings'}: {reason(root)} {untyped}{HINT}")


def _untyped_settings(error: BaseException) -> str:
    """What to do where jsonargparse called something whose arguments have no types: those it hands on unchecked."""
    steps = [step.tb_frame for step in frames(error)]
    calls = [k for k, frame in enumerate(steps[:-1]) if _is_in(frame.f_globals.get("__name__", ""), ("jsonargparse",))]
    if not calls:
        return ""
    called = steps[calls[-1] + 1]
    code, found = called.f_code, called.f_locals
    functions = [called.f_globals.get(code.co_name)]
    if code.co_name == "__init__":
        functions = [cls.__dict__.get("__init__") for cls in type(found[code.co_varnames[0]]).__mro__]
    function = next((one for one in functions if getattr(one, "__code__", None) is code), None)
    untyped = [name for name in _arguments(called) if function and name not in function.__annotations__]
    if not untyped:
        return ""
    values = ", ".join(f"{name}={found.get(name)}" for name in untyped)
    return (
        f"What {code.co_qualname.removesuffix('.__init__')} is given as {values} was not checked, because it has no "
        f"type there: write `{untyped[0]}: int`, or what it is, and the command line says what is missing or wrong. "
    )


def _arguments(frame: FrameType) -> tuple[str, ...]:
    """Names of the arguments of the function that runs in a frame, without `self`."""
    code = frame.f_code
    names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    return names[1:] if code.co_name == "__init__" else names


def reason(error: BaseException) -> str:
    """The error's message in one line that ends a sentence."""
    message = error.args[0] if isinstance(error, KeyError) and error.args else error
    text = " ".join(str(message).split()) or type(error).__name__
    if isinstance(error, ArithmeticError):
        *_, last = frames(error)
        text = f"{last.tb_frame.f_code.co_qualname}: {text}"
    return text if text.endswith((".", "!", "?")) else f"{text}."


def in_one_line(run: Callable[[], Any]) -> Any:
    """Run a command. An error that the user can mend ends it with one line and exit status 1, or 2 for its usage."""
    try:
        return run()
    except Exception as error:
        cause = None if os.environ.get(TRACEBACK) else user_error_behind(error)
        if cause is None:
            raise
        if cause.status == 1:
            raise SystemExit(f"error: {cause}") from None
        sys.stderr.write(f"error: {cause}\n")
        raise SystemExit(cause.status) from None


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, that from which it was raised, and so on."""
    while error is not None:
        yield error
        error = error.__cause__


def frames(error: BaseException) -> Iterator[TracebackType]:
    """From where it was caught to where it was raised."""
    step = error.__traceback__
    while step is not None:
        yield step
        step = step.tb_next


def _makes_folders(error: OSError) -> bool:
    """A folder could not be made because there is none above it, as in /proc. Other missing files are asked for."""
    *_, last = [None, *frames(error)]
    return error.errno == errno.ENOENT and last is not None and last.tb_frame.f_code.co_name in ("makedirs", "mkdir")


def _is_in(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def sizes_of_data(owner: object, **sizes: tuple[int | None, str]) -> list[int]:
    """Sizes that are the data's, by name, each with what it is in words. Raises `ConfigError` where one is None."""
    values = [value for value, _ in sizes.values()]
    given = [value for value in values if value is not None]
    if len(given) < len(values):
        needed = ", and ".join(f"{name}, {what}" for name, (_, what) in sizes.items())
        found = f"they are {' and '.join(map(str, values))}" if len(values) > 1 else "it is None"
        raise ConfigError(f"{type(owner).__name__} needs {needed} ({found}); take the data's.")
    return given
