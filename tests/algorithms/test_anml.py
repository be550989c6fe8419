"""ANML is OML where all gates are open; what is closed is neither seen nor learned."""

import pytest
import torch

from lightning_meta.algorithms import ANML, OML
from lightning_meta.backbones import MLP
from lightning_meta.core import Batch, Episode
from lightning_meta.errors import ConfigError
from tests.conftest import Make, conv4

CASES: dict[str, Make] = {"anml": lambda: ANML(conv4(), conv4(hidden=4), n_way=3, inner_lr=0.1)}


def anml() -> ANML:
    torch.manual_seed(0)
    return ANML(conv4(None), conv4(None, hidden=4), n_way=3, inner_lr=0.2).double()


def test_with_open_gates_it_is_oml(episodes: Episode) -> None:
    module = anml()
    plain = OML(module.backbone.backbone, n_way=3, inner_lr=0.2).double()
    plain.head.load_state_dict(module.head.state_dict())
    closed = module.play(episodes).preds
    with torch.no_grad():
        module.backbone.gates.weight.zero_()
        module.backbone.gates.bias.fill_(50.0)
    torch.testing.assert_close(module.play(episodes), plain.play(episodes), rtol=1e-9, atol=1e-12)
    assert (closed - plain.play(episodes).preds).abs().max() > 1e-3


def test_a_closed_gate_lets_its_column_of_the_head_stay(episodes: Episode) -> None:
    module = anml()
    with torch.no_grad():
        module.backbone.gates.weight.zero_()
        module.backbone.gates.bias.fill_(50.0)
        module.backbone.gates.bias[2] = -torch.inf
    moved = module.adapt(Batch(episodes.support.x[0], episodes.support.y[0]))["1.weight"] - module.theta()["1.weight"]
    assert not moved[:, 2].any()
    assert moved[:, :2].abs().max() > 1e-4


def test_both_networks_read_the_same_images() -> None:
    with pytest.raises(ConfigError, match="both read the same images"):
        ANML(conv4(), MLP(in_features=7, hidden=[3]), n_way=3)
