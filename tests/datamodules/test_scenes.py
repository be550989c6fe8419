"""Scenes: what is where, what is marked, and that nothing of a support set is shown again."""

import numpy as np
import pytest
import torch

from lightning_meta.core.episode import EpisodeShape
from lightning_meta.core.sampling import episode_keys
from lightning_meta.datamodules import Scenes
from lightning_meta.datamodules.class_bank import ClassBank
from lightning_meta.datamodules.images.scenes import SceneBank
from lightning_meta.errors import ConfigError
from tests.conftest import blobs, scenes

SIDE, CLASSES, EXAMPLES = 6, 9, 7
SHAPE = EpisodeShape(3, 2, 4)


def bank() -> ClassBank:
    """Images whose upper left pixel says the class and the next one the example; some ink below, all else paper."""
    images = torch.zeros(CLASSES, EXAMPLES, 1, SIDE, SIDE, dtype=torch.uint8)
    for c in range(CLASSES):
        for e in range(EXAMPLES):
            images[c, e, 0, 0, :2] = torch.tensor([100 + c, 100 + e])
            images[c, e, 0, 2 : 3 + c % 3, 1 : 2 + e % 4] = 255
    return ClassBank.from_classes(images)


def drawn(**settings: object) -> tuple[SceneBank, np.ndarray]:
    return SceneBank(bank(), **{"jitter": 2, "clutter": 3, **settings}), episode_keys(0, 0, range(50))


def test_an_object_is_where_its_box_and_its_mask_say() -> None:
    """The pixels of every scene, from what was drawn, by loops."""
    boxed, keys = drawn(targets="boxes")
    masked, _ = drawn(targets="masks", thickness=0)
    parts = boxed.draw(keys, SHAPE)
    with_boxes, with_masks = boxed.make(parts, SHAPE), masked.make(parts, SHAPE)
    x, boxes = (torch.cat(pair, 1) for pair in zip(*with_boxes, strict=True))
    same, masks = (torch.cat(pair, 1) for pair in zip(*with_masks, strict=True))
    assert torch.equal(x, same) and x.shape[2:] == (1, 16, 16)
    for t in range(5):
        for m in range(len(x[t])):
            scene, mask = torch.zeros(16, 16), torch.zeros(16, 16, dtype=torch.long)
            for o in range(3):
                row, label, top, left = (int(part[t, m, o]) for part in parts)
                image = bank().inputs[row, 0] / 255
                where = slice(top, top + SIDE), slice(left, left + SIDE)
                assert not scene[where].any(), "objects do not touch"
                scene[where] = image
                mask[where] = (image > 0.25) * (label + 1)
                ys, xs = torch.nonzero(image > 0.25, as_tuple=True)
                box = [label, top + ys.min(), left + xs.min(), top + ys.max() + 1, left + xs.max() + 1]
                assert boxes[t, m, o].tolist() == ([-1] * 5 if label < 0 else [int(edge) for edge in box])
            assert torch.equal(x[t, m, 0], scene) and torch.equal(masks[t, m], mask)


def test_a_mask_is_thicker_than_the_ink_within_its_image() -> None:
    thin, keys = drawn(thickness=0)
    thick, _ = drawn(thickness=1)
    parts = thin.draw(keys, SHAPE)
    one, other = (source.make(parts, SHAPE).query.y for source in (thin, thick))
    assert (other[one > 0] == one[one > 0]).all() and (other > 0).sum() > (one > 0).sum()
    grown = torch.nn.functional.max_pool2d((one > 0).float().flatten(0, 1)[:, None], 3, 1, 1)[:, 0] > 0
    assert not ((other > 0).flatten(0, 1) & ~grown).any()


def test_support_scenes_mark_one_object_and_queries_do_not_show_it_again() -> None:
    source, keys = drawn()
    parts = source.draw(keys, SHAPE)
    rows, labels = parts.rows.numpy(), parts.labels.numpy()
    support, query = labels[:, :6], labels[:, 6:]
    assert (support[..., 0] == [0, 0, 1, 1, 2, 2]).all() and (support[..., 1:] == -1).all()
    assert (query[..., 0] == np.arange(3).repeat(4)).all()
    shown = classes_shown(rows // EXAMPLES, labels)
    for t in range(len(keys)):
        marked, asked = rows[t, :6, 0], rows[t, 6:][query[t] >= 0]
        assert len({*marked}) == 6 and not {*marked} & {*asked}
        assert all(len(shown[t, label]) == 1 for label in range(3)), "a label is one class"
        assert not shown[t, -1] & set().union(*(shown[t, label] for label in range(3))), "clutter is of other classes"
        assert len(shown[t, -1]) <= 3


def classes_shown(classes: np.ndarray, labels: np.ndarray) -> dict[tuple[int, int], set[int]]:
    tasks = range(len(labels))
    return {(t, label): {*classes[t][labels[t] == label]} for t in tasks for label in (-1, 0, 1, 2)}


def test_chance_of_objects_examples_and_places() -> None:
    """Each within four standard errors of the chance that the module's text states."""
    source, _ = drawn()
    parts = source.draw(episode_keys(1, 0, range(2000)), SHAPE)
    others = parts.labels[:, 6:, 1:].flatten()
    assert abs((others >= 0).float().mean() - 0.5) < 4 * 0.5 / len(others) ** 0.5
    for label in range(3):
        assert abs((others == label).float().mean() - 1 / 6) < 4 * (5 / 36 / len(others)) ** 0.5
    examples = (parts.rows[:, 6:][parts.labels[:, 6:] >= 0] % EXAMPLES).bincount() / (parts.labels[:, 6:] >= 0).sum()
    assert len(examples) == EXAMPLES and (examples - 1 / EXAMPLES).abs().max() < 0.005
    for place in (parts.tops, parts.lefts):
        counts = place.flatten().bincount(minlength=11) / place.numel()
        expected = torch.tensor([1, 1, 1, 0, 0, 0, 0, 0, 1, 1, 1]) / 6
        assert (counts - expected).abs().max() < 0.005


def test_an_episode_does_not_depend_on_those_beside_it() -> None:
    data = scenes("boxes")
    data.setup("fit")
    whole, (alone,) = data.dataset("train").__getitems__([5, 6, 7]), [data.dataset("train")[6]]
    for together, single in zip((*whole.support, *whole.query), (*alone.support, *alone.query), strict=True):
        assert torch.equal(together[1], single)
    assert data.describe("test") == (
        "2-way 1-shot, 2 query scenes per class, each of 2 objects; 1 other classes in an episode"
    )
    assert data.facts("test")["targets"] == "boxes" and data.name == "Scenes of Blobs"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"objects": 5}, "objects=5 do not fit into 2 x 2 cells; raise grid or lower objects"),
        ({"clutter": 0}, "clutter=0 must be at least 1"),
        ({"targets": "points"}, "targets='points' must be masks or boxes"),
        ({"n_way": 12}, "n_way=12 and clutter=5 need 17 classes, but the split has 12; lower one"),
        ({"jitter": -1}, "jitter=-1 must be at least 0"),
    ],
)
def test_scenes_that_cannot_be_made_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Scenes(blobs(), **settings).setup("fit")
