"""Projected images: undone by the inverse, as many tasks as were asked for, no image in two splits."""

import numpy as np
import pytest
import torch

from lightning_meta.core.episode import EpisodeShape
from lightning_meta.core.sampling import choose, episode_keys, subkeys
from lightning_meta.datamodules import ProjectedImages
from lightning_meta.errors import ConfigError, DataError
from tests.conftest import CLASSES, EXAMPLES, blobs

SHAPE = EpisodeShape(n_way=CLASSES, k_shot=2, n_query=1)


def projected(**overrides) -> ProjectedImages:
    """Images of the blobs, 7 of each class to train on."""
    options = dict(image_size=4, val_per_class=2, test_per_class=3, n_way=CLASSES, k_shot=2, n_query=1)
    options |= dict(val_episodes=2, test_episodes=3, eval_meta_batch_size=2)
    return ProjectedImages(blobs(), **(options | overrides))


def test_a_task_is_undone_by_its_inverse() -> None:
    source, keys = projected().load_source("train"), episode_keys(0, 0, range(3))
    task_key, row_key = np.moveaxis(subkeys(keys, range(2)), -1, 0)
    projections, names = source.transforms(task_key)
    rows = torch.from_numpy(choose(row_key, len(source.images.y), 3 * CLASSES))
    tasks = source.sample(keys, SHAPE)
    x, y = (torch.cat(leaves, 1) for leaves in zip(*tasks, strict=True))
    found = torch.linalg.solve(projections.double(), x.double().mT).mT
    torch.testing.assert_close(found.float(), source.images.x[rows], rtol=1e-3, atol=1e-3)
    assert names.argsort(1).gather(1, y).equal(source.images.y[rows])
    assert tasks.support.x.shape == (3, 2 * CLASSES, 16) and tasks.query.y.shape == (3, CLASSES)
    alone = source.sample(keys[1:2], SHAPE)  # an episode is a function of its key
    torch.testing.assert_close(alone.query.x[0], tasks.query.x[1])


@pytest.mark.parametrize("tasks", [1, 4, None])
def test_training_has_so_many_tasks(tasks: int | None) -> None:
    """With one, an image has the same input and the same label each time: ordinary supervised training."""
    data = projected(tasks=tasks)
    train, test = data.load_source("train"), data.load_source("test")
    played = train.transforms(episode_keys(0, 0, range(64)))[0].flatten(1).unique(dim=0)
    assert len(played) == (tasks or 64)
    if tasks == 1:
        support, query = train.sample(episode_keys(0, 0, range(40)), SHAPE)
        x, y = torch.cat([support.x, query.x], 1).flatten(0, 1), torch.cat([support.y, query.y], 1).flatten()
        pairs = torch.cat([(1e4 * x).round(), y[:, None]], 1)
        images = CLASSES * (EXAMPLES - 5)
        assert len(pairs.unique(dim=0)) == len(pairs[:, :-1].unique(dim=0)) == images < len(pairs)
    new = test.transforms(episode_keys(0, 2, range(64)))[0].flatten(1).unique(dim=0)
    assert len(new) == 64 and len(torch.cat([new, played]).unique(dim=0)) == 64 + len(played)


def test_no_image_is_in_two_splits() -> None:
    data = projected()
    parts = {split: data.load_source(split).images for split in ("train", "val", "test")}
    assert [len(part.y) for part in parts.values()] == [7 * CLASSES, 2 * CLASSES, 3 * CLASSES]
    assert len(torch.cat([part.x for part in parts.values()]).unique(dim=0)) == CLASSES * EXAMPLES
    torch.testing.assert_close(parts["train"].x.mean(0), torch.zeros(16), rtol=0, atol=1e-5)
    assert parts["train"].x.square().mean().item() == pytest.approx(1, rel=1e-5)
    assert all((part.y.bincount() == len(part.y) // CLASSES).all() for part in parts.values())
    more = projected(val_per_class=4).load_source("test").images.y
    assert more.equal(parts["test"].y)


def test_inputs_are_about_as_large_as_images() -> None:
    """The mean square of a projection's outputs is that of its inputs, over tasks."""
    x = projected().load_source("train").sample(episode_keys(0, 0, range(400)), SHAPE).support.x
    assert x.square().mean().item() == pytest.approx(1, abs=0.1)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError, match="tasks=0 must be at least 1"):
        projected(tasks=0)
    with pytest.raises(DataError, match="has 12 images, but 15 of each are for validation and test; lower val_per"):
        projected(test_per_class=13).load_source("train")
    with pytest.raises(ConfigError, match="n_way=2, but the images are of 12 classes"):
        projected().load_source("train").check(EpisodeShape(2, 1, 1))
    with pytest.raises(ConfigError, match="takes 84 images, but there are 36; lower k_shot"):
        projected().load_source("test").check(EpisodeShape(CLASSES, 6, 1))
