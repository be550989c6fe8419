"""Ratings from files: what is joined with what, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_meta.datamodules import RatingsTable
from lightning_meta.errors import ConfigError, DataError

GENRES = ["Action|Comedy", "Comedy", "Drama|Action", "Drama", "(none)"]
FEW: dict[str, Any] = dict(k_shot=2, n_query=2, meta_batch_size=2, steps_per_epoch=2, val_episodes=3, test_episodes=3)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Twelve users who rate five films; the last has rated two."""
    movies = [f'{10 + n},"Film {n}, the",{genres}' for n, genres in enumerate(GENRES)]
    ratings = [f"{u},{10 + m},{rating(u, m)},99" for u in range(12) for m in range(5) if u < 11 or m < 2]
    users = [f"{u},{'young' if u % 2 else 'old'},{20 + u}" for u in range(12)]
    for name, header, rows in (
        ("movies.csv", "movieId,title,genres", movies),
        ("ratings.csv", "userId,movieId,rating,timestamp", ratings),
        ("users.csv", "userId,group,age", users),
    ):
        (tmp_path / name).write_text("\n".join([header, *rows]) + "\n")
    return tmp_path


def rating(user: int, movie: int) -> float:
    return 0.5 + ((7 * user + 3 * movie) % 10) / 2


def table(root: Path, **options: Any) -> RatingsTable:
    data = RatingsTable(str(root), **(FEW | options))
    data.setup("fit")
    return data


def test_ratings_stand_beside_what_their_items_and_users_are_like(root: Path) -> None:
    data = table(root, users="users.csv", inputs=["genres", "group"])
    assert data.encoding.inputs.features == [
        "genres=(none)", "genres=Action", "genres=Comedy", "genres=Drama", "group=old", "group=young",
    ]  # fmt: skip
    assert sorted(int(user) for users in data.tasks.values() for user in users) == list(range(11)), (
        "who has rated two films is left out"
    )
    bank = data.source("train")
    for place, user in enumerate(data.tasks["train"]):
        rows = slice(bank.first[place], bank.first[place] + 5)
        assert bank.targets[rows, 0].tolist() == [rating(int(user), movie) for movie in range(5)]
        known = [
            [float(name in genres.split("|")) for name in ("(none)", "Action", "Comedy", "Drama")] for genres in GENRES
        ]
        group = [float(int(user) % 2 == 0), float(int(user) % 2)]
        assert bank.inputs[rows].tolist() == [[*row, *group] for row in known]


def test_by_default_the_genres_are_read_and_a_checkpoint_keeps_them(root: Path) -> None:
    data = table(root)
    assert data.encoding.inputs.columns == ["genres"]
    other = RatingsTable(str(root), **FEW)
    other.restore(data.state_dict())
    assert other.encoding.inputs.features == data.encoding.inputs.features and other.encoding.target == (0, 1, False)
    assert data.dataset("test")[0].support.x.shape == (2, 4)
    assert torch.equal(data.dataset("test")[1].query.y, table(root).dataset("test")[1].query.y)


@pytest.mark.parametrize(
    ("file", "line", "options", "message"),
    [
        ("ratings.csv", "3,99,4.0,1", {}, "line 59 rates 99 for 3, but .*movies.csv has no 99"),
        ("ratings.csv", "33,10,4.0,1", {"users": "users.csv"}, "rates 10 for 33, but .*users.csv has no 33"),
        ("ratings.csv", "3,10,40,1", {}, "rating is 40, but ratings from 0 to 10 are read; scale all of them"),
        ("ratings.csv", "3,10,good,1", {}, "rating is 'good', no number"),
        ("ratings.csv", "3,10,,1", {}, "has no 'rating'; its columns are userId, movieId, rating, timestamp"),
        ("movies.csv", "11,Again,Drama", {}, "line 7 has 11 once more; give each movieId one row"),
        (None, "", {"item": "film"}, "has no 'film'; its columns are movieId, title, genres"),
        (None, "", {"inputs": ["genre"]}, "no attribute genre; those of the tables are title, genres"),
        (None, "", {"items": "films.csv"}, "films.csv is missing; it must be a table with a column 'movieId'"),
        (None, "", {"ratings": "none.csv"}, "none.csv is missing; it must be a table with a row for each rating"),
        (None, "", {"n_way": 3}, "one user is one regression: n_way must be 1"),
    ],
)
def test_what_cannot_be_read_is_one_line(
    root: Path, file: str | None, line: str, options: dict[str, Any], message: str
) -> None:
    if file:
        with (root / file).open("a") as lines:
            lines.write(line + "\n")
    with pytest.raises((ConfigError, DataError), match=message) as refusal:
        table(root, **options)
    assert len(str(refusal.value).splitlines()) == 1
