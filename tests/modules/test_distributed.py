"""Two processes do what one does: the same training, and the same result over any number of test episodes.

The processes are of the gloo backend, so a machine without GPUs runs them. They play `main` below, which is launched in
the ways a user would: by the Trainer itself, by torchrun, and by torchrun on two hosts (two loopback addresses).
"""

import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch.utils._pytree import tree_leaves

from lightning_meta.algorithms import (
    DADA,
    MAML,
    MAMLRL,
    MAMLTRPO,
    MANN,
    AutoAugment,
    LSTMOptimizer,
    MAMLPlusPlus,
    MetaWeightNet,
    NASReinforce,
    ProtoNet,
    RegularizedEvolution,
    Reptile,
)
from lightning_meta.callbacks import EpisodeTable
from lightning_meta.core import Momentum
from lightning_meta.datamodules import QuadraticOptimizees, TaskDataModule, UniformTasks
from lightning_meta.modules import BilevelModule, CarriedModule, ChildrenModule, MetaModule
from lightning_meta.reports import Calibration, LearningCurves
from lightning_meta.worlds import Continuous, Navigation
from tests.algorithms.bilevel_cases import cell, held_out, network, whole_trainings
from tests.algorithms.rollout_cases import rollouts
from tests.conftest import SIZE, blobs, conv4

STEPS, META_BATCH, TEST_EPISODES = 8, 4, 7
ALGORITHMS: dict[str, Callable[[], MetaModule]] = {
    "maml": lambda: MAML(conv4(), n_way=3, inner_lr=0.1, inner_steps=1),
    "reptile": lambda: Reptile(conv4(), n_way=3, inner_lr=0.01, inner_steps=2, carry_inner_state=True),
    "maml_plus_plus": lambda: MAMLPlusPlus(conv4(), n_way=3, inner_lr=0.1, inner_steps=1, per_step_statistics=True),
    "protonet": lambda: ProtoNet(conv4()),
    "protonet-running": lambda: ProtoNet(conv4("running")),
    "protonet-variable": lambda: ProtoNet(conv4()),
    "mann": lambda: MANN(n_way=3, image_size=SIZE, hidden=10, slots=8, width=6, heads=2),
    "lstm_optimizer": lambda: LSTMOptimizer(hidden=4),
    "nas_reinforce": lambda: NASReinforce(cell(), 4),
    "regularized_evolution": lambda: RegularizedEvolution(cell(), 4, population=8, sample=3),
    "maml_rl": lambda: MAMLRL(2, Continuous(2), hidden=[8], activation="tanh"),
    "maml_trpo": lambda: MAMLTRPO(2, Continuous(2), hidden=[4], activation="tanh", cg_steps=3),
    "meta_weight_net": lambda: MetaWeightNet(network(), 4, hidden=5, inner_optimizer=Momentum),
    "dada": lambda: DADA(network(), 4),  # draws at random in every inner step
    "autoaugment": lambda: AutoAugment(network(), 4),  # compares the trainings of all processes
}
VARIABLE = {"protonet-variable": UniformTasks(n_way=(2, 4), k_shot=(1, 4), n_query=(1, 3))}
SWITCHES: dict[str, dict[str, Any]] = {"protonet-running": {"sync_batchnorm": True}}
LAUNCHERS = {
    "trainer": [[]],
    "torchrun": [["-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=29611"]],
    "two hosts": [
        ["-m", "torch.distributed.run", "--nproc_per_node=1", "--nnodes=2", f"--node_rank={rank}",
         "--master_addr=127.0.0.1", "--master_port=29613", f"--local_addr=127.0.0.{rank + 1}"]
        for rank in (0, 1)
    ],
}  # fmt: skip


class Diary(pl.Callback):
    """A fingerprint of each training episode, in the order in which this process plays them."""

    def __init__(self) -> None:
        self.episodes: list[float] = []

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        for part in batch if isinstance(batch, list) else [batch]:
            leaves = [leaf.double().reshape(len(leaf), -1).sum(1) for leaf in tree_leaves(part)]
            self.episodes += torch.stack(leaves).sum(0).tolist()


def play(name: str, folder: Path, **how: Any) -> dict[str, Any]:
    """Train in float64 and test; what this process saw."""
    torch.manual_seed(0)
    module, diary = ALGORITHMS[name](), Diary()
    rate = 1.0 if isinstance(module, MAMLTRPO) else 0.05
    module.optimizer = lambda params: torch.optim.SGD(params, lr=rate)  # Adam would magnify rounding errors
    make_trainer = partial(
        pl.Trainer, max_epochs=-1, accelerator="cpu", precision="64-true", inference_mode=False, logger=False,
        use_distributed_sampler=False, num_sanity_val_steps=0, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, default_root_dir=folder / name,
        callbacks=[diary, EpisodeTable(), Calibration(), LearningCurves(rates=(0.001, 0.01, 0.1))],
        **SWITCHES.get(name, {}), **how,
    )  # fmt: skip
    trainer = make_trainer(max_steps=STEPS)
    sizes = dict(meta_batch_size=META_BATCH, steps_per_epoch=STEPS, test_episodes=TEST_EPISODES, eval_meta_batch_size=2)
    optimizes = isinstance(module, CarriedModule) and name != "autoaugment"  # it stops in the middle of optimizations
    data: TaskDataModule = blobs(variable=VARIABLE.get(name), **sizes)
    if isinstance(module, LSTMOptimizer):
        data = QuadraticOptimizees(3, unroll_steps=6, truncation=2, **sizes)
    elif isinstance(module, ChildrenModule):
        data = whole_trainings(**sizes)
    elif isinstance(module, BilevelModule):
        parts = dict(support_per_class=3, held_out_per_class=1, val_per_class=1, test_per_class=TEST_EPISODES)
        whole = dict(unroll_steps=2, evaluate="retrained") if name == "autoaugment" else {}
        data = held_out(truncation=2, **whole, **parts, **sizes)
    elif isinstance(module, MAMLRL):
        data = rollouts(Navigation(6), **sizes)
    table = next(callback for callback in trainer.callbacks if isinstance(callback, EpisodeTable))
    trainer.fit(module, datamodule=data)
    seen = {"weights": module.state_dict(), "episodes": diary.episodes}
    (seen["tested"],) = trainer.test(module, datamodule=data, verbose=False)
    seen["digest"], seen["table"] = table.digest, table.path.read_text() if table.path else ""
    if optimizes:
        trainer.save_checkpoint(checkpoint := folder / f"{name}.ckpt")
        trainer.strategy.barrier()
        seen["carried"] = torch.load(checkpoint, weights_only=True)["carried"]
        (again := ALGORITHMS[name]()).optimizer = module.optimizer
        make_trainer(max_steps=2 * STEPS).fit(again, datamodule=data, ckpt_path=checkpoint)
        seen["resumed"] = again.state_dict()
    return seen


def main() -> None:
    """Play every algorithm with two processes; each leaves what it saw in a file of its own."""
    folder, nodes = Path(sys.argv[1]), int(sys.argv[2])
    for name in ALGORITHMS:
        seen = play(name, folder, devices=2 // nodes, num_nodes=nodes, strategy="ddp")
        torch.save(seen, folder / f"{name}_{torch.distributed.get_rank()}.pt")


@pytest.fixture(
    scope="module",
    params=[name if name == "trainer" else pytest.param(name, marks=pytest.mark.slow) for name in LAUNCHERS],
)
def two(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """What the two processes saw, by algorithm."""
    folder, launchers = tmp_path_factory.mktemp("two"), LAUNCHERS[request.param]
    script = ["-m", "tests.modules.test_distributed", str(folder), str(len(launchers))]
    started = [
        subprocess.Popen(
            [sys.executable, *launcher, *script], cwd=Path(__file__).parents[2], text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for launcher in launchers
    ]  # fmt: skip
    for process in started:
        output, _ = process.communicate(timeout=900)
        assert process.returncode == 0, output
    return {
        name: [torch.load(folder / f"{name}_{rank}.pt", weights_only=True) for rank in (0, 1)] for name in ALGORITHMS
    }


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("one")
    return {name: play(name, folder, devices=1) for name in ALGORITHMS}


@pytest.mark.parametrize("name", ALGORITHMS)
def test_weights_after_training_are_those_of_one_process(name: str, one: Any, two: Any) -> None:
    start = ALGORITHMS[name]().double().state_dict()
    for rank in two[name]:
        torch.testing.assert_close(rank["weights"], one[name]["weights"], rtol=1e-9, atol=1e-9)
    assert max((start[key] - value).abs().max() for key, value in one[name]["weights"].items()) > 1e-3


@pytest.mark.parametrize("name", ALGORITHMS)
def test_mean_and_interval_over_test_episodes_are_those_of_one_process(name: str, one: Any, two: Any) -> None:
    for rank in two[name]:
        # Lightning keeps logged values in float32.
        assert rank["tested"] == pytest.approx(one[name]["tested"], abs=1e-6)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_table_of_test_episodes_is_that_of_one_process(name: str, one: Any, two: Any) -> None:
    """In the order of episodes, and with the digest by which runs know that they played the same ones."""
    first, second = two[name]
    assert first["digest"] == second["digest"] == one[name]["digest"]
    assert first["digest"]
    rows, expected = (
        [list(map(float, line.split(","))) for line in seen["table"].splitlines()[1:]] for seen in (first, one[name])
    )
    assert [row[0] for row in rows] == list(range(TEST_EPISODES))
    torch.testing.assert_close(rows, expected, rtol=0, atol=1e-6)
    assert len({tuple(row[1:]) for row in expected}) == TEST_EPISODES
    assert second["table"] == ""  # rank zero writes it


def test_a_checkpoint_has_the_optimizations_of_all_ranks(one: Any, two: Any) -> None:
    carried = one["lstm_optimizer"]["carried"]
    assert len(carried[0]) == META_BATCH
    for rank in two["lstm_optimizer"]:
        torch.testing.assert_close(rank["carried"], carried, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(rank["resumed"], one["lstm_optimizer"]["resumed"], rtol=1e-9, atol=1e-9)


def test_ranks_share_the_training_episodes_out(one: Any, two: Any) -> None:
    first, second = (rank["episodes"] for rank in two["maml"])
    share = META_BATCH // 2
    for step in range(STEPS):
        whole = one["maml"]["episodes"][step * META_BATCH : (step + 1) * META_BATCH]
        assert first[step * share : (step + 1) * share] + second[step * share : (step + 1) * share] == whole
    assert len(set(one["maml"]["episodes"])) == STEPS * META_BATCH


if __name__ == "__main__":
    main()
