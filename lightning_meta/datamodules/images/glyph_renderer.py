"""Renders the Glyphs data set: the letters of many scripts, drawn by the fonts that come with matplotlib.

A class is a letter; its 20 examples are drawn by the fonts that have it in one form, each under a small random affine
map and with a thicker or thinner pen. As in Omniglot (Lake et al. 2015) whole scripts are held out, so that a test
letter is new in every way.

Nothing here is global: a letter's examples depend on the letter and the fonts alone, so any subset can be rendered, in
any order and process, with the same result.
"""

import math
import unicodedata
from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageDraw, ImageFilter, ImageFont

Pixels = npt.NDArray[np.uint8]

# Scripts as the Unicode names of their letters begin. Of letters that look the same only the first is a class, in the
# order of this table and then of code points: letters of validation and test give way to their twins in training.
SCRIPTS: dict[str, tuple[str, ...]] = {
    "train": ("LATIN", "GREEK", "CYRILLIC", "COPTIC", "CANADIAN SYLLABICS"),
    "val": ("ARABIC", "NKO", "TIFINAGH"),
    "test": ("GEORGIAN", "ARMENIAN", "HEBREW", "LAO", "OLD ITALIC", "OGHAM"),
}
EXAMPLES = 20
SIZE = 28  # pixels of an image's side

# Families of fonts. The first font is the one that letters are compared in, and it has every letter there is to draw
# but a few of Latin. The first family is the one whose form of a letter counts; see `drop_other_forms`.
FONT_FILES: dict[str, tuple[str, ...]] = {
    "DejaVu Sans": ("DejaVuSans", "DejaVuSans-Oblique", "DejaVuSans-Bold", "DejaVuSans-BoldOblique"),
    "DejaVu Sans Mono": (
        "DejaVuSansMono",
        "DejaVuSansMono-Oblique",
        "DejaVuSansMono-Bold",
        "DejaVuSansMono-BoldOblique",
    ),
    "DejaVu Serif": ("DejaVuSerif", "DejaVuSerif-Italic", "DejaVuSerif-Bold", "DejaVuSerif-BoldItalic"),
    "STIX General": ("STIXGeneral", "STIXGeneralItalic", "STIXGeneralBol", "STIXGeneralBolIta"),
}
FONT_SIZE = 72  # pixels per em of the drawings that the images are scaled down from
OVERSAMPLING = 3  # an image is drawn at 3 x 3 its pixels and averaged

# All lengths below are in pixels of the final image.
BOX = 20.0  # longer side of an unperturbed letter: letters differ in shape and not in size
MARGIN = 1.0  # stays free of ink on every side
ROTATION = math.radians(12)
SHEAR = 0.2
SCALE = (0.8, 1.1)  # drawn for width and height apart
SHIFT = 1.0
PEN = 0.5  # a stroke grows by up to this much on either side, or shrinks by somewhat less

TWIN_SIMILARITY = 0.94  # from here on two letters count as one; chosen by looking at the pairs around it
FORM_SIMILARITY = 0.835  # below it a font draws a form of its own; chosen by looking at the letters around it


class Font(NamedTuple):
    """A font at `FONT_SIZE`, the family it belongs to and the code points that it has."""

    face: ImageFont.FreeTypeFont
    family: str
    coverage: frozenset[int]


class GlyphSet(NamedTuple):
    """The rendered data set, all splits, in the order of `SCRIPTS` and then of code points.

    Attributes:
        images: `(classes, EXAMPLES, SIZE, SIZE)` uint8, ink 255 on background 0.
        characters: the letter of each class.
        scripts: the script of each class, as `SCRIPTS` names it.
    """

    images: Pixels
    characters: list[str]
    scripts: list[str]


def render_glyphs() -> GlyphSet:
    """Render every class of the data set, which takes about 15 s."""
    fonts = load_fonts()
    scripts = {char: script for names in SCRIPTS.values() for script in names for char in letters(script, fonts[0])}
    characters = drop_twins(list(scripts), fonts[0])
    images = np.stack([render_examples(char, fonts) for char in characters])
    return GlyphSet(images, characters, [scripts[char] for char in characters])


def load_fonts() -> list[Font]:
    """The fonts of `FONT_FILES` from matplotlib's own data."""
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    fonts = []
    for family, names in FONT_FILES.items():
        for name in names:
            path = str(folder / f"{name}.ttf")
            # The basic layout engine is a part of Pillow; the other one, Raqm, may be missing or draw differently.
            face = ImageFont.truetype(path, FONT_SIZE, layout_engine=ImageFont.Layout.BASIC)
            fonts.append(Font(face, family, frozenset(FT2Font(path).get_charmap())))
    return fonts


def letters(script: str, font: Font) -> list[str]:
    """The letters of a script that a font can draw, by code point.

    Modifier letters (small marks) and letters that decompose are left out: at this size an e with an accent is an e.
    """
    chars = [chr(code) for code in sorted(font.coverage)]
    return [
        char
        for char in chars
        if unicodedata.name(char, "").startswith(f"{script} ")
        and unicodedata.category(char) in ("Lu", "Ll", "Lo")
        and not unicodedata.decomposition(char)
        and draw(char, font).getbbox() is not None
    ]


def drop_twins(characters: Sequence[str], font: Font) -> list[str]:
    """Keep only the first of letters that look the same, such as A of Latin, Greek and Cyrillic, or c and C.

    Letters are compared in one font and at one size, by the cosine of their slightly blurred images, and each also with
    the other drawn by a thicker pen, because a small letter enlarged to the size of its capital has a thicker stroke.
    Two letters that differ in that font may still come close in another, as they do in handwriting.
    """
    plain, thick, thicker = (blurred([render_plain(char, font, pen) for char in characters]) for pen in (0.0, 0.5, 1.0))
    similarity = np.maximum.reduce([cosine(plain, other) for other in (plain, thick, thicker)])
    similarity = np.maximum(similarity, similarity.T)
    kept: list[int] = []
    for i in range(len(characters)):
        if similarity[i, kept].max(initial=0.0) < TWIN_SIMILARITY:
            kept.append(i)
    return [characters[i] for i in kept]


def drop_other_forms(char: str, fonts: Sequence[Font]) -> list[Font]:
    """The fonts that have a letter, without the families that draw it in another form than the first family does.

    A family is left out for the letter if any of its fonts resembles no font of the first family. The fonts of two
    families resemble each other if the cosine of their slightly blurred images reaches `FORM_SIMILARITY`, be it with
    the letter's proportions kept or stretched to a square (fonts of fixed width squeeze wide letters). What goes are
    Georgian letters of another design, glyphs under a wrong code point and italics with a form of their own, for some
    50 letters. Bold, slanted and serif letters stay, but for a few such as A, V and W of STIX.
    """
    having = [font for font in fonts if ord(char) in font.coverage]
    first = [font.family == fonts[0].family for font in having]
    inks = [draw(char, font) for font in having]
    in_proportion = blurred([place(ink, np.eye(2) * zoom_to_box(ink), (0.0, 0.0)) for ink in inks])
    stretched = blurred([place(ink, np.diag(BOX / np.array(ink.size)), (0.0, 0.0)) for ink in inks])
    similarity = np.maximum(*(cosine(images, images[first]).max(axis=1) for images in (in_proportion, stretched)))
    others = {font.family for font, best in zip(having, similarity, strict=True) if best < FORM_SIMILARITY}
    return [font for font in having if font.family not in others]


def blurred(images: Sequence[Image.Image]) -> npt.NDArray[np.float64]:
    """The images slightly blurred and as rows of a matrix."""
    blur = ImageFilter.GaussianBlur(1)
    return np.stack([np.asarray(image.filter(blur)).ravel() for image in images]).astype(float)


def cosine(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The cosine of each row of `a` with each of `b`.

    The rows are uint8 images, whose dot products are exact in float64: no order of summation can tip a letter over a
    threshold.
    """
    return (a @ b.T) / np.sqrt(np.outer((a * a).sum(1), (b * b).sum(1)))


def render_plain(char: str, font: Font, pen: float = 0.0) -> Image.Image:
    """A letter unperturbed: upright, centred, its longer side `BOX` pixels before a pen of `pen` pixels widens it."""
    zoom = zoom_to_box(draw(char, font))
    return place(draw(char, font, pen / zoom), np.eye(2) * zoom, (0.0, 0.0))


def zoom_to_box(ink: Image.Image) -> float:
    """Pixels of the final image per pixel of a drawing that make its longer side `BOX` pixels long."""
    return BOX / max(ink.size)


def render_examples(char: str, fonts: Sequence[Font]) -> Pixels:
    """The `(EXAMPLES, SIZE, SIZE)` examples of a letter.

    The fonts that have it in the form of the first family take turns, in a random order.
    """
    rng = np.random.Generator(np.random.PCG64(ord(char)))
    styles = [(font, zoom_to_box(draw(char, font))) for font in drop_other_forms(char, fonts)]
    turns = [styles[i] for i in rng.permutation(len(styles))]
    return np.stack([render_example(char, font, zoom, rng) for font, zoom in islice(cycle(turns), EXAMPLES)])


def render_example(char: str, font: Font, zoom: float, rng: np.random.Generator) -> Pixels:
    """One `(SIZE, SIZE)` drawing of a letter with a random pen, turned, slanted, stretched and shifted at random."""
    angle = rng.uniform(-ROTATION, ROTATION)
    shear = rng.uniform(-SHEAR, SHEAR)
    scale = rng.uniform(*SCALE, size=2)
    pen = rng.uniform(-PEN, PEN)
    shift = rng.uniform(-1, 1, size=2)

    cos, sin = math.cos(angle), math.sin(angle)
    rotate_and_slant = np.array([[cos, cos * shear - sin], [sin, sin * shear + cos]])
    ink = draw(char, font, pen / zoom)
    matrix = zoom * rotate_and_slant * scale
    # No ink may leave the image: a letter that would is made smaller, and it is shifted only where there is room.
    half = np.abs(matrix) @ ink.size / 2
    limit = SIZE / 2 - MARGIN
    shrink = min(1.0, limit / half.max())
    dx, dy = shift * np.minimum(SHIFT, limit - shrink * half)
    return np.asarray(place(ink, shrink * matrix, (dx, dy)))


def draw(char: str, font: Font, pen: float = 0.0) -> Image.Image:
    """A letter at `FONT_SIZE`, cropped to its ink (all background if the font's glyph is blank).

    Args:
        char: the letter.
        font: which must have it.
        pen: pixels by which a stroke grows on either side; negative values thin it, by one pixel at most because the
            hairlines of serif fonts would not survive more.
    """
    # Pillow's box is generous: it contains the ink, but also the empty space that the font leaves around it.
    left, top, right, bottom = font.face.getbbox(char, stroke_width=max(pen, 0.0))
    origin = (1 - math.floor(left), 1 - math.floor(top))
    canvas = Image.new("L", (origin[0] + math.ceil(right) + 1, origin[1] + math.ceil(bottom) + 1))
    ImageDraw.Draw(canvas).text(origin, char, fill=255, font=font.face, stroke_width=max(pen, 0.0))
    if pen < 0:
        canvas = Image.blend(canvas, canvas.filter(ImageFilter.MinFilter(3)), min(1.0, -pen))
    return canvas.crop(canvas.getbbox())


def place(ink: Image.Image, matrix: npt.NDArray[np.float64], shift: tuple[float, float]) -> Image.Image:
    """Map a drawing through a 2 x 2 matrix about its centre onto a `SIZE` x `SIZE` image.

    Args:
        ink: the drawing.
        matrix: from its pixels to those of the result, x before y.
        shift: of its centre from the centre of the result, in pixels of the result.
    """
    side = SIZE * OVERSAMPLING
    (a, b), (c, d) = (OVERSAMPLING * matrix).tolist()
    x, y = (side / 2 + OVERSAMPLING * offset for offset in shift)
    # Pillow asks for the way back, from a pixel of the result to one of the drawing.
    det = a * d - b * c
    back = (d / det, -b / det, -c / det, a / det)
    middle_x = ink.width / 2 - back[0] * x - back[1] * y
    middle_y = ink.height / 2 - back[2] * x - back[3] * y
    large = ink.transform(
        (side, side),
        Image.Transform.AFFINE,
        (back[0], back[1], middle_x, back[2], back[3], middle_y),
        Image.Resampling.BILINEAR,
    )
    return large.reduce(OVERSAMPLING)
