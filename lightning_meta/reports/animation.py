"""Moving pictures, as GIF files."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageDraw

FRAMES = 60  # of a file, at most: of longer ones every second, third, ... is shown
SECONDS = 5.0  # that a file of all frames lasts
CAPTION = 16  # pixels above a picture, for its name
GREY, INK, PAPER = "#8A8A8A", "#222222", "white"


def some(count: int) -> list[int]:
    """Numbers of the frames to show of so many: at equal distances, the first and the last among them."""
    return sorted({round(place) for place in np.linspace(0, count - 1, min(count, FRAMES))})


def save_gif(path: Path, frames: Sequence[Image.Image]) -> None:
    """Over and over again, and the last frame for a while."""
    path.parent.mkdir(parents=True, exist_ok=True)
    each = int(1000 * SECONDS / FRAMES)
    durations = [each] * (len(frames) - 1) + [10 * each]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=durations, loop=0)


def growing(figure: Figure, dpi: int = 80) -> list[Image.Image]:
    """Frames in which the lines of a figure grow from their first point to the last, all at the same speed."""
    figure.set_dpi(dpi)
    canvas = FigureCanvasAgg(figure)
    drawn = [(line, np.asarray(line.get_xydata())) for axes in figure.axes for line in axes.lines]
    lines = [(line, points_L2) for line, points_L2 in drawn if len(points_L2) > 1]
    canvas.draw()
    figure.set_layout_engine("none")  # where things are stays the same
    frames = []
    for last in some(max(len(points_L2) for _, points_L2 in lines)):
        for line, points_L2 in lines:
            line.set_data(*points_L2[: last + 1].T)
        canvas.draw()
        frames.append(Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB"))
    return frames


def side_by_side(films: Sequence[Sequence[Sequence[np.ndarray]]], names: Sequence[str]) -> list[Image.Image]:
    """Frames of rows of films, each `(height, width, 3)` in 0..255, of one size. One that has ended stands still.

    Args:
        films: rows of columns of films.
        names: of the columns.
    """
    height, width = films[0][0][0].shape[:2]
    size = (width * len(names), CAPTION + height * len(films))
    frames = []
    for number in some(max(len(film) for row in films for film in row)):
        frame = Image.new("RGB", size, PAPER)
        draw = ImageDraw.Draw(frame)
        for column, name in enumerate(names):
            draw.text((column * width + 4, 2), name, fill=INK)
        for place, row in enumerate(films):
            for column, film in enumerate(row):
                shown = film[min(number, len(film) - 1)]
                frame.paste(Image.fromarray(shown.astype(np.uint8)), (column * width, CAPTION + place * height))
            draw.line([(0, CAPTION + place * height), (size[0], CAPTION + place * height)], fill=GREY)
        frames.append(frame)
    return frames
