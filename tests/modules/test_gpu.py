"""On a CUDA device: the same meta-gradient as on the CPU, and the same training when its steps are recorded."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch.utils._pytree import tree_map

from lightning_meta.algorithms import MAML, MAMLPlusPlus, ProtoNet, Reptile
from lightning_meta.backbones import EpisodicBatchNorm2d
from lightning_meta.errors import ConfigError
from lightning_meta.modules import EpisodicModule
from tests.algorithms.cases import CASES, REGRESSORS, data_for, make_of, marked
from tests.conftest import Make, blobs, conv4, meta_gradient
from tests.modules.test_cuda_graph import tasks_for

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
ALL = marked(CASES)


@pytest.fixture
def gentle_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same on every device and however tasks are mapped, as in the contract."""
    monkeypatch.setattr("torch.randn_like", lambda x: torch.cos(10 * x).detach())
    monkeypatch.setattr("torch.rand_like", lambda x: (torch.cos(10 * x).detach() + 1) / 2)


@pytest.mark.usefixtures("gentle_noise")
@pytest.mark.parametrize("mode", ["vmap", "loop"])
@pytest.mark.parametrize("name", ALL)
def test_meta_gradient_equals_the_cpus(name: str, mode: str) -> None:
    torch.manual_seed(0)
    module, tasks = make_of(name)().double(), tasks_for(name)
    module.task_mode = mode  # type: ignore[assignment]
    expected = meta_gradient(module, tasks)
    on_gpu = meta_gradient(module.to("cuda"), tree_map(lambda leaf: leaf.to("cuda"), tasks))
    torch.testing.assert_close({name: g.cpu() for name, g in on_gpu.items()}, expected, rtol=1e-7, atol=1e-10)
    assert max(g.abs().max() for g in expected.values()) > 1e-4


@pytest.mark.usefixtures("gentle_noise")
@pytest.mark.parametrize("name", ALL)
def test_fit_under_bf16_starts_as_in_float64(name: str, tmp_path: Path) -> None:
    """The first step's loss up to rounding; and two steps change the weights, in fp32, to other finite ones."""
    exact, rounded = (
        fitted(make_of(name), False, tmp_path, steps=2, precision=precision) for precision in ("64-true", "bf16-mixed")
    )
    assert rounded[1][0]["train/loss"] == pytest.approx(exact[1][0]["train/loss"], rel=0.1, abs=0.02)
    torch.manual_seed(0)
    before = dict(make_of(name)().named_parameters())
    after = dict(rounded[0].named_parameters())
    assert all(param.dtype == torch.float32 and param.isfinite().all() for param in after.values())
    assert any(not torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize(("precision", "tolerance"), [("32-true", 0.03), ("bf16-mixed", 0.15)])
def test_fit_and_test_with_the_data_on_the_device(precision: str, tolerance: float, tmp_path: Path) -> None:
    """The tested accuracy is what the CPU finds with the same weights, up to flips of near ties."""
    trainer = pl.Trainer(
        max_epochs=1, accelerator="gpu", devices=1, precision=precision, inference_mode=False, logger=False,
        enable_checkpointing=False, default_root_dir=tmp_path,
    )  # fmt: skip
    module, data = MAML(conv4(), n_way=3, inner_lr=0.1), blobs(on_device=True)
    trainer.fit(module, datamodule=data)
    assert data.dataset("train")[0].support.x.is_cuda
    (result,) = trainer.test(module, datamodule=data, verbose=False)
    on_cpu = blobs()
    on_cpu.setup("test")
    tasks = on_cpu.dataset("test").__getitems__(range(7))
    accuracy = module.cpu().eval().metric.per_episode(module.play(tasks).preds, tasks.query.y).mean().item()
    assert result["test/acc"] == pytest.approx(accuracy, abs=tolerance)


def fitted(
    make: Make, recorded: bool, folder: Path, steps: int = 5, **options: Any
) -> tuple[EpisodicModule, list[dict]]:
    """A short training in float64; the module, and what was logged in each step."""
    rows: list[dict] = []

    class Diary(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
            rows.append({name: float(value) for name, value in trainer.callback_metrics.items() if "train" in name})

    torch.manual_seed(0)
    module = make()
    module.compile_training = "cuda_graph" if recorded else False
    name = next((name for name in CASES if make_of(name) is make), "")
    data = data_for(name, **({} if name in REGRESSORS else {"on_device": True}))
    settings = dict(max_steps=steps, limit_val_batches=1, log_every_n_steps=1, precision="64-true") | options
    trainer = pl.Trainer(
        accelerator="gpu", devices=1, inference_mode=False, logger=False, callbacks=[Diary()], default_root_dir=folder,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, **settings,
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    return module.cpu(), rows


def assert_recorded_is_the_same(make: Make, folder: Path, **options: Any) -> None:
    """Up to the order in which a GPU adds up."""
    (plain, rows), (recorded, recorded_rows) = (fitted(make, on, folder, **options) for on in (False, True))
    torch.testing.assert_close(recorded.state_dict(), plain.state_dict(), rtol=1e-7, atol=1e-9)
    assert recorded_rows == [pytest.approx(row, rel=1e-6) for row in rows]
    assert len({row["train/loss"] for row in rows}) == len(rows)


@pytest.mark.parametrize("name", [case for case in ALL if case.values[0] not in ("hochreiter", "metaoptnet")])
def test_recorded_steps_are_the_same_training(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients, buffers and logs, of every algorithm. Its noise is gentle here, as in the contract."""
    monkeypatch.setattr("torch.randn_like", lambda x: torch.cos(10 * x).detach())
    assert_recorded_is_the_same(make_of(name), tmp_path)


NOISY: dict[str, Make] = {
    "mini-batches": lambda: Reptile(conv4(), n_way=3, inner_lr=0.01, inner_steps=3, inner_batch_size=2),
    "dropout": lambda: ProtoNet(torch.nn.Sequential(conv4(), torch.nn.Dropout(0.5))),
}


@pytest.mark.parametrize("make", NOISY.values(), ids=[*NOISY])
def test_noise_of_recorded_steps_is_that_of_the_step(make: Make, tmp_path: Path) -> None:
    assert_recorded_is_the_same(make, tmp_path)


def test_schedules_go_on_in_recorded_steps(tmp_path: Path) -> None:
    """First order for two steps; the multi-step loss fades until the fourth."""
    switches = dict(multi_step_until=4, first_order_until=2, per_step_statistics=True)
    assert_recorded_is_the_same(lambda: MAMLPlusPlus(conv4(), n_way=3, inner_steps=2, **switches), tmp_path)


def test_running_averages_go_on_in_recorded_steps(tmp_path: Path) -> None:
    assert_recorded_is_the_same(lambda: ProtoNet(conv4("running"), task_mode="loop"), tmp_path)


OPTIONS: dict[str, dict[str, Any]] = {
    "clipping": dict(gradient_clip_val=0.01),
    "accumulation": dict(accumulate_grad_batches=2),
    "ddp": dict(strategy="ddp"),
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=[*OPTIONS])
def test_the_trainers_options_hold_for_recorded_steps(options: dict[str, Any], tmp_path: Path) -> None:
    plain, recorded = (
        fitted(lambda: MAML(conv4(), n_way=3, inner_lr=0.1), on, tmp_path, steps=3, **options)[0]
        for on in (False, True)
    )
    torch.testing.assert_close(recorded.state_dict(), plain.state_dict(), rtol=1e-7, atol=1e-9)


def test_recorded_bf16_is_the_same_training_up_to_rounding(tmp_path: Path) -> None:
    """The weights are rounded anew in each replay."""

    def make() -> ProtoNet:
        return ProtoNet(conv4(), optimizer=partial(torch.optim.Adam, lr=0.005))

    plain, recorded = (fitted(make, on, tmp_path, precision="bf16-mixed")[1] for on in (False, True))
    for before, after in zip(plain, recorded, strict=True):
        assert after["train/loss"] == pytest.approx(before["train/loss"], rel=0.02)


def test_running_averages_of_one_channel_under_vmap() -> None:
    """Seen with the 1-channel maps of TPN and ReNet: cuDNN's operation refused them in validation."""
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 1, 3, padding=1), EpisodicBatchNorm2d(1, "running")).eval()
    x = torch.randn(4, 5, 3, 8, 8)
    on_gpu = network.to("cuda")
    torch.testing.assert_close(
        torch.vmap(on_gpu)(x.to("cuda")).cpu(),
        network.cpu()(x.flatten(0, 1)).unflatten(0, (4, 5)),
        rtol=1e-2,
        atol=1e-2,
    )


def test_what_cannot_be_recorded_is_refused(tmp_path: Path) -> None:
    class Waits(ProtoNet):
        def head_loss(self, prototypes: Any, query: Any) -> Any:
            out = super().head_loss(prototypes, query)
            return out._replace(loss=out.loss * (1 + bool(out.loss > 0)))

    with pytest.raises(ConfigError, match="step of Waits cannot be compiled here; set compile_training to false"):
        fitted(lambda: Waits(conv4(), task_mode="loop"), True, tmp_path)
