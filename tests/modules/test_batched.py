"""A meta-batch in one call of the hooks: in chunks, task by task, and what tells it from a mapped one."""

import pytest
import torch
from torch import Tensor

from lightning_meta.core import Batch, TaskOutput
from lightning_meta.metrics import EpisodicMSE
from lightning_meta.modules import BatchedModule
from tests.conftest import random_functions


class Mean(BatchedModule[Tensor]):
    """Predicts the mean of the support values."""

    def __init__(self, **kwargs: object) -> None:
        super().__init__(metric=EpisodicMSE(), **kwargs)
        self.scale = torch.nn.Parameter(torch.tensor(2.0, dtype=torch.float64))
        self.calls: list[int] = []

    def adapt(self, support: Batch) -> Tensor:
        self.calls.append(len(support.x))
        return self.scale * support.y.mean(-2, keepdim=True)

    def query_loss(self, adapted: Tensor, query: Batch) -> TaskOutput:
        preds = adapted.expand_as(query.y)
        return TaskOutput((preds - query.y).square().mean((-2, -1)), preds, {"mean": adapted.squeeze((-2, -1))})


@pytest.mark.parametrize(
    ("options", "calls"), [({}, [5]), ({"task_chunk_size": 2}, [2, 2, 1]), ({"task_mode": "loop"}, [1] * 5)]
)
def test_hooks_are_called_once_for_each_chunk_of_the_meta_batch(options: dict, calls: list[int]) -> None:
    module, tasks = Mean(**options), random_functions(n_tasks=5)
    out = module.play(tasks)
    assert module.calls == calls
    preds = 2 * tasks.support.y.mean(1, keepdim=True).expand(-1, 4, -1)
    torch.testing.assert_close(out.preds, preds)
    torch.testing.assert_close(out.loss, (preds - tasks.query.y).square().mean((1, 2)))
    torch.testing.assert_close(out.logs["mean"], preds[:, 0, 0])
    out.loss.mean().backward()
    slope = (2 * (preds - tasks.query.y) * preds / 2).mean()
    torch.testing.assert_close(module.scale.grad, slope)
