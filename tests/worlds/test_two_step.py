"""The two-step task by frequencies: where choices lead, what places pay, how often they change roles."""

import pytest
import torch

from lightning_meta.core.sampling import episode_keys
from lightning_meta.errors import ConfigError
from lightning_meta.worlds import TwoStep
from tests.worlds.test_worlds import chi_square, dice

COUNT = 20_000


@pytest.mark.parametrize("choice", [0, 1])
def test_a_choice_leads_to_its_own_place_as_often_as_it_should(choice: int) -> None:
    world, thrown = TwoStep(), dice(COUNT, 2)
    state = world.start(torch.tensor(1), thrown)
    assert (world.seen(state) == torch.tensor([1, 0, 0])).all()
    state, reward, over = world.step(torch.tensor(1), state, torch.full((COUNT,), choice), thrown)
    chances = torch.tensor([0.0, 0.8, 0.2] if choice == 0 else [0.0, 0.2, 0.8])
    assert chi_square(world.seen(state).argmax(-1) - 1, chances[1:]) > 0.001
    assert not reward.any() and not over.any(), "nothing is paid for a choice"
    assert (state[1] == 1).all(), "roles change between trials alone"


@pytest.mark.parametrize(("place", "good", "pays"), [(1, 1, 0.9), (2, 1, 0.1), (1, 2, 0.1), (2, 2, 0.9)])
def test_a_place_pays_and_changes_its_role_as_often_as_it_should(place: int, good: int, pays: float) -> None:
    world, thrown = TwoStep(reversal=0.2), dice(COUNT, 2)
    state = torch.full((COUNT,), place), torch.full((COUNT,), good)
    # Whatever is done there.
    (place_B, good_B), reward, over = world.step(torch.tensor(1), state, torch.arange(COUNT) % 2, thrown)
    assert chi_square(reward.long(), torch.tensor([1 - pays, pays])) > 0.001
    assert chi_square((good_B != good).long(), torch.tensor([0.8, 0.2])) > 0.001
    assert set(good_B.tolist()) == {1, 2} and (place_B == 0).all() and not over.any()


def test_either_place_is_the_good_one_at_first() -> None:
    task = TwoStep().draw(episode_keys(0, 0, range(2000)))
    assert chi_square(task - 1, torch.tensor([0.5, 0.5])) > 0.001


def test_what_cannot_be_is_told() -> None:
    with pytest.raises(ConfigError, match=r"pays=1\.5 and reversal=0\.025 must lie between 0 and 1"):
        TwoStep(pays=1.5)
    with pytest.raises(ConfigError, match="trials=0 must be at least 1"):
        TwoStep(trials=0)
