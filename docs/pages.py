"""A hook of mkdocs: pages made from the repository: front page, families of algorithms, tutorials and reference.

A tutorial is a script: `docs/tutorials/<name>.py`. Blocks of comments are its text, everything else is shown as code.
"""

import ast
import json
import posixpath
import re
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

import yaml
from mkdocs.structure.files import File, Files

from lightning_meta.results.table import Results, short_table

ROOT = Path(__file__).parents[1]
ALGORITHMS = ROOT / "lightning_meta" / "algorithms"
EXPERIMENTS = ROOT / "configs" / "experiment"
PEERS = "<!-- made by docs/pages.py from docs/peers.json -->"
REFERENCE = ("core", "modules", "backbones", "datamodules", "worlds", "reports")


def on_files(files: Files, config: Any) -> Files:
    made = {"index.md": from_root("README.md"), "contributing.md": from_root("CONTRIBUTING.md")}
    for package in sorted(path.parent for path in ALGORITHMS.glob("*/__init__.py")):
        made[f"algorithms/{package.name}.md"] = family(package)
    for script in sorted((ROOT / "docs" / "tutorials").glob("*.py")):
        made[f"tutorials/{script.name.replace('.py', '.md')}"] = tutorial(script.read_text())
    for package in REFERENCE:
        made[f"reference/{package}.md"] = reference(package)
    for name, text in made.items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Links that leave docs/ lead to the page made of their file, or become its name."""
    markdown = markdown.replace(PEERS, peers())
    folder = posixpath.dirname(page.file.src_uri)
    pages = {"../README.md": "index.md", "../CONTRIBUTING.md": "contributing.md"}

    def resolved(link: re.Match[str]) -> str:
        text, target = link[1], link[2]
        place = posixpath.normpath(posixpath.join(folder, target.split("#")[0]))
        if "://" not in target and re.fullmatch(r"tutorials/\w+\.py", place):  # the page made of a script
            return f"[{text}]({target.replace('.py', '.md')})"
        if "://" in target or not place.startswith("../"):
            return link[0]
        return f"[{text}]({posixpath.relpath(pages[place], folder or '.')})" if place in pages else text

    return re.sub(r"(?<!!)\[([^\]]+)\]\(([^)\s]+)\)", resolved, markdown)


def from_root(name: str) -> str:
    """A page of the repository's root, with its links as seen from docs/."""
    text = re.sub(r"\(docs/tutorials/(\w+)\.py\)", r"(docs/tutorials/\1.md)", (ROOT / name).read_text())
    return re.sub(
        r"\]\((?!https?:|#)([^)]+)\)",
        lambda link: f"]({link[1].removeprefix('docs/')})" if link[1].startswith("docs/") else f"](../{link[1]})",
        text,
    )


def family(package: Path) -> str:
    """One section for each algorithm: what its file says of it, how to run it, and its results."""
    title = docstring(package / "__init__.py").split(":")[0].rstrip(".")
    files = sorted(path for path in package.glob("*.py") if path.name != "__init__.py")
    return "\n\n".join([f"# {title}", *(section(path) for path in files)])


def peers() -> str:
    """For each library a table: what it calls a method, the class here, and its config's name."""
    here = {name: path for path in sorted(ALGORITHMS.glob("*/*.py")) for name in classes_of(path)}
    configs: dict[str, str] = {}
    for path in sorted((ROOT / "configs" / "model").glob("*.yaml")):
        name = yaml.safe_load(path.read_text())["class_path"].rpartition(".")[2]
        if name not in configs or path.stem == here[name].stem:  # of several, the one that is called as the file
            configs[name] = path.stem
    parts = []
    for library, methods in json.loads((ROOT / "docs" / "peers.json").read_text()).items():
        rows = [f"## {library}", "", "| its name | here | `--model` |", "|---|---|---|"]
        for theirs, ours in methods.items():
            name, note = (ours[0], ", ".join(ours[1:])) if ours else ("", "")
            link = f"[{name}](algorithms/{here[name].parent.name}.md)" if ours else "no"
            rows.append(f"| {theirs} | {link}{f', {note}' if note else ''} | {f'`{configs[name]}`' if ours else ''} |")
        parts.append("\n".join(rows))
    return "\n\n".join(parts)


def classes_of(path: Path) -> list[str]:
    return [node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.ClassDef)]


@cache
def measured() -> Results:
    return Results(EXPERIMENTS)


def section(path: Path) -> str:
    head, _, rest = docstring(path).partition("\n")
    name, _, summary = head.partition(": ")
    parts = [f"## {name}", summary[:1].upper() + summary[1:], rest.strip(), f"File: `{path.relative_to(ROOT)}`"]
    classes = classes_of(path)
    folder = EXPERIMENTS / path.parent.name
    mine = [name for name, result in measured().over_seeds.items() if result.get("algorithm") in classes]
    experiments = sorted(folder.glob(f"{path.stem}_*.yaml"), key=lambda file: (len(file.stem), file.stem))
    if experiments:
        command = f"python -m lightning_meta fit --config {experiments[0].stem}"
        parts.append(f"```bash\n{command}\n```")
    if mine:
        parts.append(short_table(measured(), mine))
    return "\n\n".join(part for part in parts if part)


def tutorial(script: str) -> str:
    """A script as a page. Blocks stand between empty lines; those of comments alone are text."""

    def is_text(block: str) -> bool:
        return all(line.startswith("#") for line in block.splitlines())

    parts = []
    for text, blocks in groupby(re.split(r"\n\n(?=[^\n ])", script.strip()), is_text):
        block = "\n\n".join(blocks)
        parts.append(re.sub("^# ?", "", block, flags=re.MULTILINE) if text else f"```python\n{block.strip()}\n```")
    return "\n\n".join(parts)


def reference(package: str) -> str:
    return f"# {package}\n\n::: lightning_meta.{package}\n    options:\n      show_root_heading: false\n"


def docstring(path: Path) -> str:
    return ast.get_docstring(ast.parse(path.read_text())) or ""
