"""One classification episode as pictures: what was shown and what was recognised."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from lightning_meta.core import Batch
from lightning_meta.viz.style import BLUE, GREY, INK, LABEL, SMALL, VERMILLION, new_figure

CELL = 0.85  # inches, side of an image with its margin
LEFT = 0.75  # inches, for the names of the classes


def episode_gallery(
    support: Batch,
    query: Batch,
    preds: Tensor,
    title: str = "Episode",
    max_support: int = 5,
    max_query: int = 8,
) -> Figure:
    """A row for each class: its support images at the left, its query images with their predictions at the right.

    A right prediction has a thin blue frame and a check mark, a wrong one a thick red frame, a cross and the class that
    was predicted: the mark and the width serve readers who do not see the colours.

    Args:
        support: images `(N*K, C, H, W)` in [0, 1] and labels `(N*K,)`; C is 1 (0 is paper, 1 is ink) or 3 (RGB).
        query: likewise `(N*Q, C, H, W)` and `(N*Q,)`.
        preds: logits of the query images `(N*Q, N)`.
        title: names the episode; its accuracy is added.
        max_support, max_query: images shown per class.
    """
    predicted = preds.argmax(-1)
    classes = support.y.unique().tolist()
    n_support, n_query = (
        min(most, int(y.bincount().max())) for most, y in ((max_support, support.y), (max_query, query.y))
    )
    right = int((predicted == query.y).sum())
    figure = new_figure(
        LEFT + CELL * (n_support + n_query + 0.4),
        0.75 + (CELL + 0.2) * len(classes),
        f"{title}: {right} of {len(predicted)} queries right ({right / len(predicted):.0%})",
    )
    grid = figure.add_gridspec(
        len(classes), n_support + n_query + 1, width_ratios=[1] * n_support + [0.4] + [1] * n_query
    )
    for row, label in enumerate(classes):
        for column, image in enumerate(support.x[support.y == label][:n_support]):
            axes = figure.add_subplot(grid[row, column])
            _show(axes, image)
            _frame(axes, GREY, 0.8)
            if column == 0:
                axes.set_ylabel(f"class {label}", fontsize=LABEL, color=INK, rotation=0, ha="right", va="center")
            if column == row == 0:
                axes.set_title("support", fontsize=LABEL, color=INK, loc="left")
        mine = query.y == label
        for column, (image, guess) in enumerate(
            zip(query.x[mine][:n_query], predicted[mine][:n_query].tolist(), strict=True)
        ):
            axes = figure.add_subplot(grid[row, n_support + 1 + column])
            _show(axes, image)
            correct = guess == label
            _frame(axes, BLUE if correct else VERMILLION, 1.2 if correct else 2.6)
            axes.set_xlabel("✓" if correct else f"✗ {guess}", fontsize=SMALL, color=BLUE if correct else VERMILLION)
            if column == row == 0:
                axes.set_title("query", fontsize=LABEL, color=INK, loc="left")
    return figure


def _show(axes: Axes, image: Tensor) -> None:
    pixels = image.detach().float().cpu().clamp(0, 1)
    if len(pixels) == 1:
        axes.imshow(pixels[0], cmap="gray_r", vmin=0, vmax=1)
    else:
        axes.imshow(pixels.permute(1, 2, 0))
    axes.set(xticks=[], yticks=[])


def _frame(axes: Axes, colour: str, width: float) -> None:
    for spine in axes.spines.values():
        spine.set(color=colour, linewidth=width)
