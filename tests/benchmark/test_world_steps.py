"""The measurement of steps per second of worlds."""

import pytest

from lightning_meta.benchmark import world_steps
from lightning_meta.errors import ConfigError


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """On which everything takes a quarter of a second."""
    times = iter(range(10_000))
    monkeypatch.setattr(world_steps, "process_time", lambda: next(times) / 4)


@pytest.mark.usefixtures("clock")
def test_a_rate_is_all_steps_of_all_tasks_by_the_time_they_take(capsys: pytest.CaptureFixture[str]) -> None:
    world_steps.main(["navigation", "cart_pole", "--tasks", "2", "--trajectories", "3", "--horizon", "5"])
    title, _, head, line, navigation, cart_pole = capsys.readouterr().out.strip().splitlines()
    assert title.startswith("2 tasks x 3 trajectories x 5 steps, ") and f"{head}\n{line}" == world_steps.HEADER
    ours = " | ".join(["120"] * 3)  # 2 x 3 x 5 x 4
    assert navigation == f"| navigation | {ours} | - | - |"
    assert cart_pole == f"| cart_pole | {ours} | 8,000 | 480 |"  # 2000 x 4; 20 rounds of 6


def test_all_tasks_at_once_are_faster_than_task_by_task() -> None:
    """By far."""
    _, together, one_by_one = world_steps.of_world(world_steps.WORLDS["navigation"].make(10), tasks=50, trajectories=4)
    assert together > 3 * one_by_one


def test_a_mistyped_world_is_told() -> None:
    with pytest.raises(
        ConfigError, match=r"there is no world navigatio\. Did you mean navigation\? There are: bandits"
    ):
        world_steps.main(["navigatio"])
    with pytest.raises(ConfigError, match=r"--tasks=0 must be at least 1"):
        world_steps.main(["--tasks", "0"])
