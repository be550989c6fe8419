"""Learning to reinforcement learn: its cell is PyTorch's, read step by step over the whole trial."""

import torch
from torch import nn

from lightning_meta.algorithms import LearningToReinforcementLearn
from lightning_meta.compat import tree_map
from lightning_meta.modules.rollout import Told
from lightning_meta.worlds import Discrete, TwoStep
from tests.algorithms.rollout_cases import arms, processes, rollouts

ROLLOUTS = {
    "learning-to-rl": (lambda **kw: LearningToReinforcementLearn(1, Discrete(3), hidden=6, **kw), arms),
    "learning-to-rl-processes": (
        lambda **kw: LearningToReinforcementLearn(4, Discrete(3), hidden=6, gae_lambda=0.9, **kw), processes,
    ),
    "learning-to-rl-two-step": (
        lambda **kw: LearningToReinforcementLearn(3, Discrete(2), hidden=6, **kw), lambda: rollouts(TwoStep(4)),
    ),
}  # fmt: skip


def test_keep_opens_the_forget_gates() -> None:
    """Without other weights, a step leaves sigmoid(keep) of the cell's state."""
    made = []
    for keep in (0.0, 2.0):
        torch.manual_seed(0)
        made.append(LearningToReinforcementLearn(4, Discrete(3), hidden=5, keep=keep))
    plain, module = made
    with torch.no_grad():
        module.inputs.bias -= plain.inputs.bias
    for weights in (module.inputs.weight, module.recurrent.weight, module.recurrent.bias):
        nn.init.zeros_(weights)
    cell = torch.rand(2, 5)
    told = Told(torch.rand(2, 4), torch.rand(2, 3), torch.rand(2), torch.ones(2))
    torch.testing.assert_close(module.read((torch.zeros(2, 5), cell), told)[1], torch.tensor(2.0).sigmoid() * cell)


def test_a_trial_is_read_as_by_the_lstm_of_torch() -> None:
    """Log-probabilities and values of two rounds, by one pass of `nn.LSTM` over all their steps."""
    torch.manual_seed(0)
    module, data = LearningToReinforcementLearn(4, Discrete(3), hidden=5).double(), processes(rounds=1)
    module.world = data.world
    trial = data.dataset("train").__getitems__([2])
    task, support, query = tree_map(
        lambda leaf: leaf[0].double() if leaf.is_floating_point() else leaf[0], tuple(trial)
    )
    rounds = module.play_rounds(task, support, query)[1]
    lstm = nn.LSTM(4 + 3 + 2, 5).double()
    lstm.load_state_dict({
        "weight_ih_l0": module.inputs.weight, "bias_ih_l0": module.inputs.bias,
        "weight_hh_l0": module.recurrent.weight, "bias_hh_l0": module.recurrent.bias,
    })  # fmt: skip
    hidden, _ = lstm(torch.cat([played.told.numbers() for played in rounds]))
    outputs = module.outputs(hidden)
    stream = module.adapt(rounds[-1])
    torch.testing.assert_close(stream.values, outputs[..., -1])
    taken = torch.cat([played.actions for played in rounds])
    chances = torch.distributions.Categorical(logits=outputs[..., :-1])
    torch.testing.assert_close(stream.log_probs, chances.log_prob(taken))
    torch.testing.assert_close(stream.entropies, chances.entropy())
