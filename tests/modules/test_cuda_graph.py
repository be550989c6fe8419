"""What recording a training step asks of the algorithms; `test_gpu.py` has the recordings themselves."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from lightning_meta.algorithms import MAML, LSTMOptimizer, MAMLPlusPlus, ProtoNet
from lightning_meta.core import Episode
from lightning_meta.core.cuda_graph import RecordedStep
from lightning_meta.errors import ConfigError
from lightning_meta.modules import EpisodicModule, MetaModule
from lightning_meta.modules.base import BUFFER, check_recordable
from tests.algorithms.cases import ONE_OF_A_CLASS, draw_for, make_of, marked
from tests.conftest import Make, blobs, conv4, random_episodes
from tests.core.test_cuda_graph import by_calling

WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "_linalg_check_errors", "_unique")


class Watch(TorchDispatchMode):
    """Notes operations that wait for the device or take tensors from the CPU to it."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, Tensor)]
        if any(name in str(func) for name in WAITS) or any(t.device.type == "cpu" and t.ndim > 0 for t in tensors):
            self.seen.add(str(func))
        return out


def tasks_for(name: str, n_tasks: int = 3) -> Episode:
    return draw_for(name)(n_tasks=n_tasks)


@pytest.mark.parametrize("name", [case for case in marked(ONE_OF_A_CLASS) if case.values[0] != "metaoptnet"])
def test_no_hook_waits_for_the_device(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the device `meta` tensors have no values, so that whoever asks for one fails, as in a recording."""
    monkeypatch.setattr("torch.autocast", lambda *args, **kwargs: nullcontext())  # `meta` has none
    module: EpisodicModule = make_of(name)().train()
    tasks = tree_map(lambda leaf: (leaf.float() if leaf.is_floating_point() else leaf).to("meta"), tasks_for(name))
    module.to("meta")
    with Watch() as watch:
        module.means(tasks)["loss"].backward()
    assert not watch.seen


def steps_of(make: Make, tasks: list[Episode], recorded: bool) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
    """Weights and logs of a training whose steps are numbered from 0."""
    torch.manual_seed(0)
    module: Any = make().double().train()
    step = RecordedStep(module, module._means_at, by_calling) if recorded else None
    optimizer, logs = torch.optim.SGD(module.parameters(), lr=0.01), []
    for number, batch in enumerate(tasks):
        type(module).step_at_hand = number
        torch.manual_seed(number)
        means = step(batch, module.schedule()) if step else module.means(batch)
        optimizer.zero_grad()
        means["loss"].backward()
        optimizer.step()
        for name in [name for name in means if name.startswith(BUFFER)]:
            module.get_buffer(name.removeprefix(BUFFER)).copy_(means[name])
        logs.append({name: value.detach().clone() for name, value in means.items()})
    return module.state_dict(), logs


class Scheduled(MAMLPlusPlus):
    """Changes of all kinds within four steps."""

    step_at_hand = 0

    @property
    def global_step(self) -> int:
        return MetaModule.global_step.fget(self) or self.step_at_hand  # type: ignore[attr-defined]

    def __init__(self) -> None:
        switches = dict(multi_step_until=3, first_order_until=1, per_step_statistics=True)
        super().__init__(conv4(), n_way=3, inner_steps=2, **switches)


@pytest.mark.parametrize(
    "name", ["scheduled", "reptile-carrying", "imaml", "mr-maml-weights", "neural_process", "baseline"]
)
def test_a_recorded_training_is_the_same_training(name: str) -> None:
    """Noise, running averages and schedules included."""
    tasks = [tree_map(lambda leaf, i=i: leaf[i : i + 2], tasks_for(name, n_tasks=6)) for i in (0, 2, 4, 0)]
    make = Scheduled if name == "scheduled" else make_of(name)
    expected, recorded = (steps_of(make, tasks, recorded=on) for on in (False, True))
    torch.testing.assert_close(recorded, expected, rtol=1e-9, atol=1e-12)


def test_a_schedule_that_the_hooks_hide_is_refused() -> None:
    class Secret(MAML):
        def adapt(self, support: Any) -> Any:
            return super().adapt(support) if self.global_step < 100 else {}

    module = Secret(conv4(), n_way=3, compile_training="cuda_graph").double()
    with pytest.raises(ConfigError, match=r"hooks of Secret read global_step.*let `schedule` return"):
        RecordedStep(module, module._means_at, by_calling)(random_episodes(), module.schedule())


def test_a_cpu_has_no_cuda_graphs(tmp_path: Path) -> None:
    trainer = pl.Trainer(
        max_steps=1, accelerator="cpu", inference_mode=False, logger=False, default_root_dir=tmp_path,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    module = MAML(conv4(), n_way=3, compile_training="cuda_graph")
    with pytest.raises(ConfigError, match=r"is on the cpu; set it to false, or trainer.accelerator to gpu"):
        trainer.fit(module, datamodule=blobs())
    trainer.test(module, datamodule=blobs(), verbose=False)  # records nothing


def test_weights_that_are_carried_on_are_refused() -> None:
    with pytest.raises(ConfigError, match="LSTMOptimizer carries weights from segment to segment"):
        LSTMOptimizer(compile_training="cuda_graph")


def test_recurrent_networks_of_cudnn_are_refused() -> None:
    check_recordable(ProtoNet(conv4()))
    with pytest.raises(ConfigError, match=r"lstm is an nn\.LSTM"):
        check_recordable(make_of("hochreiter")())
