"""Readers of tokens: none sees what comes later; both are right under vmap in second order."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from lightning_meta.backbones import NextToken, TokenLSTM, TokenTransformer
from lightning_meta.errors import ConfigError

V, L = 11, 7
each = pytest.mark.parametrize("kind", [TokenLSTM, TokenTransformer])


def small(kind: type[NextToken], **overrides: int) -> NextToken:
    torch.manual_seed(0)
    return kind(**(dict(vocabulary=V, length=L, width=8, layers=2) | overrides)).double()  # type: ignore[arg-type]


@each
def test_a_place_knows_of_the_tokens_up_to_it_and_of_no_others(kind: type[NextToken]) -> None:
    network, ids = small(kind), torch.randint(V, (1, L))
    before = network(ids)
    for place in range(L):
        changed = ids.clone()
        changed[0, place] = (changed[0, place] + 1) % V
        moved = (network(changed) - before).abs().amax(-1)[0] > 1e-9
        assert moved.tolist() == [other >= place for other in range(L)]
    torch.testing.assert_close(network(ids[:, :3]), before[:, :3])
    assert before.shape == (1, L, network.out_features) and network.outputs == V


def test_the_lstm_is_torch_s() -> None:
    network, ids = small(TokenLSTM), torch.randint(V, (3, L))
    fused = nn.LSTM(8, 8, 2, batch_first=True).double()
    fused.load_state_dict(
        {f"{name}_l{layer}": p for layer, cell in enumerate(network.cells) for name, p in cell.state_dict().items()}
    )
    truth, _ = fused(network.tokens(ids) + network.places)
    torch.testing.assert_close(network(ids), truth, rtol=1e-12, atol=1e-12)


@each
def test_second_order_under_vmap_equals_plain_autograd(kind: type[NextToken]) -> None:
    """The gradient of a query loss through two inner steps, of several tasks at once."""
    network = nn.Sequential(small(kind), nn.Linear(8, V).double())
    ids_TSBL = torch.randint(V, (3, 2, 2, L + 1))
    theta = {name: p.detach() for name, p in network.named_parameters()}

    def loss(params: dict[str, torch.Tensor], ids_BL: torch.Tensor) -> torch.Tensor:
        logits = functional_call(network, params, (ids_BL[:, :-1],))
        return F.cross_entropy(logits.flatten(0, 1), ids_BL[:, 1:].flatten())

    def adapted(params: dict[str, torch.Tensor], ids_SBL: torch.Tensor) -> torch.Tensor:
        for _ in range(2):
            slopes = grad(loss)(params, ids_SBL[0])
            params = {name: p - 0.5 * slopes[name] for name, p in params.items()}
        return loss(params, ids_SBL[1])

    found = vmap(grad(adapted), in_dims=(None, 0))(theta, ids_TSBL)
    for t, ids_SBL in enumerate(ids_TSBL):
        start = {name: p.clone().requires_grad_() for name, p in theta.items()}
        params = start
        for _ in range(2):
            slopes = torch.autograd.grad(loss(params, ids_SBL[0]), [*params.values()], create_graph=True)
            params = {name: p - 0.5 * g for (name, p), g in zip(params.items(), slopes, strict=True)}
        truth = torch.autograd.grad(loss(params, ids_SBL[1]), [*start.values()])
        torch.testing.assert_close([found[name][t] for name in start], [*truth], rtol=1e-10, atol=1e-14)


def test_data_whose_targets_are_no_next_tokens_are_refused() -> None:
    network = small(TokenLSTM)
    with pytest.raises(ConfigError, match="predicts the next tokens of a row, but the targets of CLINC150 are others"):
        network.check_data(SimpleNamespace(name="CLINC150", vocabulary=5))
    with pytest.raises(ConfigError, match="for vocabulary=11 token ids, but Topics has 12; set both"):
        network.check_data(SimpleNamespace(name="Topics", vocabulary=12, next_tokens=True))
    with pytest.raises(ConfigError, match="TokenLSTM needs vocabulary, the number of token ids, and length"):
        TokenLSTM(vocabulary=4)
