"""Domains: how images are turned, that no image is in two, and which domains an episode or a training sees."""

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_meta.core.episode import Split
from lightning_meta.datamodules import ClassificationDataModule, Domains, HeldOutDomains, Rotations
from lightning_meta.datamodules.class_bank import ClassBank
from lightning_meta.datamodules.images.rotations import turned
from lightning_meta.errors import ConfigError, DataError

CLASSES, EXAMPLES, SIZE = 4, 20, 8


class Numbered(ClassificationDataModule):
    """The first row of an image says which it is: its class, and its number in it; whatever way it is turned."""

    def load_source(self, split: Split) -> ClassBank:
        images = torch.zeros(CLASSES, EXAMPLES, 1, SIZE, SIZE, dtype=torch.uint8)
        images[..., 0, 1] = 10 + torch.arange(CLASSES)[:, None, None]
        images[..., 0, 2] = 10 + torch.arange(EXAMPLES)[None, :, None]
        return ClassBank.from_classes(images)


def rotations(**overrides: Any) -> Rotations:
    """Quarter turns, which can be undone exactly."""
    settings = dict(angles=(0, 90, 180), unseen=(270,), train_per_class=3, val_per_class=2, test_per_class=4)
    return Rotations(Numbered(), **(settings | overrides))


def told(images: Tensor) -> list[tuple[int, int, int]]:
    """Of images `(B, 1, H, W)`: quarter turns, class and number."""
    found = []
    for image in images if images.dtype == torch.uint8 else (255 * images).round().byte():
        turn = next(k for k in range(4) if torch.rot90(image[0], -k)[0, 1])
        upright = torch.rot90(image[0], -turn)
        found.append((turn, int(upright[0, 1]) - 10, int(upright[0, 2]) - 10))
    return found


def episodes(**overrides: Any) -> Domains:
    settings: dict[str, Any] = dict(n_way=CLASSES, k_shot=2, n_query=2, val_episodes=3, test_episodes=3)
    data = Domains(rotations(), **(settings | overrides))
    data.setup("fit")
    return data


def trials(**overrides: Any) -> HeldOutDomains:
    settings: dict[str, Any] = dict(batch_size=5, query_size=6, unroll_steps=4, truncation=2, meta_batch_size=3)
    data = HeldOutDomains(rotations(), **(settings | overrides))
    data.setup("fit")
    return data


@pytest.mark.parametrize("quarters", [0, 1, 2, 3])
def test_quarter_turns_are_exact_and_anticlockwise(quarters: int) -> None:
    images = torch.randint(256, (3, 2, SIZE, SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(turned(images, 90.0 * quarters), torch.rot90(images, quarters, dims=(2, 3)))


def test_a_turn_moves_a_point_as_trigonometry_says() -> None:
    """The centre of mass of a blob, by 30 degrees."""
    y, x = torch.meshgrid(torch.arange(41.0) - 20, torch.arange(41.0) - 20, indexing="ij")
    blob = (255 * torch.exp(-((x - 8) ** 2 + (y - 2) ** 2) / 8)).byte()[None, None]
    moved = turned(blob, 30.0)[0, 0].double()
    found = (moved * x).sum() / moved.sum(), (moved * y).sum() / moved.sum()
    angle = np.radians(30)  # anticlockwise, with y pointing down
    expected = 8 * np.cos(angle) + 2 * np.sin(angle), -8 * np.sin(angle) + 2 * np.cos(angle)
    assert [value.item() for value in found] == pytest.approx(expected, abs=0.1)


def test_an_image_is_in_one_domain_and_has_its_class() -> None:
    seen = set()
    for split, images in rotations().load(0).items():
        for d, of_domain in enumerate(images):
            for c, of_class in enumerate(of_domain):
                for turn, label, number in told(of_class):
                    assert (turn, label) == (3 if split == "test" else d, c)
                    seen.add((label, number))
    assert len(seen) == CLASSES * (3 * 3 + 3 * 2 + 4)


def test_test_images_stay_the_same_whatever_the_others_are_and_all_are_frozen() -> None:
    images = rotations().load(0)
    assert torch.equal(rotations(train_per_class=1, val_per_class=4).load(0)["test"], images["test"])
    assert not torch.equal(rotations().load(1)["test"], images["test"])
    digest = hashlib.sha256(b"".join(images[split].numpy().tobytes() for split in ("train", "val", "test")))
    assert digest.hexdigest() == "b208ab57fb7e47216f9761fb067d5c54294b6e52c1643189a1522a3f16636e3e"


def test_a_training_episode_is_judged_on_a_domain_that_it_does_not_learn_from() -> None:
    data, held_out = episodes(), set()
    for i in range(20):
        episode = data.dataset("train")[i]
        support, query = told(episode.support.x), told(episode.query.x)
        (domain,) = {turn for turn, _, _ in query}
        assert {turn for turn, _, _ in support} == {0, 1, 2} - {domain}
        assert [label for _, label, _ in support] == episode.support.y.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
        assert [label for _, label, _ in query] == episode.query.y.tolist()
        assert len({*support}) == len(support) and len({*query}) == len(query)
        held_out.add(domain)
    assert held_out == {0, 1, 2}


def test_the_unseen_domain_is_in_the_test_alone() -> None:
    data = episodes(k_shot=3, n_query=2)
    learned = {image for i in range(50) for image in told(data.dataset("train")[i].support.x)}
    for split, domains in (("val", {0, 1}), ("test", {3})):
        episode = data.dataset(split)[1]
        assert {turn for turn, _, _ in told(episode.query.x)} == domains  # two queries of a class: two domains
        assert {turn for turn, _, _ in told(episode.support.x)} == {0, 1, 2}
        assert not learned & {*told(episode.query.x)}


def test_a_training_is_on_one_domain_and_judged_on_another() -> None:
    data, judged = trials(), set()
    for segment in range(2):
        for i in range(12):
            trial = data.dataset("train").__getitems__([i * 2 + segment])
            support, query = told(trial.support.x[0].flatten(0, 1)), told(trial.query.x[0])
            assert {turn for turn, _, _ in support} == {i % 3}
            assert [label for _, label, _ in support] == trial.support.y[0].flatten().tolist()
            assert [label for _, label, _ in query] == trial.query.y[0].tolist()
            assert len({*query}) == 6
            judged.add((i % 3, *{turn for turn, _, _ in query}))
    assert judged == {(a, b) for a in range(3) for b in range(3) if a != b}


def test_a_new_training_is_on_all_seen_domains_and_judged_on_the_unseen() -> None:
    trial = trials(batch_size=50).dataset("test").__getitems__([0])
    assert {turn for turn, _, _ in told(trial.support.x[0].flatten(0, 1))} == {0, 1, 2}
    judges = told(trial.query.x[0])
    assert {turn for turn, _, _ in judges} == {3} and len({*judges}) == len(judges) == CLASSES * 4
    assert [label for _, label, _ in judges] == trial.query.y[0].tolist()


def test_a_step_is_a_function_of_its_number_alone() -> None:
    whole, short = trials(), trials(truncation=1)
    for step in range(2):
        alone = short.dataset("train").__getitems__([4 * 5 + step])
        assert torch.equal(alone.support.x[:, 0], whole.dataset("train").__getitems__([2 * 5]).support.x[:, step])


@pytest.mark.parametrize(
    ("attempt", "error", "message"),
    [
        (lambda: rotations(angles=(0,)), ConfigError, r"angles=\[0\] must be two or more"),
        (lambda: rotations(unseen=(450,)), ConfigError, "have the same twice"),
        (lambda: rotations(train_per_class=6).load(0), DataError, "has 20 images, but .* need 28"),
        (lambda: episodes(n_way=3), ConfigError, "n_way=3, but an episode of domains has all 4 classes"),
        (lambda: episodes(k_shot=4), ConfigError, "k_shot=4, but a class has 3 images in a domain"),
        (lambda: trials(query_size=13), ConfigError, "query_size=13, but a domain has 12 images"),
    ],
)
def test_mistakes_are_told(attempt: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        attempt()
