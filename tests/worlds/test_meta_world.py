"""Meta-World through the adapter is Meta-World: the same steps, the same places of things, a goal that is not seen."""

import pickle
from importlib.util import find_spec

import numpy as np
import pytest
import torch

from lightning_meta import extras
from lightning_meta.algorithms import MAMLRL
from lightning_meta.core.sampling import episode_keys
from lightning_meta.errors import ConfigError
from lightning_meta.worlds import Continuous, MetaWorld
from tests.algorithms.rollout_cases import rollouts

needs_metaworld = pytest.mark.skipif(find_spec("metaworld") is None, reason="metaworld is not installed")


@needs_metaworld
def test_a_run_is_that_of_metaworld() -> None:
    from metaworld import ML1

    oracle = ML1("reach-v3", seed=3)
    theirs = oracle.train_classes["reach-v3"]()
    theirs.set_task(oracle.train_tasks[7])
    place = pickle.loads(oracle.train_tasks[7].data)["rand_vec"]
    world = MetaWorld("reach-v3", horizon=20)
    assert (world.seen_size, world.actions) == (39, Continuous(4))
    task = {"place": torch.from_numpy(place)}
    state = world.start(task, torch.rand(2, 1).double())
    seen, _ = theirs.reset()
    np.testing.assert_allclose(world.seen(state)[1], seen)
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        pushes = torch.rand(2, 4, generator=generator) * 3 - 1.5  # some beyond the bounds
        state, rewards, over = world.step(task, state, pushes, torch.rand(2, 1).double())
        seen, reward, *_ = theirs.step(pushes[1].clamp(-1, 1).numpy())
        np.testing.assert_allclose(world.seen(state)[1], seen)
        assert rewards[1].item() == pytest.approx(reward) and not over.any()
    assert not world.seen(state)[:, -3:].any()  # where the goal would be


@needs_metaworld
def test_tasks_are_a_function_of_their_keys_and_things_are_apart() -> None:
    world = MetaWorld("push-v3")
    keys = torch.as_tensor(episode_keys(0, 1, range(5)))
    places = world.draw(keys)["place"]
    torch.testing.assert_close(pickle.loads(pickle.dumps(world)).draw(keys.flip(0))["place"].flip(0), places)
    assert len(places.unique(dim=0)) == 5
    assert ((places[:, :2] - places[:, 3:5]).norm(dim=1) > 0.15).all()  # as Meta-World wants an object and its goal


@needs_metaworld
@torch.no_grad()
def test_an_algorithm_plays_it() -> None:
    data = rollouts(MetaWorld(horizon=4), rounds=1, trajectories=2)
    data.setup("test")
    module = MAMLRL(39, Continuous(4), hidden=[4]).eval()
    module.world = data.world
    returns = [module.measure(data.dataset("test").__getitems__([0, 1]))[0]["return"] for _ in range(2)]
    assert returns[0].isfinite().all() and torch.equal(*returns) and returns[0][0] != returns[0][1]


@needs_metaworld
def test_what_cannot_be_is_told() -> None:
    with pytest.raises(ConfigError, match=r"horizon=501 is too long: an episode of Meta-World has 500 steps at most"):
        MetaWorld(horizon=501)
    with pytest.raises(ConfigError, match=r"kind=reach is none of Meta-World's; there are: assembly-v3, "):
        MetaWorld("reach")


def test_a_missing_metaworld_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "RequirementCache", lambda *_: False)
    with pytest.raises(ConfigError, match=r"^MetaWorld needs metaworld>=\S+, .* requirements-metaworld\.txt$"):
        MetaWorld()
