"""What there is, by name: algorithms, data, experiments, backbones, sweeps. Names stand where paths of configs do.

python -m lightning_meta list [KIND | PATTERN ...]
"""

import argparse
import ast
import difflib
import logging
import os
import re
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import NamedTuple

from lightning_meta.checkpoints import RUNS, folders_named
from lightning_meta.errors import ConfigError

log = logging.getLogger(__name__)
PACKAGE = Path(__file__).parents[1]
GROUP = "seeds.json"  # in the folder of an experiment whose seeds were trained by `fit --seeds`
# Options whose value may be the name of a file in a folder of configs/.
FOLDER = {
    "--config": "experiment", "-c": "experiment", "--model": "model", "--data": "data", "--trainer": "trainer",
    "--trainer.logger": "logger",
}  # fmt: skip
# What is listed: the folder of its configs, and the package of its classes.
KINDS = {
    "algorithms": ("model", "algorithms"),
    "data": ("data", "datamodules"),
    "experiments": ("experiment", None),
    "backbones": (None, "backbones"),
    "sweeps": ("sweep", None),
}
PAPER = re.compile(r'(?P<authors>[A-Z][^:"]*?): "[^"]+" \((?P<year>\d{4})\)(?:, (?P<arxiv>arXiv:[\d.]*\d))?')
IN_BRACKETS = re.compile(r"\(([^()]*arXiv:[\d.]*\d)[^()]*\)")


class Entry(NamedTuple):
    """A line of the list: what it is called, the paper, the family, and what it is in a few words."""

    name: str
    paper: str
    family: str
    what: str


def by_name(folder: Path) -> dict[str, Path]:
    """The YAML files of a folder and of those within it, in the order of their names.

    Raises:
        ConfigError: two files have one name.
    """
    files: dict[str, Path] = {}
    for path in sorted(folder.rglob("*.yaml"), key=lambda path: (path.stem, path)):
        if path.stem in files:
            raise ConfigError(f"{files[path.stem]} and {path} have one name; rename one of them.")
        files[path.stem] = path
    return files


def configs(folder: str) -> dict[str, Path]:
    """The files of `configs/<folder>/` by name: of the working folder, or else of this clone or installed package."""
    places = [place / "configs" / folder for place in (Path(), PACKAGE.parent, PACKAGE)]
    return by_name(next((place for place in places if place.is_dir()), places[0]))


def found(folder: str, name: str) -> Path:
    """A file, or the config of `configs/<folder>/` of that name. Raises `ConfigError` where there is neither."""
    if Path(name).is_file():
        return Path(name)
    known = configs(folder)
    if (path := known.get(name) or _moved(folder, name, known)) is None:
        few = f" There are: {', '.join(known)}." if 0 < len(known) <= 10 else ""
        raise ConfigError(f"{name} is no file and no name of one in configs/{folder}.{suggestion(name, known)}{few}")
    return path


def _moved(folder: str, path: str, known: Mapping[str, Path]) -> Path | None:
    """Where the config is that was `configs/<folder>/<name>.yaml` once; results and notes of users say so."""
    place = Path(path)
    new = known.get(place.stem) if place.suffix == ".yaml" and place.parts[-3:-1] == ("configs", folder) else None
    if new:
        log.info("%s is now %s; '%s' works everywhere.", path, new, place.stem)
    return new


def with_paths(words: Iterable[str]) -> list[str]:
    """The words of a command with paths in place of names of configs. A file or a class of the same name goes first."""
    paths: list[str] = []
    option = ""
    for word in words:
        key, equals, value = word.partition("=")
        if word.startswith("-"):
            option = key
            paths.append(f"{key}={_with_path(key, value)}" if equals else word)
        else:
            paths.append(_with_path(option, word))
            option = ""
    return paths


def _with_path(option: str, value: str) -> str:
    if option in ("--model.help", "--data.help"):
        path = configs(option[2:].removesuffix(".help")).get(value)
        return _class_path(path) if path else value
    if option not in FOLDER or Path(value).is_file():
        return value
    known = configs(FOLDER[option])
    return str(known.get(value) or _moved(FOLDER[option], value, known) or value)


def run_folder(place: Path, having: str = "config.yaml") -> Path:
    """The folder of a run: as it is named, or the newest one with such a file of an experiment's, by its name too.

    Of an experiment that has no runs of its own it is one of `reproduce`'s.

    Args:
        place: of the run or of the experiment, or its name.
        having: the file's name, or a pattern such as `**/*.ckpt`.
    """
    if (place / "config.yaml").is_file():
        return place
    for folder in folders_named(place):
        versions = [
            (int(version[1]), path)
            for path in folder.glob("version_*")
            if (version := re.fullmatch(r"version_(\d+)", path.name)) and any(path.glob(having))
        ]
        if versions:
            return max(versions)[1]
    return place


def runs_like(place: Path) -> str:
    """`Did you mean ...?`, of the experiments that have runs, or nothing where no name is near."""
    ran = {path.parent.parent for path in RUNS.glob("**/version_*/config.yaml")}
    near = {folder.name: folder for folder in sorted(ran)}
    return suggestion(experiment_of(str(place)).rpartition("/")[2], near)


def experiment_of(name: str) -> str:
    """`maml` of `maml/seed_3`, which is how `fit --seeds` names the folders of one experiment."""
    return re.sub(r"/seed_\d+$", "", name)


def suggestion(name: str, known: Iterable[str], prefix: str = "") -> str:
    """`Did you mean ...?`, each name after the prefix, or nothing where no name is near."""
    by_letters = {one.lower(): one for one in reversed([*known])}  # of protonet and ProtoNet, the first
    wanted = name.lower()
    near = difflib.get_close_matches(wanted, by_letters, n=3, cutoff=0.7)
    near += [one for one in by_letters if len(wanted) > 2 and (wanted in one or one.startswith(wanted))][:3]
    near = near or difflib.get_close_matches(wanted, by_letters, n=3, cutoff=0.5)
    meant = [prefix + by_letters[one] for one in dict.fromkeys(near)]
    return f" Did you mean {', '.join(meant[:-1]) + ' or ' if meant[1:] else ''}{meant[-1]}?" if meant else ""


def named(kind: str) -> list[str]:
    """All names of a kind that the command line takes: of configs and of classes."""
    folder, package = KINDS.get(kind, (kind, None))
    return [*(configs(folder) if folder else {}), *(exported(package) if package else {})]


def entries(kind: str) -> Iterator[Entry]:
    """What there is of a kind, in the order of the names."""
    folder, package = KINDS[kind]
    classes = exported(package) if package else {}
    if not folder:
        networks = {name for name, source in classes.items() if source.file.stem != "base"}
        yield from (of_class(name) for name in sorted(networks) if any("Backbone" in b for b in classes[name].bases))
        return
    algorithms = {} if package else {entry.name: entry for entry in entries("algorithms")}
    for name, path in configs(folder).items():
        header = path.read_text().partition("\n")[0].lstrip("# ").strip()
        if package:
            cls = _class_path(path).rpartition(".")[-1]
            of = of_class(cls) if cls in classes else NOTHING
        else:
            model = re.search(r"^model: .*/(\w+).yaml", path.read_text(), re.MULTILINE)
            of = algorithms.get(model[1], NOTHING) if model else NOTHING
        arxiv = re.search(r"arXiv:[\d.]*\d", header)
        yield Entry(name, of.paper or (arxiv[0] if arxiv else ""), of.family, _first_sentence(header))


NOTHING = Entry("", "", "", "")


class Source(NamedTuple):
    """Where a class is written, what from, and what it says of itself."""

    file: Path
    bases: list[str]
    of_module: str
    of_class: str


@cache
def exported(package: str) -> dict[str, Source]:
    """The public classes of a package of ours, read without importing them: that takes seconds.

    Those of its `__all__`; or of a package that finds its modules by itself, as algorithms do, all of them.
    """
    classes = {}
    for path in sorted((PACKAGE / package).rglob("*.py")):
        tree = ast.parse(path.read_text())
        for node in tree.body:
            if isinstance(node, ast.ClassDef):
                classes[node.name] = Source(
                    path, [ast.unparse(base) for base in node.bases], ast.get_docstring(tree) or "",
                    ast.get_docstring(node) or "",
                )  # fmt: skip
    names: set[str] = set()
    for node in ast.parse((PACKAGE / package / "__init__.py").read_text()).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            names = set(ast.literal_eval(node.value))
    return {name: source for name, source in classes.items() if (name in names if names else _is_module(name, classes))}


def _is_module(name: str, classes: dict[str, Source]) -> bool:
    """Whether a class derives from one of `lightning_meta.modules`, whose names end so."""
    bases = [base.partition("[")[0] for base in classes[name].bases] if name in classes else []
    return any(("." not in base and base.endswith("Module")) or _is_module(base, classes) for base in bases)


def of_class(name: str) -> Entry:
    """What one of our classes says of itself: its own words first, then those of its file."""
    source = next(found[name] for _, package in KINDS.values() if package and name in (found := exported(package)))
    # Of several classes and papers in a file, which belong together it does not say.
    beside = [other for other in found.values() if other.file == source.file]
    of_module = (
        source.of_module if len(beside) == 1 or len(PAPER.findall(source.of_module)) < 2 else ""
    )  # whose papers?
    texts = [" ".join(text.split()) for text in (source.of_class, of_module)]
    papers = [match for text in texts for match in (PAPER.search(text), IN_BRACKETS.search(text)) if match]
    paper = ""
    if papers and papers[0].re is PAPER:
        first, *others = papers[0]["authors"].rpartition(". ")[-1].removeprefix("As in ").split(", ")
        arxiv = papers[0]["arxiv"]
        paper = f"{first}{' et al.' if others else ''} {papers[0]['year']}{f', {arxiv}' if arxiv else ''}"
    elif papers:
        paper = papers[0][1]
    folder = source.file.parent
    family = _first_sentence(ast.get_docstring(ast.parse((folder / "__init__.py").read_text())) or "").partition(":")[0]
    family = family if folder.parent != PACKAGE else ""  # of the folders within a package
    return Entry(name, paper, family, _first_sentence(source.of_class or source.of_module))


def first_sentence_of(module: str) -> str:
    """What a module of ours says of itself first, `benchmark.speed` say, without importing it."""
    path = PACKAGE.joinpath(*module.split(".")).with_suffix(".py")
    return _first_sentence(ast.get_docstring(ast.parse(path.read_text())) or "")


def _first_sentence(text: str) -> str:
    return re.split(r"(?<=[a-z)\]])(?<!et al)\.(?:\s|$)", " ".join(text.split()), maxsplit=1)[0].rstrip(".")


def _class_path(path: Path) -> str:
    match = re.search(r"^class_path: *(\S+)", path.read_text(), re.MULTILINE)
    return match[1] if match else ""


def models_of(cls: type) -> list[str]:
    """The configs of `configs/model/` whose class it is."""
    package, name = cls.__module__.partition(".")[0], cls.__name__
    paths = {config: _class_path(path) for config, path in configs("model").items()}
    return [
        config for config, path in paths.items() if (path.partition(".")[0], path.rpartition(".")[2]) == (package, name)
    ]


def listing(kinds: Sequence[str], patterns: Sequence[str], width: int | None) -> str:
    """A table for each kind. Patterns choose names; lines are cut to the width, if there is one."""
    blocks = []
    for kind in kinds:
        chosen = [one for one in entries(kind) if not patterns or any(fnmatch(one.name, p) for p in patterns)]
        if not chosen:
            continue
        widths = [max(len(one[column]) for one in chosen) for column in range(3)]
        lines = [
            "  ".join([*(one[c].ljust(widths[c]) for c in range(3) if widths[c]), one.what]).rstrip() for one in chosen
        ]
        blocks.append("\n".join([f"{kind} ({len(chosen)})", *(f"  {line}"[:width] for line in lines)]))
    if not blocks:
        known = [one.name for kind in kinds for one in entries(kind)]
        raise ConfigError(
            f"nothing is named {' or '.join(patterns)}.{suggestion(patterns[0], [*known, *KINDS])} Kinds: "
            f"{', '.join(KINDS)}; all names: python -m lightning_meta list"
        )
    return "\n\n".join(blocks)


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        "python -m lightning_meta list",
        description="List what there is, one on a line: name, paper, family, what it is.",
        epilog="Each name stands where a path would do: fit --config maml_glyphs_5w1s --model protonet --data omniglot",
    )
    parser.add_argument(
        "what", nargs="*", metavar="KIND | PATTERN", help=f"{', '.join(KINDS)}; or names such as 'protonet*' (all)"
    )
    given = parser.parse_args(arguments)
    kinds = [word for word in given.what if word in KINDS]
    patterns = [word for word in given.what if word not in KINDS]
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    try:
        print(listing(kinds or [*KINDS], patterns, width), flush=True)
    except BrokenPipeError:  # as by `list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
