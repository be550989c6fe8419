"""Which classes are for training, validation and test, as the user says: by folders, by lists or by fractions."""

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lightning_meta.core.episode import Split
from lightning_meta.core.sampling import choose, episode_keys
from lightning_meta.datamodules.files import IMAGES, FileKind, sub_folders
from lightning_meta.errors import ConfigError, DataError

SPLITS: tuple[Split, ...] = ("train", "val", "test")
SHUFFLE = 3  # the stream of random numbers that orders classes; episodes draw from 0, 1 and 2
IN_ONE_SPLIT = ((1, 0, 0), (0, 0, 1))  # fractions
SHOWN = 5  # how many names an error lists


@dataclass
class ClassSplit:
    """Which classes are for training, validation and test: by lists or by fractions. (Images also: by folders.)

    Args:
        train, val, test: text files with the name of a class on each line. A relative path starts at the folder of the
            data.
        fractions: share out all classes, shuffled, for training, validation and test, e.g. `[0.64, 0.16, 0.2]`. Or
            `[0, 0, 1]`: all for test, of what was trained on other data; or `[1, 0, 0]`: all for `ImageOptimizees`.
        seed: of that shuffle.
    """

    train: str | None = None
    val: str | None = None
    test: str | None = None
    fractions: tuple[float, ...] = ()  # not None: the command line of jsonargparse 4.53 cannot set that in here
    seed: int = 0


def check_split(split: ClassSplit) -> None:
    """Raise `ConfigError` unless the settings stand for one way to split the classes."""
    lists = {name: getattr(split, name) for name in SPLITS}
    named = [f"split.{name}={path}" for name, path in lists.items() if path is not None]
    if split.fractions and named:
        raise ConfigError(
            f"{', '.join(named)} and split.fractions={list(split.fractions)} are two ways to split the classes; keep "
            "one (on the command line, --data.split.fractions [] takes the fractions away)."
        )
    if 0 < len(named) < len(SPLITS):
        missing = ", ".join(f"split.{name}" for name, path in lists.items() if path is None)
        raise ConfigError(f"{', '.join(named)} is set, but not {missing}; the classes of all three splits are needed.")
    shares = split.fractions
    if shares and shares not in IN_ONE_SPLIT and (len(shares) != 3 or min(shares) <= 0 or abs(sum(shares) - 1) > 1e-6):
        raise ConfigError(
            f"split.fractions={list(shares)} sum to {sum(shares):g}; they must be three positive numbers that sum to "
            "1, or [0, 0, 1] for a test alone, or [1, 0, 0] for optimizees."
        )
    if split.seed < 0:
        raise ConfigError(f"split.seed={split.seed} must not be negative.")


def find_classes(root: Path, split: ClassSplit, kind: FileKind = IMAGES) -> dict[Split, list[str]]:
    """The folders of the classes of each split, relative to `root`.

    Raises:
        DataError: a split has no classes, a class is in two of them, or a listed class does not exist.
        ConfigError: `root` is not split in the way that `split` says.
    """
    if not root.is_dir():
        raise DataError(
            f"{root} is no folder; --data.root must be one, with a folder of {kind.name} for each class in it."
        )
    folders = sub_folders(root, kind)
    if not folders:
        raise DataError(f"{root} has no class folders; put the {kind.name} of each class into a folder {root}/<class>.")
    if split.fractions:
        if set(SPLITS) <= set(folders):
            raise ConfigError(
                f"split.fractions={list(split.fractions)}, but {root} is already split into the folders train, val and "
                "test; leave split.fractions out (on the command line: --data.split.fractions [])."
            )
        return share_out(folders, split.fractions, split.seed)
    if split.train is not None:
        return listed_classes(root, {name: root / getattr(split, name) for name in SPLITS})
    if missing := set(SPLITS) - set(folders):
        raise DataError(
            f"{root} is not split: of the folders train, val and test it has not {', '.join(sorted(missing))}. Sort "
            f"the folders of the classes into these three, or have the {len(folders)} folders that are there shared "
            "out as classes: --data.split.fractions [0.64,0.16,0.2]. Or list the classes in three files: "
            "--data.split.train train.txt --data.split.val val.txt --data.split.test test.txt."
        )
    names = {name: sub_folders(root / name, kind) for name in SPLITS}
    check_classes(names, {name: str(root / name) for name in SPLITS})
    return {split_name: [f"{split_name}/{name}" for name in of_split] for split_name, of_split in names.items()}


def listed_classes(root: Path, lists: dict[Split, Path]) -> dict[Split, list[str]]:
    """The classes that the text files name."""
    names = {split: [Path(line).as_posix() for line in lines] for split, lines in read_lists(lists).items()}
    for split, of_split in names.items():
        missing = [name for name in of_split if not (root / name).is_dir()]
        if missing:
            raise DataError(
                f"{lists[split]} lists {len(missing)} of {len(of_split)} classes that have no folder in {root}: "
                f"{shortened(missing)}. Correct the names or add the folders."
            )
    check_classes(names, {split: str(path) for split, path in lists.items()})
    return names


def read_lists(lists: dict[Split, Path], what: str = "classes") -> dict[Split, list[str]]:
    """The lines of the text files that name the classes, or tasks, of each split. Empty lines are passed over."""
    names: dict[Split, list[str]] = {}
    for split, path in lists.items():
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()  # -sig: some editors on Windows write a mark
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(
                f"{path}, the list of the {split} {what}, cannot be read ({error}); --data.split.{split} must be a "
                f"text file, with a path from the folder of the data or an absolute one."
            ) from error
        names[split] = [line.strip() for line in lines if line.strip()]
    return names


def split_names(names: list[str], split: ClassSplit, source: Path, more: str = "classes") -> dict[Split, list[str]]:
    """Which of all names of classes (or tasks: `more`) in a file or folder each split has, as the settings say.

    Raises:
        ConfigError: the settings have neither fractions nor lists.
        DataError: a list cannot be read, or a fraction leaves no name.
    """
    if split.fractions:
        return share_out(names, split.fractions, split.seed, more)
    if split.train is None:
        raise ConfigError(
            f"the {len(names)} {more} of {source} are not split. Have them shared out, --data.split.fractions "
            "[0.64,0.16,0.2], or list them in three files: --data.split.train train.txt --data.split.val val.txt "
            "--data.split.test test.txt."
        )
    folder = source if source.is_dir() else source.parent
    return read_lists({part: folder / str(getattr(split, part)) for part in SPLITS}, more)


def check_listed(
    found: dict[Split, list[str]], names: Collection[str], source: Path, one: str = "a class", more: str = "classes"
) -> None:
    """Raise `DataError` unless each split has classes (or tasks: `one`, `more`), all of them there and in one split."""
    check_classes(found, {part: f"the {part} split of {source}" for part in SPLITS}, one, more)
    if missing := [name for of_split in found.values() for name in of_split if name not in names]:
        raise DataError(
            f"{len(missing)} {more} of the split are not in {source}: {shortened(missing)}. It has {len(names)}: "
            f"{shortened(sorted(names))}."
        )


def check_any(names: Collection[str], part: Split, split: ClassSplit, source: Path, more: str = "classes") -> None:
    """Raise `ConfigError` where fractions such as `[0, 0, 1]` have left a split without classes (or tasks: `more`)."""
    if not names:
        raise ConfigError(
            f"{source} has no {more} for {part}: split.fractions={list(split.fractions)}; with [0.64, 0.16, 0.2], say, "
            f"there are {more} for all three."
        )


def share_out(
    names: list[str], fractions: tuple[float, ...], seed: int, what: str = "classes"
) -> dict[Split, list[str]]:
    """Split `names` at random: a pure function of the names, the fractions and the seed."""
    order = choose(episode_keys(seed, SHUFFLE, [0]), len(names), len(names))[0]
    ends = np.rint(np.cumsum([0, *fractions]) * len(names)).astype(int)
    splits = {
        split: sorted(names[index] for index in order[start:end])
        for split, start, end in zip(SPLITS, ends[:-1], ends[1:], strict=True)
    }
    for split, share in zip(SPLITS, fractions, strict=True):
        if share and not splits[split]:
            raise DataError(
                f"a fraction of {share:g} of {len(names)} {what} leaves none for {split}; raise it in split.fractions "
                f"or add {what}."
            )
    return splits


def check_classes(
    names: dict[Split, list[str]], places: dict[Split, str], one: str = "a class", more: str = "classes"
) -> None:
    """Raise `DataError` if a split has no classes (or tasks: `one`, `more`), or one is named twice.

    `places` say where they are named.
    """
    for split, of_split in names.items():
        if not of_split:
            need = "at least n_way of them" if more == "classes" else "some"
            raise DataError(f"{places[split]} has no {more}; {split} episodes need {need}.")
    count = Counter(name for of_split in names.values() for name in of_split)
    repeated = [name for name, times in count.items() if times > 1]
    if repeated:
        first = repeated[0]
        where = [places[split] for split, of_split in names.items() for name in of_split if name == first]
        raise DataError(
            f"{one} must be in one split, or the test would be on {more} seen in training; but {first} is in "
            f"{' and in '.join(where)} ({more} named more than once: {shortened(repeated)}). Keep each in one place."
        )


def shortened(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (" ..." if len(names) > SHOWN else "")
