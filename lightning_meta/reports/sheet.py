"""Galleries: a row of images for each class, with captions, in one coordinate system."""

from collections.abc import Iterable
from unicodedata import east_asian_width

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from lightning_meta.reports.fonts import families
from lightning_meta.reports.style import DPI

# Inches.
IMAGE, GAP, CAPTION = 0.8, 0.1, 0.24  # side of an image; space between images; text below them
LEFT, TOP, MARGIN = 0.85, 0.85, 0.12  # room for the names of the classes and for the title; other sides
SEPARATION = 0.35  # between support and query
WIDTH = 6.0  # at least, for the title
CHARACTER = 0.085  # of a name or title
FILE, FILE_SIZE = 14, 6  # characters at most of a name below an image, and their points


def room_for(names: Iterable[str]) -> float:
    """Inches at the left of the support images, for the names of the classes. A letter may be as wide as two."""
    widths = (sum(1 + (east_asian_width(letter) in "WF") for letter in name) for name in names)
    return max(LEFT, MARGIN + GAP + CHARACTER * max(widths))


def below(axes: Axes, left: float, top: float, text: str, size: float, colour: str) -> None:
    """A caption in the middle below an image."""
    axes.text(left + IMAGE / 2, top, text, family=families(text), fontsize=size, color=colour, ha="center", va="top")


def sheet(width: float, height: float) -> tuple[Figure, Axes]:
    """One coordinate system in inches from the upper left corner: hundreds of axes would take seconds."""
    figure = Figure(figsize=(width, height), dpi=DPI)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.set_autoscale_on(False)  # images would move the limits
    return figure, axes


def show(axes: Axes, image: Tensor, left: float, top: float, colour: str, thickness: float) -> None:
    pixels = image.detach().float().clamp(0, 1).permute(1, 2, 0).cpu().numpy()
    # The colour map concerns images of one channel only.
    axes.imshow(pixels, "gray_r", aspect="auto", vmin=0, vmax=1, extent=(left, left + IMAGE, top + IMAGE, top))
    axes.add_patch(Rectangle((left, top), IMAGE, IMAGE, fill=False, edgecolor=colour, linewidth=thickness))
