"""The cart-pole, step by step, beside gymnasium's."""

import gymnasium
import pytest
import torch

from lightning_meta.core.sampling import episode_keys, uniform
from lightning_meta.errors import ConfigError
from lightning_meta.worlds import CartPole


def test_every_step_is_that_of_gymnasium() -> None:
    """To the last bits, until the pole falls or the cart leaves, for thirty lengths."""
    world, oracle = CartPole(0.1, 10), gymnasium.make("CartPole-v1").unwrapped
    keys = episode_keys(0, 0, range(30))
    dice = torch.from_numpy(uniform(keys, 4 + 500))
    steps, ends = 0, {"cart": 0, "pole": 0}
    for length, thrown in zip(torch.from_numpy(uniform(keys, 1, 0.1, 10)[:, 0]), dice, strict=True):
        # Half of the carts are pushed to one side more often, so that some leave before the pole falls.
        pushes = (thrown[4:] < 0.5).long() if steps % 2 else (thrown[4:] < 0.62).long()
        oracle.reset(seed=0)
        oracle.length, oracle.polemass_length = length.item(), oracle.masspole * length.item()
        state = world.start(length, thrown[None, :4])
        assert state.abs().max() <= 0.05
        oracle.state = tuple(state[0].tolist())
        for push in pushes:
            state, reward, over = world.step(length, state, push[None], thrown[None, :4])
            _, paid, fell, _, _ = oracle.step(push.item())
            torch.testing.assert_close(state[0], torch.as_tensor(oracle.state), rtol=1e-14, atol=1e-15)
            steps += 1
            assert (reward.item(), over.item()) == (paid, fell)
            if fell:
                ends["cart" if state[0, 0].abs() > 2.4 else "pole"] += 1
                break
    assert steps > 500 and min(ends.values()) > 0


def test_somebody_who_knows_the_length_balances_it_for_ever() -> None:
    """And not with the length of another pole: it matters."""
    world, poles = CartPole(horizon=500), 200
    lengths = torch.from_numpy(uniform(episode_keys(1, 0, range(poles)), 1, 0.5, 5)[:, 0])
    dice = torch.from_numpy(uniform(episode_keys(2, 0, range(poles)), 4))
    kept = {}
    for who, believed in {"knows": lengths, "guesses": lengths / 10}.items():
        state, alive = world.start(lengths, dice), torch.ones(poles)
        for left in range(500, 0, -1):
            state, _, over = world.step(lengths, state, world.best(believed, world.seen(state), left), dice)
            alive = alive * ~over
        kept[who] = alive.mean().item()
    assert kept["knows"] == 1 > kept["guesses"] + 0.05


def test_lengths_are_within_what_was_asked_for() -> None:
    lengths = CartPole(0.5, 5).draw(episode_keys(0, 0, range(2000)))
    assert 0.5 <= lengths.min() < 0.51 and 4.99 < lengths.max() < 5
    assert lengths.mean().item() == pytest.approx(2.75, abs=4 * 4.5 / (12 * 2000) ** 0.5)
    with pytest.raises(ConfigError, match=r"shortest=2.0 must be above 0 and at most longest=1.0"):
        CartPole(2.0, 1.0)
    with pytest.raises(ConfigError, match="horizon=0 must be at least 1"):
        CartPole(horizon=0)
