"""Memory-augmented neural networks against loops over slots, and what they may see of labels."""

import math

import numpy as np
import pytest
import torch

from lightning_meta.algorithms import MANN
from lightning_meta.algorithms.memory.mann import Memory, access, presentation_accuracies
from lightning_meta.core import Batch, Episode
from lightning_meta.errors import ConfigError
from tests.conftest import SIZE, Make

CASES: dict[str, Make] = {"mann": lambda: MANN(n_way=3, image_size=8, hidden=16, slots=8, width=6, heads=2)}
B, M, W, R = 2, 7, 3, 2


def small(**settings: int) -> MANN:
    return MANN(n_way=3, image_size=8, hidden=16, slots=8, width=6, heads=2, **settings).double()


def test_one_access_equals_the_equations_slot_by_slot() -> None:
    contents, usage = torch.randn(B, M, W).double(), torch.rand(B, M).double()
    read_before = torch.rand(B, R, M).double().softmax(-1)
    least_before = torch.eye(M).double()[torch.tensor([[4, 1], [0, 6]])]
    keys, writes = torch.randn(2, B, R, W).double()
    gates, strengths = torch.rand(B, R).double(), 1 + torch.rand(B, R).double()
    after = access(Memory(contents, usage, read_before, least_before), keys, writes, gates, strengths, usage_decay=0.9)
    for b in range(B):
        memory, used = contents[b].numpy().copy(), 0.9 * usage[b].numpy()
        memory[(4, 0)[b]] = 0  # the least used slot of all, no other
        for head in range(R):
            for slot in range(M):
                gate = gates[b, head].item()
                write = gate * read_before[b, head, slot] + (1 - gate) * least_before[b, head, slot]
                memory[slot] += write.item() * writes[b, head].numpy()
                used[slot] += write.item()
        for head in range(R):
            key = keys[b, head].numpy()
            cosines = [key @ row / np.linalg.norm(key) / np.linalg.norm(row) for row in memory]
            scores = [math.exp(strengths[b, head] * cosine) for cosine in cosines]
            read = np.array(scores) / sum(scores)
            used += read
            np.testing.assert_allclose(after.read_weights[b, head], read, rtol=1e-10)
        np.testing.assert_allclose(after.contents[b], memory, rtol=1e-10)
        np.testing.assert_allclose(after.usage[b], used, rtol=1e-10)
        assert after.least_used[b].argmax(1).tolist() == np.argsort(used)[:R].tolist()
    assert set(after.least_used.unique().tolist()) == {0, 1}


def test_the_first_step_writes_what_the_controller_says_into_the_first_slots() -> None:
    """Memory is empty and nothing was read yet, so a head writes its vector, as far as its gate is closed."""
    module, x = small(), torch.rand(B, 64).double()
    _, state = module.step(x, module.start(x))
    hidden, _ = state.controller
    for b in range(B):
        for head in range(2):
            weight, bias = (p[6 * head : 6 * head + 6] for p in (module.writes.weight, module.writes.bias))
            gate = torch.sigmoid(module.gates.weight[head] @ hidden[b] + module.gates.bias[head])
            expected = (1 - gate) * torch.tanh(weight @ hidden[b] + bias)
            torch.testing.assert_close(state.memory.contents[b, head], expected, rtol=1e-10, atol=1e-12)
    assert not state.memory.contents[:, 2:].any()


def test_accuracy_at_each_presentation_equals_counting() -> None:
    labels = torch.arange(3).repeat(5)[torch.randperm(15)]
    logits = torch.randn(15, 3) + 0.5 * torch.eye(3)[labels]
    seen, right = {0: 0, 1: 0, 2: 0}, dict.fromkeys(range(1, 6), 0)
    for label, predicted in zip(labels.tolist(), logits.argmax(1).tolist(), strict=True):
        seen[label] += 1
        right[seen[label]] += label == predicted
    found = presentation_accuracies(logits, labels)
    assert {name: value.item() for name, value in found.items()} == pytest.approx(
        {f"acc_presentation_{n}": right[n] / 3 for n in (1, 2, 5)}
    )


def test_the_label_of_a_step_is_seen_at_the_next_step_only(episodes: Episode) -> None:
    module, x, y = small(), episodes.support.x[0], episodes.support.y[0]
    before = module.adapt(Batch(x, y)).logits
    for t in range(len(y)):
        after = module.adapt(Batch(x, y.index_fill(0, torch.tensor(t), (int(y[t]) + 1) % 3))).logits
        assert torch.equal(after[: t + 1], before[: t + 1])
        assert (after[t + 1 :] - before[t + 1 :]).abs().amax() > 1e-9 if t + 1 < len(y) else True


def test_a_query_example_is_the_next_step_of_the_stream(episodes: Episode) -> None:
    """So its logits are those that a longer support set gives at its last step, whatever other queries there are."""
    module, support, query = small(), *(Batch(*(leaf[0] for leaf in part)) for part in episodes)
    out = module.query_loss(module.adapt(support), query)
    for i in range(len(query.y)):
        longer = Batch(torch.cat([support.x, query.x[i : i + 1]]), torch.cat([support.y, query.y[i : i + 1]]))
        torch.testing.assert_close(out.preds[i], module.adapt(longer).logits[-1], rtol=1e-10, atol=1e-12)


def test_mistaken_settings_are_refused_with_the_numbers() -> None:
    with pytest.raises(ConfigError, match=r"heads=4 .* slots=2"):
        MANN(n_way=3, slots=2)
    with pytest.raises(ConfigError, match=r"3 channels, .* in_channels=1"):
        small().pixels(torch.rand(2, 3, SIZE, SIZE))
