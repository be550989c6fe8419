"""Cells: the mixture of all operations against networks of single ones, and what cells there are."""

import pytest
import torch
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from lightning_meta.algorithms import ProtoNet
from lightning_meta.backbones import Cell
from lightning_meta.backbones.cell import OPERATIONS
from lightning_meta.core import map_tasks
from lightning_meta.errors import ConfigError
from tests.conftest import SIZE, random_episodes


def small(**settings: object) -> Cell:
    torch.manual_seed(0)
    return Cell(**({"channels": 2, "image_size": SIZE, "patch": 4} | settings)).double()  # type: ignore[arg-type]


def plain(supernet: Cell, operations: list[str]) -> Cell:
    """A network of these operations alone, with their weights from the supernet."""
    network = small(cell=operations, nodes=supernet.nodes)
    network.stem.load_state_dict(supernet.stem.state_dict())
    for edge, name in enumerate(operations):
        place = supernet.operations.index(name)
        network.choices[edge][0].load_state_dict(supernet.choices[edge][place].state_dict())
    return network


@pytest.mark.parametrize("nodes", [2, 3, 4])
def test_a_one_hot_mixture_is_the_network_of_these_operations(nodes: int) -> None:
    supernet = small(nodes=nodes)
    x = torch.rand(5, 1, SIZE, SIZE).double()
    for cell in supernet.cells_KE[:: 1 + len(supernet.cells_KE) // 40]:
        supernet.mixture_EO.copy_(supernet.one_hot(cell))
        alone = plain(supernet, supernet.named(cell).split("|"))
        torch.testing.assert_close(supernet(x), alone(x), rtol=1e-12, atol=1e-14)
        assert supernet(x).shape == (5, supernet.out_features)


@pytest.mark.parametrize("nodes", [3, 4])
def test_parts_that_lead_nowhere_do_not_count(nodes: int) -> None:
    network = small(nodes=nodes)
    x, left = torch.rand(2, 1, SIZE, SIZE).double(), set()
    cells = network.cells_KE[:: 1 if nodes == 3 else 401]
    for cell, short in zip(cells, network.without_dead_ends(cells), strict=True):
        network.mixture_EO.copy_(network.one_hot(cell))
        expected = network(x)
        network.mixture_EO.copy_(network.one_hot(short))
        torch.testing.assert_close(network(x), expected, rtol=0, atol=0)
        left.add(network.named(short))
    assert nodes > 3 or len(left) == 85, "80 with both edges of node 1, and 5 without"


def test_the_last_node_is_the_sum_of_what_edges_make_of_nodes() -> None:
    """By hand: conv3 of node 0, its pool, and node 0 itself."""
    network = small(cell=["conv3", "identity", "pool"])
    x = torch.rand(2, 1, SIZE, SIZE).double()
    start = F.group_norm(F.conv2d(x, network.stem.linear.weight.view(2, 1, 4, 4), stride=4), 1)
    first = F.group_norm(F.conv2d(start.relu(), network.choices[0][0].linear.weight.view(2, 2, 3, 3), padding=1), 1)
    counts = F.avg_pool2d(torch.ones_like(first), 3, 1, 1)
    last = (start + F.avg_pool2d(first, 3, 1, 1) / counts).relu()
    halves = [last[..., a : a + 2, b : b + 2].mean((2, 3)) for a in (0, 2) for b in (0, 2)]
    torch.testing.assert_close(network(x), torch.stack(halves, -1).flatten(1))


def test_budgets_say_which_cells_there_are() -> None:
    """Sizes are those of real networks, less what all have in common."""
    every = small()
    assert every.cells_KE.shape == (125, 3) and len(every.cells_KE.unique(dim=0)) == 125
    common = sum(p.numel() for p in every.stem.parameters())
    for cell, size in zip(every.cells_KE, every.sizes_K.tolist(), strict=True):
        network = small(cell=every.named(cell).split("|"))
        assert sum(p.numel() for p in network.parameters()) - common == size
    some = small(budget=44)
    expected = every.cells_KE[every.sizes_K <= 44]
    assert torch.equal(some.cells_KE, expected) and 64 < len(expected) < 125
    assert "cells_KE" not in some.state_dict()


def test_second_derivatives_under_vmap_are_those_of_a_loop() -> None:
    network = small()
    theta = {name: p.detach() for name, p in network.named_parameters()}
    x = torch.rand(3, 4, 1, SIZE, SIZE).double()

    def loss(weights: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        return functional_call(network, weights, (x,)).square().mean()

    def after_a_step(x: torch.Tensor) -> dict[str, torch.Tensor]:
        def outer(weights: dict[str, torch.Tensor]) -> torch.Tensor:
            slopes = grad(loss)(weights, x)
            return loss({name: value - 0.1 * slopes[name] for name, value in weights.items()}, x)

        return grad(outer)(theta)

    torch.testing.assert_close(vmap(after_a_step)(x), map_tasks(after_a_step, x, mode="loop"), rtol=1e-9, atol=1e-12)


def test_a_found_cell_serves_any_algorithm() -> None:
    module = ProtoNet(small(cell=["conv3", "identity", "conv1"])).double()
    assert module.measure(random_episodes())[0]["loss"].shape == (3,)


def test_what_cannot_be_is_told() -> None:
    for settings, message in (
        ({"operations": ["conv5", "zero"]}, f"no operation 'conv5'; take of: {', '.join(OPERATIONS)}"),
        ({"cell": ["conv3", "skip", "zero"]}, "no operation 'skip'"),
        ({"cell": ["conv3", "zero"]}, "names 2 operations, but 3 nodes have 3 edges; name one for each"),
        ({"operations": ["conv3", "conv3"]}, "must be one or more different ones"),
        (
            {"operations": ["conv1", "conv3"], "budget": 8},
            "budget=8, but the smallest cell of conv1, conv3 has 12 parameters; raise it",
        ),
        ({"patch": 5}, "patch=5 does not divide image_size=16 into 2 places or more"),
        ({"nodes": 1}, "nodes=1 must be at least 2"),
    ):
        with pytest.raises(ConfigError, match=message):
            small(**settings)
