"""How does the embedding arrange the classes of an episode?"""

from collections.abc import Mapping
from pathlib import Path

import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_meta.compat import tree_map
from lightning_meta.core import Batch
from lightning_meta.core.prototypes import class_means
from lightning_meta.errors import require_at_least
from lightning_meta.reports.base import Report
from lightning_meta.reports.fonts import NAME, drawable, families, short
from lightning_meta.reports.style import GREY, INK, LABEL, SMALL, new_figure, tidy
from lightning_meta.reports.tested import Tested

# Okabe and Ito's palette (style.py), for as many classes as it has.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


class EmbeddingMap(Report):
    """Picture `embedding`: support and query features of a test episode and the class means, in two dimensions.

    For classifiers that compare features: those whose `backbone`, with its meta-trained weights, embeds the support set
    in `adapt` and the query set in `query_loss` (ProtoNet and its relatives, ANIL, Baseline). Where adaptation changes
    the backbone (MAML), nothing is drawn. Features are those that the hooks compute, with their normalisation.

    Args:
        episode: which test episode.
    """

    def __init__(self, episode: int = 0) -> None:
        super().__init__()
        require_at_least(0, episode=episode)
        self.episode = episode

    def applies(self, tested: Tested) -> bool:
        backbone = getattr(tested.module, "backbone", None)
        return tested.classifies and tested.leaves_one_network and isinstance(backbone, nn.Module)

    def draw(self, tested: Tested, log_dir: Path) -> dict[str, Figure]:
        module, backbone = tested.module, tested.module.backbone
        trained = [id(parameter) for parameter in backbone.parameters()]
        embedded: list[Tensor] = []

        def keep(network: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
            if [id(parameter) for parameter in network.parameters()] == trained:
                embedded.append(output.flatten(1))

        support, query = tree_map(lambda leaf: leaf[0], tested.episodes([self.episode]))
        with tested.trainer.precision_plugin.test_step_context(), backbone.register_forward_hook(keep):
            with module.adapt_precision():
                adapted = module.adapt(support)
            n_adapt = len(embedded)
            preds = module.query_loss(adapted, query).preds
        features = [parts[-1] for parts in (embedded[:n_adapt], embedded[n_adapt:]) if parts]
        if [len(part) for part in features] != [len(support.y), len(query.y)]:
            return {}
        title = f"{tested.title}, test episode {self.episode}"
        sides = Batch(features[0], support.y), Batch(features[1], query.y)
        return {"embedding": embedding_map(*sides, preds, title, tested.class_names(self.episode))}


def embedding_map(
    support: Batch, query: Batch, preds: Tensor, title: str = "Embedding", names: Mapping[int, str] | None = None
) -> Figure:
    """Support examples as large circles, queries as small marks (a cross: wrong), class means as stars with a name.

    Colours tell the classes apart; the names at the stars do for readers who do not see them. The plane is that of
    the two principal components of all examples.

    Args:
        support: features `(S, D)` and labels `(S,)`.
        query: likewise `(Q, D)` and `(Q,)`.
        preds: logits of the queries `(Q, C)`.
        title: names the episode.
        names: of the classes by their labels. None: the labels.
    """
    means_CD, present_C = class_means(support.x, support.y)
    classes = present_C.nonzero().flatten().tolist()
    shown = [str(label) for label in classes]
    if names:
        shown = short(drawable([names[label] for label in classes], "class"), NAME)
    points, share = principal_plane(torch.cat([support.x, query.x]), torch.cat([support.x, query.x, means_CD]))
    support_2S, query_2Q, means_2C = points.T.cpu().split([len(support.y), len(query.y), len(means_CD)], 1)
    support_y, query_y = support.y.cpu(), query.y.cpu()
    right = (preds.argmax(-1) == query.y).cpu()
    score = f"{int(right.sum())} of {len(right)} queries right ({float(right.double().mean()):.0%})"
    figure = new_figure(6.4, 5.8, f"{title}\n{score}")
    axes = figure.subplots()
    for i, label in enumerate(classes):
        colour = PALETTE[i] if len(classes) <= len(PALETTE) else colormaps["turbo"](i / (len(classes) - 1))
        x, y = support_2S[:, support_y == label]
        axes.scatter(x, y, s=110, facecolors="none", edgecolors=[colour], linewidths=1.8)
        for marker, chosen in (("o", right), ("x", ~right)):
            x, y = query_2Q[:, (query_y == label) & chosen]
            axes.scatter(x, y, s=22, marker=marker, color=[colour], alpha=0.8)
        x, y = means_2C[:, label].tolist()
        axes.scatter(x, y, s=130, marker="*", color=[colour], edgecolors=INK, linewidths=0.7, zorder=3)
        name = axes.annotate(shown[i], (x, y), xytext=(7, 5), textcoords="offset points", zorder=4)
        name.set(
            family=families(shown[i]),
            fontsize=LABEL,
            color=INK,
            path_effects=[withStroke(linewidth=2.5, foreground="white")],
        )
    tidy(axes, *(f"principal component {i + 1} ({part:.0%} of the variance)" for i, part in enumerate(share)))
    axes.set_aspect("equal", "datalim")
    shapes = {
        "support": Line2D([], [], marker="o", markersize=10, markerfacecolor="none", color=GREY, linestyle=""),
        "query, right": Line2D([], [], marker="o", markersize=5, color=GREY, linestyle=""),
        "query, wrong": Line2D([], [], marker="x", markersize=5, color=GREY, linestyle=""),
        "class mean": Line2D([], [], marker="*", markersize=11, color=GREY, linestyle=""),
    }
    figure.legend(
        [*shapes.values()], [*shapes], loc="outside lower center", ncols=len(shapes), frameon=False, fontsize=SMALL
    )
    return figure


def principal_plane(fitted: Tensor, shown: Tensor) -> tuple[Tensor, list[float]]:
    """Coordinates `(M, 2)` of `shown (M, D)` along the main directions of `fitted (B, D)`; their share of its variance.

    The same points always give the same picture: the largest coordinate of each direction is positive.
    """
    centre = fitted.double().mean(0)
    values, directions = torch.linalg.svd(fitted.double() - centre, full_matrices=False)[1:]
    directions, values = F.pad(directions, (0, 0, 0, 2))[:2], F.pad(values, (0, 2))  # features may have one dimension
    signs = directions.gather(1, directions.abs().argmax(1, keepdim=True)).sign()
    share = (values.square() / values.square().sum().clamp_min(1e-300))[:2]
    return (shown.double() - centre) @ (signs * directions).T, share.tolist()
