"""Write the numbers in README and docs anew, from the result files.

python -m lightning_meta results [--check] [PAGE ...]

A table stands between two comments. The first one says which results it has, by the names of their files, or `all`:

    <!-- results: protonet_omniglot_5w1s maml_omniglot_5w1s -->
    <!-- end of results -->

A single number stands between two as well. The first one says which result it is of, and which of its values; without
one, the score:

    <!-- value: mann_omniglot_5w10s acc_presentation_2 -->76.08 ± 1.13 %<!-- end -->

Tables of speed (`<!-- speed: cells -->`, `<!-- speed: means -->`, up to `<!-- end of speed -->`) are those of
`lightning_meta/benchmark/speed.json`.
"""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from lightning_meta.errors import DataError
from lightning_meta.results.table import Results, short_table, table, value

EXPERIMENTS = Path("configs/experiment")
PLACE = re.compile(r"(<!-- results: (.+?) -->\n).*?(<!-- end of results -->)", re.DOTALL)
SPEED = re.compile(r"(<!-- speed: (cells|means) -->\n).*?(<!-- end of speed -->)", re.DOTALL)
VALUE = re.compile(r"(<!-- value: (\S+)(?: (\S+))? -->).*?(<!-- end -->)")


def refreshed(text: str, results: Results) -> str:
    """A page with its tables and numbers as the results make them."""

    def fill(place: re.Match[str]) -> str:
        names = place[2].split()
        made = table(results) if names == ["all"] else short_table(results, names)
        return f"{place[1]}\n{made}\n\n{place[3]}"

    def number(place: re.Match[str]) -> str:
        return f"{place[1]}{value(results, place[2], place[3])}{place[4]}"

    return SPEED.sub(speed, VALUE.sub(number, PLACE.sub(fill, text)))


def speed(place: re.Match[str]) -> str:
    """A table of speed, in its place."""
    from lightning_meta.benchmark.speed import committed_tables

    return f"{place[1]}\n{committed_tables()[place[2]]}\n\n{place[3]}"


def pages() -> list[Path]:
    """Those of the repository that have numbers from results."""
    found = [Path("README.md"), *sorted(Path("docs").rglob("*.md")), *sorted(Path("configs").rglob("*.md"))]
    return [page for page in found if any(kind.search(page.read_text()) for kind in (PLACE, VALUE, SPEED))]


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        "python -m lightning_meta results", description=(__doc__ or "").split("\n\n", 1)[0],
        epilog=(__doc__ or "").split("\n\n", 2)[2], formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("pages", nargs="*", type=Path, metavar="PAGE", help="Markdown files (all with numbers)")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a page is out of date")
    given = parser.parse_args(arguments)
    stale, results = [], Results(EXPERIMENTS)
    for page in given.pages or pages():
        if not page.is_file():
            raise DataError(f"{page} does not exist.")
        before = page.read_text()
        if (after := refreshed(before, results)) != before:
            stale.append(str(page))
            if not given.check:
                page.write_text(after)
    if stale and given.check:
        raise DataError(f"{', '.join(stale)}: out of date; run python -m lightning_meta results.")
    print(f"written: {', '.join(stale)}" if stale else "All numbers are as the results make them.")
