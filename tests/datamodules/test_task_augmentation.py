"""New classes for training: every image of an augmented episode is found again in the bank, turned or as a mean."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_meta.core import Batch, Episode
from lightning_meta.core.episode import Split
from lightning_meta.datamodules import ClassificationDataModule
from lightning_meta.datamodules.class_bank import ClassBank
from lightning_meta.errors import ConfigError
from tests.datamodules.test_episodes import assert_same, at, numbered_bank, ready

N_WAY, K_SHOT, N_QUERY = 3, 2, 2
N_CLASSES, EXAMPLES, SIZE = 8, 6, 5
AUGMENTATIONS: list[list[Any]] = [["rotate"], ["mix"], ["rotate", "mix"]]


class Noise(ClassificationDataModule):
    """Images of noise, no two alike in any turn: 8 classes of 6 examples, the same in every split."""

    def load_source(self, split: Split) -> ClassBank:
        generator = torch.Generator().manual_seed(0)
        shape = (N_CLASSES, EXAMPLES, 2, SIZE, SIZE)
        return ClassBank.from_classes(torch.randint(256, shape, generator=generator, dtype=torch.uint8))


def noise(**overrides: Any) -> Noise:
    settings: dict[str, Any] = dict(n_way=N_WAY, k_shot=K_SHOT, n_query=N_QUERY) | overrides
    module = Noise(**settings)
    ready(module)
    return module


def train(count: int, **overrides: Any) -> Episode:
    return noise(**overrides).dataset("train").__getitems__(range(count))


def by_class(tasks: Episode) -> Tensor:
    """Support, then query images of each class of each episode, `(T, N, M, C, H, W)`."""

    def grouped(batch: Batch) -> Tensor:
        assert (batch.y.diff(dim=1) >= 0).all()
        return batch.x.unflatten(1, (N_WAY, -1))

    return torch.cat([grouped(tasks.support), grouped(tasks.query)], dim=2)


def turn_of(image: Tensor, original: Tensor) -> int:
    (turn,) = (k for k in range(4) if torch.equal(image, torch.rot90(original, k, (-2, -1))))
    return turn


class Finder:
    """Finds the one or two bank images whose mean an image is."""

    def __init__(self) -> None:
        images = noise().source("train").inputs.flatten(1).double() / 255
        self.first, self.second = np.triu_indices(len(images))
        self.means = (images[self.first] + images[self.second]) / 2

    def __call__(self, image: Tensor) -> set[tuple[int, int]]:
        """(class, example) of each part."""
        (found,) = torch.nonzero((self.means - image.flatten().double()).abs().amax(1) < 1e-6).flatten().tolist()
        return {divmod(int(row), EXAMPLES) for row in (self.first[found], self.second[found])}


# ---- rotate ---------------------------------------------------------------------------------------------------------


def turns_of_classes(plain: Episode, turned: Episode) -> np.ndarray:
    """The quarter turns of each class, `(T, N)`; all examples of a class must agree."""
    originals, images = by_class(plain), by_class(turned)
    turns = np.array(
        [
            [[turn_of(images[t, n, m], originals[t, n, m]) for m in range(K_SHOT + N_QUERY)] for n in range(N_WAY)]
            for t in range(len(images))
        ]
    )
    assert (turns == turns[..., :1]).all(), "a class is turned in more than one way"
    return turns[..., 0]


def test_rotation_turns_all_examples_of_a_class_alike_and_all_angles_are_equally_likely() -> None:
    plain, turned = train(400), train(400, task_augmentation=["rotate"])
    turns = turns_of_classes(plain, turned)
    assert torch.equal(plain.query.y, turned.query.y)
    assert torch.equal(plain.support.y, turned.support.y)
    counts = np.bincount(turns.flatten(), minlength=4)
    assert np.abs(counts - 300).max() < 5 * (1200 * 1 / 4 * 3 / 4) ** 0.5
    pairs = np.bincount(4 * turns[:, 0] + turns[:, 1], minlength=16)  # classes of an episode are turned independently
    assert np.abs(pairs - 25).max() < 5 * (400 * 1 / 16 * 15 / 16) ** 0.5


# ---- mix ------------------------------------------------------------------------------------------------------------


def test_mixing_takes_means_of_two_classes_that_no_other_class_of_the_episode_shares() -> None:
    find, count = Finder(), 60
    plain, mixed = by_class(train(count)), by_class(train(count, task_augmentation=["mix"]))
    n_mixed = 0
    for t in range(count):
        parts_of_episode: list[int] = []
        for n in range(N_WAY):
            found = [find(image) for image in mixed[t, n]]
            (drawn,) = {c for image in plain[t, n] for c, _ in find(image)}
            classes = {c for parts in found for c, _ in parts}
            assert drawn in classes
            assert all({c for c, _ in parts} == classes for parts in found), "support and query mix the same classes"
            examples = [part for parts in found for part in parts]
            assert len(set(examples)) == len(examples) == len(classes) * (K_SHOT + N_QUERY), "an example occurs twice"
            n_mixed += len(classes) == 2
            parts_of_episode += classes
        assert len(set(parts_of_episode)) == len(parts_of_episode)
    assert abs(n_mixed - count * N_WAY / 2) < 4.5 * (count * N_WAY / 4) ** 0.5


def test_a_class_that_is_not_mixed_is_left_as_it_was() -> None:
    plain, mixed = by_class(train(200)), by_class(train(200, task_augmentation=["mix"]))
    same = (plain == mixed).flatten(2).all(-1)
    different = (plain != mixed).flatten(3).any(-1).all(-1)
    assert torch.equal(same, ~different)
    assert 0.4 < same.double().mean() < 0.6


def test_every_other_class_is_equally_likely_to_be_mixed_in() -> None:
    """The second class is a residual: twice the mixed image less the plain one. All 8 classes take part."""
    images = noise().source("train").inputs.double().flatten(1) / 255
    plain, mixed = by_class(train(1000))[:, 0, 0], by_class(train(1000, task_augmentation=["mix"]))[:, 0, 0]
    others = (2 * mixed - plain).flatten(1).double()
    distance, row = torch.cdist(others, images).min(1)
    assert distance.max() < 1e-5
    drawn = torch.cdist(plain.flatten(1).double(), images).argmin(1) // EXAMPLES
    second = row // EXAMPLES
    counts = torch.bincount(second[second != drawn], minlength=N_CLASSES).double()
    assert (counts - counts.mean()).abs().max() < 5 * counts.mean() ** 0.5


def test_a_mixture_is_turned_as_a_whole() -> None:
    assert (
        turns_of_classes(train(50, task_augmentation=["mix"]), train(50, task_augmentation=["mix", "rotate"])) > 0
    ).any()


# ---- all ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("augmentation", AUGMENTATIONS, ids=str)
def test_only_training_is_augmented(augmentation: list[Any]) -> None:
    plain, augmented = noise(), noise(task_augmentation=augmentation)
    for split in ("val", "test"):
        assert_same(plain.dataset(split).__getitems__(range(20)), augmented.dataset(split).__getitems__(range(20)))
    first, second = (module.dataset("train").__getitems__(range(20)) for module in (plain, augmented))
    assert not torch.equal(first.support.x, second.support.x)


@pytest.mark.parametrize("augmentation", AUGMENTATIONS, ids=str)
def test_an_augmented_episode_is_the_same_in_any_meta_batch_and_with_any_worker(augmentation: list[Any]) -> None:
    module = noise(task_augmentation=augmentation)
    together = module.dataset("train").__getitems__([7, 2, 10**6])
    for position, index in enumerate([7, 2, 10**6]):
        assert_same(module.dataset("train")[index], at(together, position))
    loaders = [
        noise(task_augmentation=augmentation, steps_per_epoch=3, num_workers=n).train_dataloader() for n in (0, 1)
    ]
    assert_same(*(list(loader) for loader in loaders))


@pytest.mark.parametrize("augmentation", AUGMENTATIONS, ids=str)
def test_augmented_images_stay_between_zero_and_one_and_labels_do_not_change(augmentation: list[Any]) -> None:
    plain, augmented = train(50, labels="fixed"), train(50, labels="fixed", task_augmentation=augmentation)
    for before, after in zip(plain, augmented, strict=True):
        assert after.x.shape == before.x.shape
        assert after.x.dtype == torch.float32
        assert 0 <= after.x.min() < after.x.max() <= 1
        assert torch.equal(after.y, before.y)


def test_mixing_needs_a_second_class_for_each() -> None:
    module = noise(n_way=5, task_augmentation=["mix"])
    with pytest.raises(ConfigError, match=r"n_way=5, so it needs 10, but .* has 8 classes"):
        module.dataset("train")
    module.dataset("val")
    noise(n_way=4, task_augmentation=["mix"]).dataset("train")[0]


def test_images_must_be_square_to_be_turned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Noise, "load_source", lambda *_: numbered_bank([6] * 8))
    with pytest.raises(ConfigError, match=r"1 x 2 pixels"):
        noise(task_augmentation=["rotate"]).dataset("train")


def test_unknown_augmentations_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"\['flip'\]"):
        noise(task_augmentation=["flip", "mix"])
