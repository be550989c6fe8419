"""Names in any script: which installed fonts draw them."""

from collections.abc import Sequence
from functools import cache

from matplotlib.font_manager import findfont, fontManager, get_font

STANDARD = "DejaVu Sans"  # comes with matplotlib
NAME = 24  # characters at most of a name in a picture


def families(text: str) -> list[str] | None:
    """Families of installed fonts that together draw a text, the standard one first; None where none has a letter.

    Matplotlib takes each letter from the first of them that has it. For letters that none has it would draw boxes.
    """
    chosen, missing = [STANDARD], {ord(letter) for letter in text} - _letters(findfont(STANDARD))
    fonts = _others() if missing else ()
    for name, path in fonts:
        if missing & _letters(path):
            chosen.append(name)
            missing -= _letters(path)
        if not missing:
            break
    return None if missing else chosen


def drawable(names: Sequence[str], kind: str) -> list[str]:
    """Names, with a number in place of each that no installed font can draw: `class 2`, where `kind` is class."""
    return [f"{kind} {i}" if families(name) is None else name for i, name in enumerate(names)]


def short(names: Sequence[str], most: int) -> list[str]:
    """Names of so many characters at most; of a longer one its beginning and its end, by which files are told apart."""
    end = most // 2
    return [name if len(name) <= most else f"{name[: most - end - 1]}…{name[-end:]}" for name in names]


@cache
def _letters(path: str) -> frozenset[int]:
    """The code points that a font draws."""
    return frozenset(get_font(path).get_charmap())


@cache
def _others() -> tuple[tuple[str, str], ...]:
    """Name and file of the other families. Last Resort is left out: it has a box for every letter."""
    files = {font.name: font.fname for font in fontManager.ttflist if "Last Resort" not in font.name}
    return tuple(sorted((name, path) for name, path in files.items() if name != STANDARD))
