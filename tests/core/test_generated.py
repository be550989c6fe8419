"""Generated weights: they start as the network's, are of low rank, and embeddings can have networks of their own."""

import torch
from torch import nn

from lightning_meta.core.generated import GeneratedParams


def made(embedding: int, rank: int) -> tuple[GeneratedParams, dict[str, torch.Tensor]]:
    theta = dict(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).double().named_parameters())
    return GeneratedParams(theta, embedding, rank).double(), theta


def test_at_first_they_are_those_of_the_network() -> None:
    generated, theta = made(5, 2)
    for name, value in generated(theta, torch.randn(5).double()).items():
        assert torch.equal(value, theta[name])


def test_what_is_generated_spans_no_more_dimensions_than_the_rank() -> None:
    generated, theta = made(6, 2)
    for head in generated.heads.values():
        nn.init.normal_(head.weight)
    written = [generated(theta, torch.randn(6).double()) for _ in range(6)]
    changes = torch.stack([torch.cat([(w[name] - theta[name]).flatten() for name in theta]) for w in written])
    assert torch.linalg.matrix_rank(changes) == 2


def test_embeddings_can_have_networks_of_their_own() -> None:
    """With one number each, an embedding's gradient moves its own network alone."""
    generated, theta = made(2, 2)
    with torch.no_grad():
        generated.code.weight.copy_(torch.eye(2))
    first, second = torch.eye(2).double()
    loss = sum(value.square().sum() for value in generated(theta, first).values())
    for head in generated.heads.values():
        (slope,) = torch.autograd.grad(loss, head.weight, retain_graph=True)
        with torch.no_grad():
            head.weight -= slope
    assert any(not torch.equal(value, theta[name]) for name, value in generated(theta, first).items())
    assert all(torch.equal(value, theta[name]) for name, value in generated(theta, second).items())
