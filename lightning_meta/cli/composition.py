"""Configs composed by reference: `model: ../model/maml.yaml`, then `model.init_args.inner_lr: 0.1`.

jsonargparse reads files named on the command line, but loses a reference when a dotted key of the same file refines it.
So a config file is resolved here, before it is parsed. It also takes the options of a command one after the other, so
that `--data FILE` would undo what stands before it; here the order does not matter.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from lightning_meta.cli.networks import KEY, WRAPPED, is_foreign, of_wrapped, with_wrapped
from lightning_meta.errors import ConfigError

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # eight times as fast where PyYAML has it


def compose(path: Path, named_in: tuple[Path, ...] = ()) -> Any:
    """Load a YAML file; follow references, then apply dotted keys in their order.

    A string that ends in `.yaml` is replaced by the content of that file, relative to the file that names it. A dotted
    key replaces the value at that place, as a whole; one that ends in `+` appends to the list there. `named_in` are the
    files that led to this one.
    """
    try:
        content = yaml.load(path.read_text(), LOADER)
    except OSError as error:
        raise ConfigError(f"config file {path}: {error.strerror}.") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"config file {path} is not valid YAML: {error}") from error
    content = _follow(content, (*named_in, path.resolve()))
    return with_wrapped(_expand(content, path)) if isinstance(content, dict) else content


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
        if last.endswith("+"):
            last = last.removesuffix("+")
            value = [*(place.get(last) or []), *(value if isinstance(value, list) else [value])]
        place[last] = value
    return config


# ---- the command line -----------------------------------------------------------------------------------------------

PARTS = ("data", "model")
SYNTAX = ("class_path", "init_args")  # words of a key that `--data.n_way` leaves out


class Option(NamedTuple):
    """One option of a command and its values: `--data.init_args.n_way 5` has the place (data, n_way)."""

    words: list[str]

    @property
    def key(self) -> str:
        return self.words[0].partition("=")[0].removeprefix("--")

    @property
    def place(self) -> tuple[str, ...]:
        return tuple(word for word in self.key.rstrip("+").split(".") if word not in SYNTAX)

    @property
    def value(self) -> str:
        _, equals, value = self.words[0].partition("=")
        return value if equals else " ".join(self.words[1:])


def options_of(words: Sequence[str]) -> list[Option]:
    options: list[Option] = []
    for word in words:
        if word.startswith("--") or not options:
            options.append(Option([word]))
        else:
            options[-1].words.append(word)
    return options


def in_order(words: Sequence[str]) -> list[str]:
    """Options as they are to be applied: config files, then data and model from the whole to its parts, then others.

    So what is said of a part wins, wherever it stands: `--data.n_way 5 --data FILE` is `--data FILE --data.n_way 5`.
    """
    options = options_of(words)
    appended = [option.place for option in options if option.key.endswith("+")]  # to a list: what follows belongs to it

    def rank(option: Option) -> tuple[int, int]:
        if option.place[0] not in PARTS:
            return (0 if option.key == "config" else 2), 0
        whole = [len(place) for place in appended if option.place[: len(place)] == place]
        return 1, min([len(option.place), *whole])

    return [word for option in sorted(options, key=rank) for word in option.words]


def around_networks(words: Sequence[str]) -> list[str]:
    """Options with `Wrapped` around foreign networks (see `networks`)."""
    foreign: dict[tuple[str, ...], str] = {}  # the places of backbones that are one, and their keys
    options = options_of(words)
    for option in options:
        if option.place[-1:] == (KEY,) and is_foreign(option.value):
            foreign[option.place] = option.key.removesuffix(".class_path")
    found: list[str] = []
    for option in options:
        place = next((place for place in foreign if option.place[: len(place)] == place), None)
        inner = option.place[len(place) :] if place else ()
        if place and not inner:
            found += [f"--{foreign[place]}", WRAPPED, f"--{foreign[place]}.network", option.value]
        elif place and inner[0] not in of_wrapped():
            found += [f"--{foreign[place]}.network.{'.'.join(inner)}", option.value]
        else:
            found += _with_networks_of_its_file(option)
    return found


def _with_networks_of_its_file(option: Option) -> list[str]:
    """The words of an option; of a file that names a foreign network, its content with `Wrapped` around that."""
    if option.key not in PARTS or not option.value.endswith(".yaml") or not (file := Path(option.value)).is_file():
        return option.words
    content = compose(file)
    as_it_stands = yaml.load(file.read_text(), LOADER)
    return option.words if content == as_it_stands else [f"--{option.key}", json.dumps(content)]


class Exchange(NamedTuple):
    """What became of the settings of the class `former`, one line for those that were kept and one for the others."""

    former: str
    notes: list[str]


def exchanges(words: Sequence[str], files: Iterable[Path], final: Mapping[str, Any]) -> list[Exchange]:
    """Which settings of the experiment an option such as `--data FILE` has kept, and which it has dropped.

    Args:
        words: options of the command.
        files: the experiment's, of which the last that has the part counts.
        final: the config that came out, as plain values.
    """
    options, composed = options_of(words), [content for file in files if isinstance(content := compose(file), dict)]
    made = []
    for part in PARTS:
        chosen = [option.value for option in options if option.key in (part, f"{part}.class_path")]
        former = [content[part] for content in composed if part in content]
        if not (chosen and former):
            continue
        explicit = {".".join(option.place[1:]) for option in options if option.place[0] == part}
        new = _settings(compose(Path(chosen[-1]))) if chosen[-1].endswith(".yaml") else {}
        found = _settings(final[part])
        kept, dropped = [], []
        for name, value in _settings(former[-1]).items():
            if name in explicit or (name in new and new[name] == value):
                continue
            if name in found and found[name] == value:
                kept.append(f"{name}={value}")
            else:
                dropped.append(f"{name}={value}" + (f" (now {found[name]})" if name in found else ""))
        notes = [
            f"--{part} {chosen[-1]}: of the experiment's settings it {verb} {', '.join(settings)}."
            for verb, settings in (("keeps", kept), ("drops", dropped))
            if settings
        ]
        made.append(Exchange(class_name(former[-1]), notes))
    return made


def class_name(part: Any) -> str:
    """Of the data or the model in a config, which may say no more than the class."""
    return str(part["class_path"] if isinstance(part, dict) else part).rsplit(".", 1)[-1]


def _settings(part: Any, place: tuple[str, ...] = ()) -> dict[str, Any]:
    """Of the data or the model in a config: plain values by place, `backbone.hidden`, but not its class."""
    if not isinstance(part, dict):
        return {}
    found: dict[str, Any] = {}
    for key, value in part.items():
        inner = place if key in SYNTAX else (*place, str(key))
        if isinstance(value, dict) and value:
            found |= _settings(value, inner)
        elif key == "class_path" and place:
            found[".".join(place)] = class_name(part)
        elif key not in SYNTAX:
            found[".".join(inner)] = value
    return found
