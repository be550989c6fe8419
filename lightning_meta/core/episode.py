"""What an episode is made of.

NamedTuples are pytrees: `vmap`, collation and Lightning's device transfer understand them.

Shape letters used throughout: `T` tasks, `N` way, `K` shot, `Q` query examples of a task, `D` features.
"""

from typing import Literal, NamedTuple

from torch import Tensor

Split = Literal["train", "val", "test"]
# What an algorithm may need of episodes beyond the ordinary: "stream", each support set in a random order that belongs
# to its episode; "class_labels", training episodes labelled by the indices of their classes, 0..n_classes-1;
# "test_class_labels", episodes of validation and test labelled so too.
Need = Literal["stream", "class_labels", "test_class_labels"]


class Batch(NamedTuple):
    """Examples `x` and their targets `y`: class labels 0..N-1 (int64) or regression targets (float)."""

    x: Tensor
    y: Tensor


class Step(NamedTuple):
    """The examples of an inner step, and the key `()` int64 of what is drawn at random for it (see `core.dice`)."""

    x: Tensor
    y: Tensor
    key: Tensor


class Episode(NamedTuple):
    """One task: adapt on `support`, evaluate on `query`. In a meta-batch every leaf has a leading task axis `T`."""

    support: Batch
    query: Batch


# A meta-batch. Episodes whose shapes differ cannot stand on one task axis: each is a meta-batch of its own in a list.
Tasks = Episode | list[Episode]


class EpisodeShape(NamedTuple):
    """Classes per episode, and support and query examples per class. Regression tasks have one "class"."""

    n_way: int
    k_shot: int
    n_query: int

    def __str__(self) -> str:
        if self.n_way == 1:
            return f"{self.k_shot}-shot, {self.n_query} query points"
        return f"{self.n_way}-way {self.k_shot}-shot, {self.n_query} query per class"


class TaskOutput(NamedTuple):
    """What `query_loss` returns for one task.

    `loss` (scalar) is the quantity whose gradient is the meta-update; `preds` are the predictions for the query set
    (logits `(Q, N)`, or regression values shaped like `query.y`; what the module's metric reads); `logs` are further
    scalars by name: their mean is logged in training, their mean with its confidence interval in evaluation. `buffers`
    are new values of the module's buffers, by name: in training, their mean over the tasks of all processes comes into
    force with the outer update.
    """

    loss: Tensor
    preds: Tensor
    logs: dict[str, Tensor] = {}  # noqa: RUF012 - a NamedTuple's default, never mutated
    buffers: dict[str, Tensor] = {}  # noqa: RUF012
