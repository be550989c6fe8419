"""A small network around a cell, whose edges each carry one of a few operations: what architecture search chooses.

The space is NAS-Bench-201's (Dong and Yang: "NAS-Bench-201: Extending the Scope of Reproducible Neural Architecture
Search" (2020), arXiv:2001.00326) with three nodes in place of four, so that it can be enumerated: three edges, five
operations, 125 cells.

Deviations: one cell between a stem and a mean over quadrants; convolutions are followed by normalisation over the whole
map of an example without parameters, so that nothing is estimated from a batch; a budget of parameters says which cells
there are, because otherwise a search that likes parameters looks good.

Shape letters: `E` edges, `O` operations, `K` cells.
"""

from collections.abc import Callable, Sequence
from itertools import product

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_meta.backbones.base import Backbone
from lightning_meta.errors import ConfigError, require_at_least

QUADRANTS = 2  # on a side: the features are means over so many parts of the map


class Zero(nn.Module):
    """No edge."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


def linear_on_places(linear: nn.Linear, x: Tensor) -> Tensor:
    """The same linear map at every place of a map `(B, C, H, W)`, then normalisation over the map."""
    return F.group_norm(linear(x.movedim(1, -1)).movedim(-1, 1), 1)


class Stem(nn.Module):
    """A linear map of patches that do not overlap, each of which becomes a place."""

    def __init__(self, in_channels: int, channels: int, patch: int) -> None:
        super().__init__()
        self.patch = patch
        self.linear = nn.Linear(in_channels * patch**2, channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        blocks = x.unflatten(3, (-1, self.patch)).unflatten(2, (-1, self.patch))  # (B, C, H, patch, W, patch)
        return linear_on_places(self.linear, blocks.movedim(4, 3).flatten(4).movedim(4, 2).flatten(1, 2))


class Convolution(nn.Module):
    """Rectifier, convolution, normalisation.

    As a linear map of neighbourhoods: where many networks are trained beside each other, each with weights of its own,
    that is a batched product of matrices, while convolutions would be slow groups of one.
    """

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        self.size = size
        self.linear = nn.Linear(channels * size**2, channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        padded = F.pad(x.relu(), [self.size // 2] * 4)
        shifted = [
            padded[..., i : i + height, j : j + width] for i in range(self.size) for j in range(self.size)
        ]  # fmt: skip
        return linear_on_places(self.linear, torch.stack(shifted, 2).flatten(1, 2))


OPERATIONS: dict[str, Callable[[int], nn.Module]] = {
    "zero": lambda channels: Zero(),
    "identity": lambda channels: nn.Identity(),
    "pool": lambda channels: nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False),
    "conv1": lambda channels: Convolution(channels, 1),
    "conv3": lambda channels: Convolution(channels, 3),
}


class Cell(Backbone):
    """Node 0 is a linear map of the patches of the image; a later node is the sum over edges from all nodes before it.

    An edge is the sum of its operations, weighed by its row of the buffer `mixture_EO`: with one-hot rows the network
    is that of one cell, with others a mixture of all of them (a supernet).

    Args:
        operations: what an edge can be, of `zero`, `identity`, `pool`, `conv1`, `conv3`.
        cell: the operation of each edge, for a network of these alone, such as one that was found. None: all.
        nodes: of the cell. Edges are in the order 0-1, 0-2, 1-2, 0-3, ...
        channels: of every node.
        in_channels, image_size: of the images.
        patch: pixels on a side of what becomes one place of the maps; divides `image_size`.
        budget: most parameters that the operations of a cell may have. None: any number.
    """

    def __init__(
        self,
        operations: Sequence[str] = tuple(OPERATIONS),
        cell: Sequence[str] | None = None,
        nodes: int = 3,
        channels: int = 4,
        in_channels: int = 1,
        image_size: int = 28,
        patch: int = 7,
        budget: int | None = None,
    ) -> None:
        super().__init__()
        require_at_least(2, nodes=nodes)
        if image_size % patch or image_size // patch < QUADRANTS:
            raise ConfigError(
                f"patch={patch} does not divide image_size={image_size} into {QUADRANTS} places or more on a side; "
                "set it."
            )
        edges = nodes * (nodes - 1) // 2
        self.operations, self.nodes = tuple(operations), nodes
        if wrong := [name for name in (*operations, *(cell or ())) if name not in OPERATIONS]:
            raise ConfigError(f"there is no operation {wrong[0]!r}; take of: {', '.join(OPERATIONS)}.")
        if len({*operations}) < len(self.operations) or not operations:
            raise ConfigError(f"operations={[*operations]} must be one or more different ones.")
        if cell is not None and len(cell) != edges:
            raise ConfigError(
                f"cell={[*cell]} names {len(cell)} operations, but {nodes} nodes have {edges} edges; name one for each."
            )
        on_edges = [self.operations] * edges if cell is None else [(name,) for name in cell]
        self.stem = Stem(in_channels, channels, patch)
        self.choices = nn.ModuleList(nn.ModuleList(OPERATIONS[name](channels) for name in names) for names in on_edges)
        self.in_shape, self.out_features = (in_channels, image_size, image_size), channels * QUADRANTS**2
        self.mixture_EO: Tensor
        self.register_buffer("mixture_EO", torch.full((edges, len(on_edges[0])), 1 / len(on_edges[0])))
        every = torch.tensor([*product(range(len(self.operations)), repeat=edges)])
        sizes_O = torch.tensor([sum(p.numel() for p in OPERATIONS[name](channels).parameters()) for name in operations])
        size_of_every = sizes_O[every].sum(1)
        if budget is not None and budget < size_of_every.min():
            raise ConfigError(
                f"budget={budget}, but the smallest cell of {', '.join(operations)} has {size_of_every.min()} "
                "parameters; raise it."
            )
        within = size_of_every <= (size_of_every.max() if budget is None else budget)
        self.cells_KE: Tensor  # those within the budget
        self.sizes_K: Tensor  # how many parameters their operations have
        self.register_buffer("cells_KE", every[within], persistent=False)
        self.register_buffer("sizes_K", size_of_every[within], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        nodes = [self.stem(x)]
        for j in range(1, self.nodes):
            first = j * (j - 1) // 2  # of the edges into node j
            nodes.append(torch.stack([self.edge(first + i, node) for i, node in enumerate(nodes)]).sum(0))
        return F.adaptive_avg_pool2d(nodes[-1].relu(), QUADRANTS).flatten(1)

    def edge(self, place: int, x: Tensor) -> Tensor:
        """What an edge makes of a node."""
        weights_O, operations = self.mixture_EO[place], self.choices[place]
        made = [weight * operation(x) for weight, operation in zip(weights_O, operations, strict=True)]  # type: ignore[call-overload]
        return torch.stack(made).sum(0)

    def one_hot(self, cells: Tensor) -> Tensor:
        """Mixtures `(..., E, O)` of cells `(..., E)`."""
        return F.one_hot(cells, len(self.operations)).to(self.mixture_EO)

    def without_dead_ends(self, cells_NE: Tensor) -> Tensor:
        """The same networks, with `zero` on the edges from nodes that nothing reaches or that lead nowhere."""
        if "zero" not in self.operations:
            return cells_NE
        zero, cells_NE = self.operations.index("zero"), cells_NE.clone()
        ends = [(i, j) for j in range(1, self.nodes) for i in range(j)]
        reached = {0: torch.ones_like(cells_NE[:, 0], dtype=torch.bool)}
        leads = {self.nodes - 1: reached[0]}
        for known, edges in ((reached, [*enumerate(ends)]), (leads, [*enumerate(ends)][::-1])):
            for edge, (i, j) in edges:
                start, end = (i, j) if known is reached else (j, i)
                there = known.get(start, ~reached[0])
                cells_NE[:, edge] = torch.where(there, cells_NE[:, edge], zero)
                known[end] = known.get(end, ~reached[0]) | (there & (cells_NE[:, edge] != zero))
        return cells_NE

    def named(self, cell_E: Tensor) -> str:
        """As `conv3|pool|zero`."""
        return "|".join(self.operations[place] for place in cell_E.tolist())
