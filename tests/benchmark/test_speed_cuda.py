"""The comparison on a GPU, as far as a CPU can show: gradients, who is left out, and the report."""

from dataclasses import replace

import pytest
import torch
from torch.utils._pytree import tree_map

from lightning_meta.benchmark.speed import Cell
from lightning_meta.benchmark.speed_cuda import Race, Timing, network_of, run_race, table
from lightning_meta.core.episode import EpisodeShape

SMALL = Cell("MAML", "omniglot", EpisodeShape(3, 1, 2), 2, 2)
CPU = torch.device("cpu")


@pytest.mark.parametrize("task_map", ["vmap", "map"])
def test_jax_takes_the_same_meta_gradient(task_map: str) -> None:
    jax = pytest.importorskip("jax")
    from lightning_meta.benchmark.jax_maml import JaxMAML, batch

    race = Race(SMALL, CPU)
    with jax.enable_x64(True):
        tasks = tree_map(lambda leaf: leaf.double() if leaf.is_floating_point() else leaf, race.batches[0])
        maml = JaxMAML(network_of(race.module(torch.float64)), race.loop, tasks, task_map, tf32=False)  # type: ignore[arg-type]
        maml.compile()
        maml.step(batch(tasks))
        found = maml.first_gradient()
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, race.reference(), rtol=1e-8, atol=1e-10)


def test_who_takes_another_gradient_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    race = Race(SMALL, CPU)
    race.loop = replace(race.loop, first_order=True)  # of the peers alone
    timings = run_race(race, None, 2, 0.0, ["fp32"])
    assert [timing.contender for timing in timings] == ["ours"]
    assert len(timings[0].seconds) == 2
    assert "plain in fp32 is left out: its meta-gradient differs" in capsys.readouterr().out


def test_the_table_states_medians_and_ratios() -> None:
    timings = [Timing("ours", "fp32", 1.0, 1e-6, [0.1, 0.2, 0.4]), Timing("plain", "fp32", 0.5, 1e-6, [1.0, 1.0])]
    assert "| cell | ours | fp32 | 5.0 (2.5-10.0) | 5.0 | 1e-06 | 1.0 s |" in table({"cell": timings})
