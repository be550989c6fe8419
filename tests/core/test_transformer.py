"""The Transformer against PyTorch's own, its memories against reading all at once, its derivatives against numbers."""

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad

from lightning_meta.core.transformer import CausalTransformer
from lightning_meta.errors import ConfigError

WIDTH, HEADS, LAYERS, ROWS = 8, 2, 2, 5


def transformer(width: int = WIDTH, layers: int = LAYERS) -> CausalTransformer:
    torch.manual_seed(0)
    network = CausalTransformer(width, layers, HEADS).double()
    for parameter in network.parameters():  # scales of 1 and shifts of 0 hide errors
        nn.init.normal_(parameter, std=0.5)
    return network


def rows(*shape: int) -> Tensor:
    return torch.randn(*shape, WIDTH, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_it_is_the_encoder_of_torch() -> None:
    ours = transformer()
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 2 * WIDTH, 0.0, "gelu", batch_first=True, norm_first=True)
    theirs = nn.TransformerEncoder(layer, LAYERS, nn.LayerNorm(WIDTH), enable_nested_tensor=False).double()
    named = dict(ours.named_parameters())
    places = {
        "norm_1": "norm1", "norm_2": "norm2", "out": "self_attn.out_proj",
        "perceptron.0": "linear1", "perceptron.2": "linear2",
    }  # fmt: skip
    state = {f"norm.{part}": named[f"norm.{part}"] for part in ("weight", "bias")}
    for place in range(LAYERS):
        for part in ("weight", "bias"):
            for here, there in places.items():
                state[f"layers.{place}.{there}.{part}"] = named[f"layers.{place}.{here}.{part}"]
            of_three = [named[f"layers.{place}.{name}.{part}"] for name in ("query", "key_value")]
            state[f"layers.{place}.self_attn.in_proj_{part}"] = torch.cat(of_three)
    theirs.load_state_dict(state)
    x = rows(3, ROWS)
    expected = theirs(x, mask=nn.Transformer.generate_square_subsequent_mask(ROWS, dtype=torch.float64))
    torch.testing.assert_close(ours(x)[0], expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("cuts", [(1, 1, 1, 1, 1), (2, 3), (4, 1)])
def test_a_sequence_that_grows_is_the_sequence(cuts: tuple[int, ...]) -> None:
    network, x, memories, outputs = transformer(), rows(3, ROWS), None, []
    for part in x.split(cuts, dim=1):
        output, memories = network(part, memories)
        outputs.append(output)
    whole, read = network(x)
    torch.testing.assert_close(torch.cat(outputs, dim=1), whole, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(memories, read, rtol=1e-10, atol=1e-12)


def test_derivatives_are_those_of_finite_differences() -> None:
    """First and second ones, in a scale that hides no row."""
    network = transformer(4, 1)
    x = (0.7 * torch.randn(3, 4, generator=torch.Generator().manual_seed(2)).double()).requires_grad_()
    weights = [network.layers[0].key_value.weight, network.norm.weight]

    def loss(x: Tensor, *weights: Tensor) -> Tensor:
        named = {"layers.0.key_value.weight": weights[0], "norm.weight": weights[1]}
        return functional_call(network, named, (x,))[0].sin().sum()

    assert torch.autograd.gradcheck(loss, (x, *weights))
    assert torch.autograd.gradgradcheck(loss, (x, *weights))


def test_a_meta_gradient_under_vmap_is_that_of_plain_autograd() -> None:
    """After two steps of an inner loop of its own for each of three tasks."""
    network, x = transformer(), rows(3, ROWS)
    theta = dict(network.named_parameters())

    def loss(params: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(network, params, (x,))[0].sin().mean()

    def after_two_steps(theta: dict[str, Tensor], x: Tensor) -> Tensor:
        for _ in range(2):
            slopes = grad(loss)(theta, x)
            theta = {name: value - 0.3 * slopes[name] for name, value in theta.items()}
        return loss(theta, x)

    mapped = torch.autograd.grad(torch.vmap(lambda x: after_two_steps(theta, x))(x).sum(), [*theta.values()])
    total = torch.zeros(())
    for task in x:
        params = theta
        for _ in range(2):
            slopes = torch.autograd.grad(loss(params, task), [*params.values()], create_graph=True)
            params = {name: p - 0.3 * slope for (name, p), slope in zip(params.items(), slopes, strict=True)}
        total = total + loss(params, task)
    expected = torch.autograd.grad(total, [*theta.values()])
    for ours, theirs in zip(mapped, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_heads_must_share_the_width() -> None:
    with pytest.raises(ConfigError, match="width=8 must be a multiple of heads=3"):
        CausalTransformer(8, 1, 3)
