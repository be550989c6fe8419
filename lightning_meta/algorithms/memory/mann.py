"""MANN: a controller with an external memory that it writes where memory is least used, and reads by content.

Santoro, Bartunov, Botvinick, Wierstra, Lillicrap: "One-shot Learning with Memory-Augmented Neural Networks" (2016),
arXiv:1605.06065.

The input at step t is an example with the label of the example before, so that a class must be bound to its label
across steps. The query set continues the stream: each query example is its next step, alone.

Deviations: labels are one-hot (the paper also has strings of five letters). Every class is presented equally often,
and images are not shifted or turned by small angles. Each head has a key, a gate, a least used slot and a vector to
write, as in two public implementations (tristandeleu/ntm-one-shot and ywatanabex/ntm-meta-learning on GitHub); in the
paper's equations one key is what is read by and what is written. The sharpness of a read is learned (the key strength
of Neural Turing Machines); under the paper's softmax over cosines one of 128 slots has at most 6 % of the weight. What
was read is an input of the next step, as in those machines. The loss is the mean over the stream's predictions and the
query's, not their sum.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_meta.backbones.recurrent import LSTMCell, LSTMState
from lightning_meta.compat import tree_map
from lightning_meta.core import Batch, TaskOutput
from lightning_meta.core.episode import Split
from lightning_meta.errors import ConfigError
from lightning_meta.modules import FixedWayModule, StreamModule

PRESENTATIONS = (1, 2, 5, 10)  # of which the paper reports the accuracy
SHARP = 8.0  # strength of keys at first: e^8 is far more than the number of slots


class Memory(NamedTuple):
    """Contents `(B, M, W)`, usage `(B, M)`, and each head's read weights and least used slot (one-hot), `(B, R, M)`.

    The first head's slot is the least used of all. Shape letters: `B` streams, `M` slots, `W` their width, `R` heads.
    """

    contents: Tensor
    usage: Tensor
    read_weights: Tensor
    least_used: Tensor


class State(NamedTuple):
    """Between two steps of a stream: controller, memory, what was read `(B, R, W)`, and the last label `(B, N)`."""

    controller: LSTMState
    memory: Memory
    reads: Tensor
    label: Tensor


class Stream(NamedTuple):
    """State after the support set, the logits `(S, N)` given for its examples before their labels, and these labels."""

    state: State
    logits: Tensor
    labels: Tensor


class MANN(StreamModule[Stream], FixedWayModule):
    """Read the support set step by step into a memory; classify each query example by one more step.

    Logs `acc_presentation_n`, the accuracy when a class is seen for the n-th time in the stream. The query set is the
    (k_shot + 1)-th.

    Args:
        n_way: classes per episode. On the command line it follows `data.n_way`.
        in_channels: of the images.
        image_size: side to which images are averaged before they are flattened (20 in the paper).
        hidden: units of the LSTM controller.
        slots: of the memory.
        width: of a slot.
        heads: that read and write.
        usage_decay: how much of a slot's usage is left after a step (gamma).
        **kwargs: of `EpisodicModule`.
    """

    def __init__(
        self,
        n_way: int | None = None,
        in_channels: int = 1,
        image_size: int = 20,
        hidden: int = 200,
        slots: int = 128,
        width: int = 40,
        heads: int = 4,
        usage_decay: float = 0.99,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not 1 <= heads <= slots:
            raise ConfigError(f"heads={heads} must be at least 1 and at most slots={slots}: each writes its own slot.")
        self.n_way = self.required_way(n_way)
        self.in_channels, self.image_size = in_channels, image_size
        self.slots, self.width, self.heads, self.usage_decay = slots, width, heads, usage_decay
        self.controller = LSTMCell(in_channels * image_size**2 + self.n_way + heads * width, hidden)
        self.keys = nn.Linear(hidden, heads * width, bias=False)  # a bias would make the first keys all alike
        self.writes = nn.Linear(hidden, heads * width)
        self.gates = nn.Linear(hidden, heads)
        self.strengths = nn.Linear(hidden, heads)
        nn.init.normal_(self.keys.weight, std=0.3)
        nn.init.constant_(self.strengths.bias, SHARP)
        self.classifier = nn.Linear(hidden + heads * width, self.n_way)

    def check_variable(self, split: Split) -> None:
        raise ConfigError(
            f"{type(self).__name__} is scored by how often each class has been seen, but {split} episodes vary in "
            "their shots; leave data.variable out."
        )

    def pixels(self, x: Tensor) -> Tensor:
        """Images `(B, C, H, W)` as vectors."""
        if x.shape[1] != self.in_channels:
            raise ConfigError(f"images have {x.shape[1]} channels, but MANN has in_channels={self.in_channels}.")
        return F.adaptive_avg_pool2d(x, self.image_size).flatten(1)

    def start(self, x_BF: Tensor) -> State:
        """Empty memory; the heads' first slots are the least used ones."""
        (size, _), zeros = x_BF.shape, x_BF.new_zeros
        memory = Memory(
            contents=zeros(size, self.slots, self.width),
            usage=zeros(size, self.slots),
            read_weights=zeros(size, self.heads, self.slots),
            least_used=torch.eye(self.heads, self.slots, dtype=x_BF.dtype, device=x_BF.device).expand(size, -1, -1),
        )
        reads_BRW = zeros(size, self.heads, self.width)
        return State(self.controller.zero_state(x_BF), memory, reads_BRW, zeros(size, self.n_way))

    def step(self, x_BF: Tensor, state: State) -> tuple[Tensor, State]:
        """Logits `(B, N)` for the examples, and the state in which their label is still that of the step before."""
        controller = self.controller(torch.cat([x_BF, state.label, state.reads.flatten(1)], dim=1), state.controller)
        hidden_BH, _ = controller
        keys_BRW, writes_BRW = (
            linear(hidden_BH).tanh().unflatten(1, (self.heads, self.width)) for linear in (self.keys, self.writes)
        )
        gates_BR, strengths_BR = self.gates(hidden_BH).sigmoid(), 1 + F.softplus(self.strengths(hidden_BH))
        memory = access(state.memory, keys_BRW, writes_BRW, gates_BR, strengths_BR, self.usage_decay)
        reads_BRW = memory.read_weights @ memory.contents
        logits_BN = self.classifier(torch.cat([hidden_BH, reads_BRW.flatten(1)], dim=1))
        return logits_BN, State(controller, memory, reads_BRW, state.label)

    def adapt(self, support: Batch) -> Stream:
        x_SF, labels_SN = self.pixels(support.x), F.one_hot(support.y, self.n_way).to(support.x.dtype)
        state, logits = self.start(x_SF[:1]), []
        for t in range(len(x_SF)):
            logits_1N, state = self.step(x_SF[t : t + 1], state)
            state = state._replace(label=labels_SN[t : t + 1])
            logits.append(logits_1N)
        return Stream(state, torch.cat(logits), support.y)

    def query_loss(self, stream: Stream, query: Batch) -> TaskOutput:
        x_QF = self.pixels(query.x)
        state = tree_map(lambda leaf: leaf.expand(len(x_QF), *leaf.shape[1:]), stream.state)
        logits_QN, _ = self.step(x_QF, state)
        loss = F.cross_entropy(torch.cat([stream.logits, logits_QN]), torch.cat([stream.labels, query.y]))
        return TaskOutput(loss, logits_QN, presentation_accuracies(stream.logits, stream.labels))


def access(
    memory: Memory, keys_BRW: Tensor, writes_BRW: Tensor, gates_BR: Tensor, strengths_BR: Tensor, usage_decay: float
) -> Memory:
    """One step of least recently used access: write, read, and find the slots that are now least used.

    A head adds its vector to the slots that it read last (gate open) or to a least used one (gate closed). The least
    used slot of all is erased first. A head reads by the similarity of its key to the contents as just written.
    """
    gates_BR1 = gates_BR[..., None]
    write_BRM = gates_BR1 * memory.read_weights + (1 - gates_BR1) * memory.least_used
    kept_BM1 = 1 - memory.least_used[:, 0, :, None]
    contents_BMW = memory.contents * kept_BM1 + write_BRM.mT @ writes_BRW
    norms_BM = torch.linalg.vector_norm(contents_BMW, dim=-1).clamp_min(1e-6)  # an empty slot is like nothing
    cosines_BRM = F.normalize(keys_BRW, dim=-1) @ contents_BMW.mT / norms_BM[:, None]
    read_BRM = (strengths_BR[..., None] * cosines_BRM).softmax(-1)
    usage_BM = usage_decay * memory.usage + read_BRM.sum(1) + write_BRM.sum(1)
    # A choice, not a value: nothing is differentiated through it. Stable, so that ties have one order.
    slots_BR = usage_BM.detach().argsort(dim=-1, stable=True)[:, : keys_BRW.shape[1]]
    least_used_BRM = F.one_hot(slots_BR, usage_BM.shape[1]).to(usage_BM.dtype)
    return Memory(contents_BMW, usage_BM, read_BRM, least_used_BRM)


def presentation_accuracies(logits_SN: Tensor, labels_S: Tensor) -> dict[str, Tensor]:
    """Accuracy at the n-th presentation of a class in a stream where all N classes occur equally often."""
    n_way = logits_SN.shape[1]
    one_hot_SN = F.one_hot(labels_S, n_way)
    presentation_S = (one_hot_SN.cumsum(0) * one_hot_SN).sum(1)
    correct_S = logits_SN.argmax(1) == labels_S
    return {
        f"acc_presentation_{n}": (correct_S & (presentation_S == n)).to(logits_SN.dtype).sum() / n_way
        for n in PRESENTATIONS
        if n <= len(labels_S) // n_way
    }
