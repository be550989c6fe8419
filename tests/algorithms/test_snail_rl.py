"""SNAIL for reinforcement learning: convolutions and attention of PyTorch, read at once as step by step."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_meta.algorithms import SNAILRL
from lightning_meta.compat import tree_map
from lightning_meta.modules.rollout import Told
from lightning_meta.worlds import Discrete
from tests.algorithms.rollout_cases import arms, processes

SMALL = dict(length=5, filters=4, keys=3, values=2)
ROLLOUTS = {
    "snail-rl": (lambda **kw: SNAILRL(1, Discrete(3), **SMALL, **kw), arms),
    "snail-rl-processes": (lambda **kw: SNAILRL(4, Discrete(3), **SMALL, **kw), processes),
}


def told(steps: int) -> Told:
    return Told(*(torch.randn(steps, 2, *size).double() for size in ((1,), (3,), (), ())))


def test_the_blocks_are_dilated_convolutions_and_causal_attention() -> None:
    torch.manual_seed(0)
    module = SNAILRL(1, Discrete(3), **SMALL).double()
    inputs = torch.randn(9, 2, module.told_size).double()
    truth = module.project(inputs).movedim(0, -1)  # (B, C, L)
    for block in module.blocks:
        truth = torch.cat([truth, attended(block, truth) if hasattr(block, "queries") else convolved(block, truth)], 1)
    torch.testing.assert_close(module.sequences(inputs), truth.movedim(-1, 0))


def attended(block: nn.Module, x_BCL: Tensor) -> Tensor:
    queries, keys, values = (part(x_BCL.mT) for part in (block.queries, block.keys, block.values))
    return F.scaled_dot_product_attention(queries, keys, values, is_causal=True).mT


def convolved(block: nn.Module, x_BCL: Tensor) -> Tensor:
    conv = nn.Conv1d(x_BCL.shape[1], len(block.now.bias), 2, dilation=block.dilation).double()
    conv.load_state_dict({
        "weight": torch.stack([block.before.weight, block.now.weight], dim=-1), "bias": block.now.bias
    })  # fmt: skip
    value, gate = conv(F.pad(x_BCL, (block.dilation, 0))).chunk(2, dim=1)
    return value.tanh() * gate.sigmoid()


def test_a_round_is_read_at_once_as_step_by_step() -> None:
    torch.manual_seed(0)
    module, steps = SNAILRL(1, Discrete(3), **SMALL).double(), told(7)
    memory = module.blank(torch.zeros(2, 1).double())
    memory, before = module.read_round(memory, tree_map(lambda leaf: leaf[:3], steps))
    at_once, features = module.read_round(memory, tree_map(lambda leaf: leaf[3:], steps))
    for place in range(3, 7):
        memory = module.read(memory, tree_map(lambda leaf, p=place: leaf[p], steps))
        torch.testing.assert_close(module.features(memory), features[place - 3])
    torch.testing.assert_close(memory, at_once)
    assert before.shape[0] == 3


def test_every_step_sees_the_first_and_none_sees_a_later_one() -> None:
    torch.manual_seed(0)
    module = SNAILRL(1, Discrete(3), **SMALL).double()
    inputs = torch.randn(6, 1, module.told_size).double().requires_grad_()
    for place, features in enumerate(module.sequences(inputs)):
        (slope,) = torch.autograd.grad(features.sum(), inputs, retain_graph=True)
        assert (slope.abs().sum((1, 2)) > 0).tolist() == [step <= place for step in range(6)]
