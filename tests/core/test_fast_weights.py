"""Fast weights against sums of outer products, least squares, loops over numbers, and finite differences."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from lightning_meta.core.fast_weights import (
    DeltaLayer,
    FastLayer,
    FastWeights,
    SelfReferentialLayer,
    delta_rule,
    read,
    written,
)
from lightning_meta.errors import ConfigError

WIDTH, HEADS, E, L = 6, 2, 3, 4
KINDS = {"delta": DeltaLayer, "self-referential": SelfReferentialLayer}


def layer(kind: str, width: int = WIDTH, heads: int = HEADS) -> FastLayer:
    torch.manual_seed(0)
    made = KINDS[kind](width, heads).double()
    for parameter in made.parameters():  # scales of 1 and shifts of 0 hide errors
        nn.init.normal_(parameter, std=0.7)
    return made


def rows(*shape: int) -> Tensor:
    return torch.randn(*shape, WIDTH, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def stream(reader: FastLayer, x_LD: Tensor) -> tuple[Tensor, Tensor]:
    """All outputs, and the matrices at the end."""
    weights, outputs = reader.start(x_LD), []
    for x_D in x_LD:
        output, write = reader(x_D[None], weights)
        weights = written(weights, write)
        outputs.append(output[0])
    return torch.stack(outputs), weights


def by_delta_rule(keys: Tensor, values: Tensor, rate: float = 1.0) -> Tensor:
    """The matrix of one head after writes to an empty one."""
    weights = torch.zeros(1, values.shape[1], keys.shape[1]).double()
    for key, value in zip(keys, values, strict=True):
        write = delta_rule(weights, key[None, None], value[None, None], torch.tensor(rate).double())
        weights = written(weights, write)
    return weights


def test_orthonormal_keys_are_a_sum_of_outer_products_and_give_back_what_was_stored() -> None:
    keys, values = torch.linalg.qr(torch.randn(5, 5).double())[0][:4], torch.randn(4, 3).double()
    weights = by_delta_rule(keys, values)
    torch.testing.assert_close(weights[0], sum(torch.outer(v, k) for k, v in zip(keys, values, strict=True)))
    torch.testing.assert_close(read(weights, keys[:, None])[:, 0], values)


def test_a_key_that_comes_again_is_overwritten() -> None:
    """Where a sum of outer products would answer with both values."""
    key, values = F.normalize(torch.randn(1, 4).double()), torch.randn(2, 3).double()
    weights = by_delta_rule(key.expand(2, -1), values)
    torch.testing.assert_close(read(weights, key[:, None])[0, 0], values[1])
    assert torch.equal(by_delta_rule(key, values[:1], rate=0.0), torch.zeros(1, 3, 4))


def test_many_turns_of_the_delta_rule_are_least_squares() -> None:
    """Of least norm: it never leaves the span of the keys."""
    keys, values = torch.eye(3, 5).double() + 0.2 * rows(1)[..., :5], torch.randn(3, 2).double()
    weights = by_delta_rule(keys.repeat(60, 1), values.repeat(60, 1), rate=0.8)
    torch.testing.assert_close(weights[0], (torch.linalg.pinv(keys) @ values).T, rtol=1e-8, atol=1e-10)


def test_one_hot_query_and_key_copy_a_column_and_change_nothing_else() -> None:
    """At a rate of 1 the matrix answers to the key what it answered to the query."""
    weights, one_hot = torch.randn(1, 7, 3).double(), torch.eye(3).double()
    write = delta_rule(weights, one_hot[None, 2:], read(weights, one_hot[None, :1]), torch.ones(1, 1, 7).double())
    after = written(weights, write)
    torch.testing.assert_close(after[..., 2], weights[..., 0])
    assert torch.equal(after[..., :2], weights[..., :2])


def softmax(x: np.ndarray) -> np.ndarray:
    return np.exp(x) / np.exp(x).sum()


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def test_a_self_referential_layer_is_the_equations_row_by_row() -> None:
    """Its four blocks as four matrices of each head, each with a rate of its own."""
    made, x = layer("self-referential"), rows(L)
    found, after = stream(made, x)
    cuts = np.cumsum([E, E, E])
    blocks = [np.split(head, cuts) for head in made.weights.detach().numpy().copy()]
    normed, out = made.norm(x).detach().numpy(), made.out.weight.detach().numpy()
    for t in range(L):
        answers = []
        for head in range(HEADS):
            W_y, W_q, W_k, W_b = blocks[head]
            part = x[t, head * E : (head + 1) * E].numpy()
            query, key, rates = softmax(W_q @ part), softmax(W_k @ part), sigmoid(W_b @ part)
            answers.append(W_y @ part)
            blocks[head] = [
                W + rate * np.outer(W @ query - W @ key, key) for W, rate in zip(blocks[head], rates, strict=True)
            ]
        np.testing.assert_allclose(found[t].detach(), normed[t] + out @ np.concatenate(answers), rtol=1e-10)
    np.testing.assert_allclose(after.detach(), [np.concatenate(parts) for parts in blocks], rtol=1e-10)


def test_a_delta_layer_is_the_equations_row_by_row() -> None:
    made, x = layer("delta"), rows(L)
    found, after = stream(made, x)
    slow, out = made.slow.weight.detach().numpy(), made.out.weight.detach().numpy()
    normed, weights = made.norm(x).detach().numpy(), np.zeros((HEADS, E, E))

    def positive(z: np.ndarray) -> np.ndarray:
        z = np.where(z > 0, z + 1, np.exp(z))
        return z / z.sum()

    for t in range(L):
        answers = []
        for head, said in enumerate((slow @ normed[t]).reshape(HEADS, -1)):
            query, key, value = positive(said[:E]), positive(said[E : 2 * E]), said[2 * E : 3 * E]
            weights[head] += sigmoid(said[-1]) * np.outer(value - weights[head] @ key, key)
            answers.append(weights[head] @ query)  # after the write
        np.testing.assert_allclose(found[t].detach(), x[t] + out @ np.concatenate(answers), rtol=1e-10)
    np.testing.assert_allclose(after.detach(), weights, rtol=1e-10)


def test_a_matrix_that_changes_nothing_is_a_linear_map() -> None:
    """Rates of 0: no row is told from where in the stream it stands."""
    made = layer("self-referential")
    x = torch.cat([rows(L).abs(), rows(1).abs()])  # positive, so that the last rows of the matrix make all rates 0
    with torch.no_grad():
        made.weights[:, -4:] = -1e4
    found, after = stream(made, x)
    assert torch.equal(after, made.weights)
    heads = torch.block_diag(*made.weights[:, :E])
    torch.testing.assert_close(found, made.norm(x) + x @ heads.T @ made.out.weight.T)


class Stream(nn.Module):
    """Of a layer, so that its parameters can be given for all calls."""

    def __init__(self, reader: FastLayer) -> None:
        super().__init__()
        self.reader = reader

    def forward(self, x_LD: Tensor) -> Tensor:
        return stream(self.reader, x_LD)[0]


@pytest.mark.parametrize("kind", KINDS)
def test_derivatives_through_a_stream_are_those_of_finite_differences(kind: str) -> None:
    """First and second ones, of a direction in which all numbers change, through matrices that were rewritten twice."""
    network = Stream(layer(kind, 4, 2))
    theta = {name: p.detach().requires_grad_() for name, p in network.named_parameters()}
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(2)).double().requires_grad_()

    def loss(x: Tensor, *values: Tensor) -> Tensor:
        return functional_call(network, dict(zip(theta, values, strict=True)), (x,)).sin().sum()

    assert torch.autograd.gradcheck(loss, (x, *theta.values()), fast_mode=True)
    assert torch.autograd.gradgradcheck(loss, (x, *theta.values()), fast_mode=True)


@pytest.mark.parametrize("kind", KINDS)
def test_alternatives_for_the_next_row_are_as_if_alone(kind: str) -> None:
    network = FastWeights([layer(kind) for _ in range(2)], WIDTH, 2).double()
    memory = network.start(rows(1))
    for x in rows(L):
        memory = network.written(memory, network(x[None], memory)[1])
    together, _ = network(rows(3), memory)
    for i, x in enumerate(rows(3)):
        torch.testing.assert_close(network(x[None], memory)[0][0], together[i], rtol=1e-10, atol=1e-12)


def test_heads_must_share_the_width() -> None:
    with pytest.raises(ConfigError, match="width=8 must be a multiple of heads=3"):
        DeltaLayer(8, 3)
