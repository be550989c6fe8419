"""One classification episode as pictures: what was shown and what was recognised."""

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from lightning_meta.core import Batch
from lightning_meta.viz.style import BLUE, DPI, GREY, INK, LABEL, SMALL, TITLE, VERMILLION

# Inches.
IMAGE, GAP, CAPTION = 0.8, 0.1, 0.24  # side of an image; space between images; text below them
LEFT, TOP, MARGIN = 0.85, 0.85, 0.12  # room for the names of the classes and for the title; other sides
SEPARATION = 0.35  # between support and query
WIDTH = 6.0  # at least, for the title


def episode_gallery(
    support: Batch,
    query: Batch,
    preds: Tensor,
    title: str = "Episode",
    max_support: int = 5,
    max_query: int = 8,
) -> Figure:
    """A row for each class: its support images at the left, its query images with their predictions at the right.

    A right prediction has a thin blue frame and a check mark, a wrong one a thick red frame, a cross and the class it
    was taken for: the mark and the thickness serve readers who do not see the colours.

    Args:
        support: images `(N*K, C, H, W)` in [0, 1] and labels `(N*K,)`; C is 1 (0 is paper, 1 is ink) or 3 (RGB).
        query: likewise `(N*Q, C, H, W)` and `(N*Q,)`.
        preds: logits of the query images `(N*Q, N)`.
        title: names the episode; its score is added below.
        max_support, max_query: images shown per class.
    """
    predicted = preds.argmax(-1)
    correct = predicted == query.y
    classes = support.y.unique().tolist()
    n_support = min(max_support, int(support.y.bincount().max()))
    n_query = min(max_query, int(query.y.bincount().max()))
    query_left = LEFT + n_support * (IMAGE + GAP) - GAP + SEPARATION
    width = max(query_left + n_query * (IMAGE + GAP) - GAP + MARGIN, WIDTH)
    height = TOP + len(classes) * (IMAGE + CAPTION) + MARGIN

    # One coordinate system in inches from the upper left corner: hundreds of axes would take seconds.
    figure = Figure(figsize=(width, height), dpi=DPI)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()

    def show(image: Tensor, left: float, top: float, colour: str, thickness: float) -> None:
        pixels = image.detach().float().clamp(0, 1).permute(1, 2, 0).cpu().numpy()
        # The colour map concerns images of one channel only.
        axes.imshow(pixels, "gray_r", aspect="auto", vmin=0, vmax=1, extent=(left, left + IMAGE, top + IMAGE, top))
        axes.add_patch(Rectangle((left, top), IMAGE, IMAGE, fill=False, edgecolor=colour, linewidth=thickness))

    score = f"{int(correct.sum())} of {len(correct)} queries right ({float(correct.double().mean()):.0%})"
    axes.text(LEFT, MARGIN, f"{title}\n{score}", fontsize=TITLE, color=INK, va="top")
    axes.text(LEFT, TOP - 0.06, "support", fontsize=LABEL, color=INK)
    axes.text(query_left, TOP - 0.06, "query   (✓ right, ✗ n: taken for class n)", fontsize=LABEL, color=INK)
    for row, label in enumerate(classes):
        top = TOP + row * (IMAGE + CAPTION)
        axes.text(LEFT - GAP, top + IMAGE / 2, f"class {label}", fontsize=LABEL, color=INK, ha="right", va="center")
        for column, image in enumerate(support.x[support.y == label][:n_support]):
            show(image, LEFT + column * (IMAGE + GAP), top, GREY, 0.8)
        for column, index in enumerate((query.y == label).nonzero().flatten()[:n_query].tolist()):
            left = query_left + column * (IMAGE + GAP)
            mark, colour, thickness = ("✓", BLUE, 1.2) if correct[index] else (f"✗ {predicted[index]}", VERMILLION, 2.6)
            show(query.x[index], left, top, colour, thickness)
            axes.text(left + IMAGE / 2, top + IMAGE + 0.04, mark, fontsize=SMALL, color=colour, ha="center", va="top")
    axes.set(xlim=(0, width), ylim=(height, 0))
    return figure
