"""Which image is for what, which labels are wrong, and which parts of the examples judge."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from lightning_meta.datamodules import HeldOutImages, MNISTTest
from lightning_meta.errors import ConfigError, DataError
from tests.algorithms.bilevel_cases import held_out


def ready(**overrides) -> HeldOutImages:
    data = held_out(**overrides)
    data.setup("fit")
    return data


def test_every_image_has_one_role_and_its_class() -> None:
    data = ready()
    rows = torch.cat([*data.rows.values()])
    assert len(rows) == len(rows.unique()) == 4 * (5 + 2 + 2 + 3)
    places = {c: label for label, c in enumerate([0, 3, 5, 7])}
    for role, labels in data.labels.items():
        assert [places[row // 12] for row in data.rows[role].tolist()] == labels.tolist()


def test_test_images_stay_the_same_whatever_the_others_are() -> None:
    assert torch.equal(ready().judges("test").x, ready(support_per_class=2, held_out_per_class=4).judges("test").x)
    assert not torch.equal(ready().judges("test").x, ready(seed=1).judges("test").x)


@pytest.mark.parametrize("flip", [0.0, 0.25, 1.0])
def test_so_many_labels_are_wrong(flip: float) -> None:
    data = ready(flip=flip, classes=None, support_per_class=5)
    right = data.given_labels == data.labels["support"]
    assert (~right).sum() == round(flip * 60)
    if flip == 1:  # every other class is as likely
        moves = (data.given_labels - data.labels["support"]) % 12
        assert {*moves.tolist()} <= {*range(1, 12)} and len(moves.unique()) > 6
    trial = data.dataset("train").__getitems__([3])
    assert torch.equal(trial.right.float().mean() == 1, torch.tensor(flip == 0)) or 0 < flip < 1


def test_classes_become_rarer_exponentially() -> None:
    data = ready(support_per_class=5, imbalance=5.0)
    sizes = torch.bincount(data.labels["support"]).tolist()
    assert sizes == [5, 3, 2, 1] and [a >= b for a, b in pairwise(sizes)]


def test_a_step_is_a_function_of_its_number_alone() -> None:
    """Whatever the segments that training is cut into; held-out images are drawn without replacement."""
    long, short = ready(truncation=3), ready(truncation=1)
    whole = long.dataset("train").__getitems__([0, 2**40])
    for step in range(3):
        alone = short.dataset("train").__getitems__([step, 2**40 + step])
        assert torch.equal(alone.support.x[:, 0], whole.support.x[:, step])
        assert alone.start.tolist() == [step, step] and torch.equal(alone.key, whole.key)
        assert torch.equal(alone.dice[:, 0], whole.dice[:, step])
    assert len(whole.dice.unique()) == 6 and not {*whole.dice.flatten().tolist()} & {*whole.key.tolist()}
    assert len(ready(query_size=5).dataset("train").__getitems__([0]).query.x[0].flatten(1).unique(dim=0)) == 5


def test_parts_of_the_examples_judge_what_is_carried_and_all_of_them_a_new_training() -> None:
    data = ready()
    parts = data.dataset("test").__getitems__([0, 1, 2])
    assert parts.support.x.shape[1] == 0 and parts.query.x.shape[:2] == (3, 4)
    assert torch.equal(parts.query.x.flatten(0, 1), data.judges("test").x)
    assert sorted(parts.query.y.flatten().tolist()) == sorted(data.labels["test"].tolist())
    data = ready(evaluate="retrained", unroll_steps=4)
    trial = data.dataset("test").__getitems__([0, 1])
    assert trial.support.x.shape[:3] == (2, 4, 6) and trial.query.x.shape[:2] == (2, 12)


def test_mistakes_are_one_line() -> None:
    for settings, message in (
        ({"support_per_class": 6}, r"class 0 of Blobs has 12 images, but 6 to learn from, 2 held out, .* are 13"),
        ({"classes": [0, 0]}, r"classes=\[0, 0\] must be two or more different ones of the 12"),
        ({"classes": [0, 12]}, "0 to 11"),
        ({"query_size": 9}, "query_size=9, but 8 images are held out"),
        ({"flip": 1.5}, "flip=1.5 must be between 0 and 1"),
        ({"imbalance": 0.5}, "imbalance=0.5 must be at least 1"),
    ):
        with pytest.raises((ConfigError, DataError), match=message):
            ready(**settings)
    with pytest.raises(ConfigError, match="12 test examples cannot be judged in 5 equal parts; set test_episodes to 4"):
        ready(test_episodes=5).dataset("test")


def test_mnists_test_set_is_read_alone(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    images, labels = (
        np.random.default_rng(0).integers(0, 255, (20, 28, 28), np.uint8),
        np.arange(20, dtype=np.uint8) % 10,
    )
    head = (0x803).to_bytes(4, "big") + b"".join(size.to_bytes(4, "big") for size in (20, 28, 28))
    (raw / "t10k-images-idx3-ubyte").write_bytes(head + images.tobytes())
    (raw / "t10k-labels-idx1-ubyte").write_bytes(
        (0x801).to_bytes(4, "big") + (20).to_bytes(4, "big") + labels.tobytes()
    )
    data = MNISTTest(root=str(tmp_path))
    data.prepare_data()
    bank = data.load_source("train")
    assert bank.size.tolist() == [2] * 10 and bank.inputs.shape == (20, 1, 28, 28)
    assert torch.equal(bank.inputs[1, 0], torch.from_numpy(images[10]))
    (raw / "t10k-images-idx3-ubyte").write_bytes(b"nothing")
    with pytest.raises(DataError, match="cannot be read"):
        data.load_source("train")


def test_images_that_are_not_learned_from_are_moved() -> None:
    """By up to three pixels here: each is found among the originals that were shifted by hand."""
    sizes = dict(support_per_class=2, held_out_per_class=1, test_per_class=7, test_episodes=1)
    plain, moved = ready(**sizes), ready(**sizes, moved={"shift_x": 3 / 16})
    for role in ("held_out", "val", "test"):
        before, after = (data.read(role, torch.arange(len(data.labels[role]))) for data in (plain, moved))
        assert torch.equal(plain.labels[role], moved.labels[role])
        for x, y in zip(before, after, strict=True):
            errors = []
            for tenths in range(-30, 31):
                whole, part = divmod(tenths, 10)
                shifted = [torch.zeros_like(x), torch.zeros_like(x)]
                for image, by in zip(shifted, (whole, whole + 1), strict=True):
                    image[..., max(by, 0) : 16 + min(by, 0)] = x[..., max(-by, 0) : 16 - max(by, 0)]
                errors += [float(((1 - part / 10) * shifted[0] + part / 10 * shifted[1] - y).abs().mean())]
            assert min(errors) < 0.05 < sorted(errors)[30]
        assert torch.equal(after, moved.read(role, torch.arange(len(after))))
    assert torch.equal(plain.learned_from().x, moved.learned_from().x)
    assert moved.facts("test")["moved"] == {"shift_x": 3 / 16} and "moved: shift_x 0.1875" in moved.describe("test")
    with pytest.raises(ConfigError, match=r"data.moved has turn=30"):
        held_out(moved={"turn": 30})


def test_how_an_image_is_moved_does_not_depend_on_the_others() -> None:
    few, many = (
        ready(moved={"rotate": 30.0}, support_per_class=n, held_out_per_class=n).judges("test").x for n in (2, 3)
    )
    assert torch.equal(few, many)
