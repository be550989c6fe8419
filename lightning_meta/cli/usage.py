"""What the command line says of itself, and of a command that it cannot parse."""

import re
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from inspect import isclass
from pathlib import Path
from pkgutil import resolve_name

from lightning_meta.cli.names import KINDS, configs, first_sentence_of, named, suggestion

PROGRAM = "python -m lightning_meta"
TRAINER = {  # commands of the Trainer, and what they do
    "fit": "Meta-train, then test the best checkpoint on the frozen test episodes.",
    "validate": "Evaluate a checkpoint on the frozen validation episodes.",
    "test": "Evaluate a checkpoint on the frozen test episodes.",
}
TOOLS = (
    "predict", "serve", "play", "export", "reproduce", "sweep", "dashboard", "compare", "results", "list", "benchmark",
)  # fmt: skip
# What people call them who come from elsewhere.
OTHER_WORDS = {
    "train": "fit",
    "eval": "test",
    "evaluate": "test",
    "infer": "predict",
    "ls": "list",
    "bench": "benchmark",
}
# The last key of a setting that is a class or a file, and what `list` calls its values.
KIND = {
    "config": "experiments", "model": "algorithms", "data": "data", "images": "data", "backbone": "backbones",
    "trainer": "trainer", "logger": "logger",
}  # fmt: skip
CONFIG_KEYS = ("model", "data", "trainer", "seed_everything", "ckpt_path", "name")
TYPES = {
    "int": "a whole number", "float": "a number", "bool": "true or false", "str": "a word",
    "tuple": "a list, such as [1,5]", "list": "a list, such as [1,5]",
    **dict.fromkeys(("dict", "Mapping"), "names with values, such as '{name: 1}', a space behind the colon"),
}  # fmt: skip
SETTINGS = """\
settings that are changed most:
  --config NAME             the experiment: a name of `list experiments`, or a file
  --model NAME              another algorithm: a name of `list algorithms`, a class or a file
  --model.KEY VALUE         a setting of it: --model.inner_lr 0.1, --model.backbone ResNet12
  --model.backbone NAME     of `list backbones`, or any network: torchvision.models.resnet18, my_file.MyNet
  --data NAME               other data: a name of `list data`, a class or a file
  --data.KEY VALUE          a setting of them: --data.n_way 20, --data.k_shot 5, --data.root FOLDER
  --trainer.max_steps N     how long to train, in outer steps
  --seed_everything N       of the training (0); episodes have their own: --data.seed
  --seeds N,N,...           of fit: trains each seed, and reports mean and interval over seeds
  --ckpt_path PLACE         best or last, of the experiment's newest run; a checkpoint; or a run by folder or name: its
                            last one for fit, its best one for tests
  --trainer.logger NAME     {loggers}
  --trainer.accelerator cpu|gpu, --trainer.devices N, --trainer.strategy ddp, --trainer.precision bf16-mixed
  --trainer debug           a few steps on the CPU that look for mistakes
  --name NAME               of the run's folder, runs/NAME/version_<n>

what settings there are, and what they are:
  {program} {command} --model.help NAME           those of an algorithm; --data.help NAME, of data
  {program} {command} --config NAME --print_config  all of an experiment

All options, those of the Trainer last:
"""


def command_help(command: str) -> str:
    """What stands above the options of a command of the Trainer."""
    usage = f"usage: {PROGRAM} {command} --config NAME [--KEY VALUE ...]"
    *loggers, last = named("logger")
    settings = SETTINGS.format(program=PROGRAM, command=command, loggers=f"{', '.join(loggers)} or {last}")
    return f"{usage}\n\n{TRAINER[command]}\n\n{settings}"


def benchmark_help(benchmarks: Mapping[str, str]) -> str:
    """What each benchmark measures, by the first sentence of its module."""
    width = max(map(len, benchmarks)) + 2
    lines = [f"  {name:<{width}}{first_sentence_of(module)}" for name, module in benchmarks.items()]
    usage = f"usage: {PROGRAM} benchmark NAME [OPTION ...]"
    more = f"{PROGRAM} benchmark NAME --help names the options of one."
    return "\n".join([usage, "", "Measure speed, memory and precision.", "", "names:", *lines, "", more])


def unknown_command(word: str) -> str:
    """What to say of a first word that is no command."""
    known = (*TRAINER, *TOOLS)
    meant = f" Did you mean {OTHER_WORDS[word]}?" if word in OTHER_WORDS else suggestion(word, known)
    return f"there is no command {word!r}.{meant} Commands: {', '.join(known)}; {PROGRAM} --help says what they do."


def explain(message: str, command: str, options: Sequence[str]) -> str:
    """What jsonargparse says of a wrong command, in one line that names the setting, and what was meant perhaps.

    Args:
        message: jsonargparse's, which tells of all the types it has tried.
        command: `fit`, ..., or nothing.
        options: of the command, with their dashes.
    """
    classes = re.findall(r"Problem with given class_path '([^']+)'", message)
    keys = ".".join(dict.fromkeys(re.findall(r'Parser key "([\w.]+)"', message)))
    help_of = f"--{keys.partition('.')[0]}.help {classes[0]}" if classes and keys.startswith(("model", "data")) else ""
    see = f"All that there are: {PROGRAM} {command}{help_of or '--help'}"
    if match := re.search(r"invalid choice: '([^']+)'", message):
        return unknown_command(match[1])
    if match := re.search(r"Option '([^']+)' is not accepted", message):
        cls = re.findall(r"Problem with given class_path '([^']+)'", message[: match.start()])[-1]
        place = ".".join(dict.fromkeys(re.findall(r'Parser key "([\w.]+)"', message[: match.start()])))
        name = cls.rpartition(".")[-1]
        return f"{place}: '{match[1]}' is not accepted by {name}.{suggestion(match[1], settings_of(cls))} {see}"
    if match := re.search(r"unrecognized arguments: --([\w.]+)", message):
        if classes:
            return f"{keys}: '{match[1]}' is not known.{suggestion(match[1], settings_of(classes[-1]))} {see}"
        known = [option.removeprefix("--") for option in options]
        return f"option --{match[1]} is not known.{suggestion(match[1], known, '--')} {see}"
    if match := re.search(r"Subcommand '\w+' does not accept option '([\w.]+)'", message):
        return f"a config has no key {match[1]!r}.{suggestion(match[1], CONFIG_KEYS)} {see}"
    if match := re.search(r"arguments are required: (?:\S+, )*(\w+)\.(?:data|model)\b", message):
        return (
            f"{match[1]} needs an experiment, or a model and data. For example: {PROGRAM} {match[1]} --config "
            f"maml_glyphs_5w1s. All: {PROGRAM} list experiments"
        )
    if classes and (match := re.search(r"arguments are required: (.+)", message)):
        return f"{keys}: {classes[-1]} needs {match[1]}: --{keys}.{match[1].split(',')[0]} VALUE"
    if match := NO_SUCH.search(message):
        before = re.findall(
            r"(?:Problem with given class_path '|Expected a path but )([^' ]+)", message[: match.start()]
        )
        name = before[-1] if match["of_class"] else next(filter(None, match.groups()))
        kind = KIND.get(keys.rpartition(".")[-1])
        if classes and kind and name in named(kind):
            return f"{keys}={name} is not of the kind that {classes[-1].rpartition('.')[-1]} takes. {see}"
        return no_such(keys, name)
    got = re.search(r"(?:Got value|Given value): (.*)", message)
    place = f"{keys}{f'={got[1]}' if got else ''}"
    if match := re.search(r"does not conform to restriction v(\S+)", message):
        return f"{place} must be {match[1]}."
    types = re.findall(r"Expected an? (.+?)(?:\. Got value: .*)?$", message, re.MULTILINE)
    if wanted := dict.fromkeys(text for one in types if (text := in_words(one))):
        return f"{place} must be {' or '.join(wanted)}."
    return " ".join(line.strip() for line in message.splitlines() if not line.strip().startswith(NOISE))


# Lines of jsonargparse's messages that explain its search, not the mistake.
NOISE = ("Does not validate", "- Does not validate", "Subtypes: ", "- Expected a <class 'NoneType'>", "Given value")
NO_SUCH = re.compile(
    r"Expected a dot import path string: (\S+)|(?P<of_class>No module named|module '\S+' has no attribute)"
    r"|Unable to load config '([^']+)'|File does not exist: '([^']+)'"
)


def no_such(keys: str, given: str) -> str:
    """What to say where neither a file nor a class has the name that was given."""
    path = Path(given)
    given = str(path.relative_to(Path.cwd())) if path.is_absolute() and path.is_relative_to(Path.cwd()) else given
    kind = KIND.get(keys.rpartition(".")[-1], "")
    module, dot, name = given.rpartition(".")
    package = module.partition(".")[0]
    if package.isidentifier() and path.suffix not in (".yaml", ".yml") and not find_spec(package):
        return (
            f"{keys}={given}: there is no package or file called {package} here; start the command in the folder that "
            "has it, or install it."
        )
    if kind:
        known = named(kind)
        folder = KINDS.get(kind, (kind, None))[0]
        if folder and given in configs(folder):  # on the command line it would have been found
            file = f"configs/{folder}/{given}.yaml"
            return f"{keys}={given}: in a file, a config is named by its path from there, to {file}."
        elsewhere = path.suffix != ".yaml" and not module.startswith("lightning_meta")  # ours have short names
        near = suggestion(name, named_in(module), module + dot) if elsewhere else ""
        near = near or suggestion(path.stem if path.suffix == ".yaml" else name, known)
        all_names = f" All: {PROGRAM} list {kind}" if kind in KINDS else f" There are: {', '.join(known)}."
    else:
        near, all_names = suggestion(name, named_in(module), module + dot), ""
    return f"{keys}={given}: no file, class or name of a config is called so.{near}{all_names}"


def named_in(module: str) -> list[str]:
    """The classes and functions of a module by name; nothing where there is no such module."""
    try:
        return [name for name, value in vars(resolve_name(module)).items() if callable(value) and name[0] != "_"]
    except (ImportError, AttributeError, ValueError):
        return []


def settings_of(class_path: str) -> list[str]:
    """What a class or function takes, and what its bases take that it hands on."""
    from jsonargparse import ArgumentParser  # not by `list` and `--help`, which are quick

    made = resolve_name(class_path) if "." in class_path else None
    if made is None:
        return []
    parser = ArgumentParser()
    (parser.add_class_arguments if isclass(made) else parser.add_function_arguments)(made, fail_untyped=False)
    return [action.dest for action in parser._actions if action.dest not in ("help", "print_config")]


def in_words(python_type: str) -> str:
    """A type as people say it; nothing of None."""
    if choices := re.search(r"Literal\[(.+)\]", python_type):
        return f"one of {choices[1].replace(chr(39), '')}"
    name = re.sub(r"^<class '(.+)'>$", r"\1", python_type).rpartition(".")[-1]
    return "" if name == "NoneType" else TYPES.get(name, f"of the type {name}" if name[:1].isalpha() else python_type)
