"""Two moons: where the points are, that they are frozen, and that a step is a function of its number."""

import hashlib

import pytest
import torch

from lightning_meta.datamodules import TwoMoons
from lightning_meta.errors import ConfigError


def moons(**overrides: object) -> TwoMoons:
    return TwoMoons(**({"support_per_class": 20, "val_per_class": 10, "test_per_class": 15} | overrides))


def test_without_noise_the_points_are_on_two_half_circles() -> None:
    for role in ("support", "held_out", "val", "test"):
        points = moons(noise=0.0).points(role)
        upper, lower = points.x[points.y == 0], points.x[points.y == 1]
        assert torch.allclose(upper.norm(dim=1), torch.ones(len(upper))) and (upper[:, 1] >= -1e-6).all()
        assert torch.allclose((lower - torch.tensor([1.0, 0.5])).norm(dim=1), torch.ones(len(lower)))
        assert (lower[:, 1] <= 0.5 + 1e-6).all()


def test_the_noise_has_its_deviation() -> None:
    difference = moons(support_per_class=2000, noise=0.2).points("support").x
    difference = difference - moons(support_per_class=2000, noise=0.0).points("support").x
    assert difference.std(0).tolist() == pytest.approx([0.2, 0.2], rel=0.05)


def test_points_are_frozen() -> None:
    digest = hashlib.sha256()
    for role in ("support", "held_out", "val", "test"):
        digest.update((1e4 * moons().points(role).x).round().to(torch.int32).numpy().tobytes())
    assert digest.hexdigest() == "14bbf14d72360293752d4a14bbfa95e4c5b7940a7cc177a31613a42965e0ea61"
    assert not torch.equal(moons(seed=1).points("test").x, moons().points("test").x)


def test_roles_have_points_of_their_own() -> None:
    rows = torch.cat([moons().points(role).x for role in ("support", "held_out", "val", "test")])
    assert len(rows.unique(dim=0)) == len(rows) == 2 * (20 + 3 + 10 + 15)


def test_a_step_is_a_function_of_its_number_alone() -> None:
    whole = moons(truncation=3).dataset("train").__getitems__([0, 2**40])
    for step in range(3):
        alone = moons().dataset("train").__getitems__([step, 2**40 + step])
        assert torch.equal(alone.support.x[:, 0], whole.support.x[:, step])
    assert whole.support.x.shape == (2, 3, 100, 2) and whole.query.x.shape == (2, 6, 2)
    points = moons().points("support")
    known = {tuple(point): label for point, label in zip(points.x.tolist(), points.y.tolist(), strict=True)}
    assert [known[tuple(p)] for p in whole.support.x[0, 0].tolist()] == whole.support.y[0, 0].tolist()
    assert len(moons(query_size=4).dataset("train").__getitems__([0]).query.x[0].unique(dim=0)) == 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"query_size": 7}, "query_size=7, but 6 points are held out"),
        ({"noise": -1.0}, "noise=-1.0 must not be negative"),
        ({"held_out_per_class": 0}, "held_out_per_class=0"),
    ],
)
def test_mistakes_are_told(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        moons(**settings)
