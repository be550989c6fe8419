"""A folder of texts as tasks: each file is a document, of which some is learned from and the rest predicted."""

import logging
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_meta.core.episode import Split
from lightning_meta.core.sampling import choose, episode_keys
from lightning_meta.core.tokenizer import FIRST, Tokenizer, split_words
from lightning_meta.datamodules.episodes import STREAM
from lightning_meta.datamodules.sequences.chunks import SequenceDataModule
from lightning_meta.errors import ConfigError, DataError, require_at_least

log = logging.getLogger(__name__)

SPLITS: tuple[Split, ...] = ("train", "val", "test")
LIBRARY = 0x5445585453  # the seed of the split, which is the same in every run


class Documents(SequenceDataModule):
    """Texts of your own: the files `*.txt` of a folder and of the folders within it, in UTF-8.

    A task is a document: chunks to learn from, then chunks to predict. Where `root` has the folders `train`, `val` and
    `test`, these are the splits. Otherwise files are shared out by chance, always in the same way.

    Words are in lower case and without punctuation, see `Tokenizer`. The vocabulary is counted on the documents of
    training alone, and saved with a checkpoint. All words that it has not are one, and count as a word that is
    predicted.

    Args:
        root: folder of the files.
        shares: parts of the files for training, validation and test, where there are no folders of these names.
        min_count: how often a word must occur to be in the vocabulary.
        n_way: must be 1.
        k_shot, n_query: chunks to learn from, and chunks after them to predict. Shorter documents are left out; the log
            says how many.
        vocabulary: how many ids there are at most: padding, unknown and the most frequent words. On the command line
            the backbone follows it.
        length: words of a chunk. On the command line the backbone follows it.
        **kwargs: of `EpisodicDataModule`.
    """

    of = ("document", "documents")

    def __init__(
        self,
        root: str,
        shares: Sequence[float] = (0.8, 0.1, 0.1),
        min_count: int = 2,
        n_way: int = 1,
        k_shot: int = 8,
        n_query: int = 4,
        vocabulary: int = 2000,
        length: int = 32,
        **kwargs: Any,
    ) -> None:
        super().__init__(n_way, k_shot, n_query, vocabulary, length, **kwargs)
        require_at_least(1, min_count=min_count)
        require_at_least(FIRST + 1, vocabulary=vocabulary)
        if len(shares) != len(STREAM) or min(shares) <= 0:
            raise ConfigError(f"shares={list(shares)} must be three numbers above 0: for train, val and test.")
        self.root, self.min_count = Path(root), min_count
        self.shares = dict(zip(STREAM, shares, strict=True))

    def sequences(self, split: Split) -> list[Tensor]:
        ids = self.tokenizer.id_of
        return [torch.tensor([ids(word) for word in words], dtype=torch.long) for words in self._words(split)]

    def _words(self, split: Split) -> list[list[str]]:
        return [split_words(read_text(path)) for path in self.files[split]]

    @cached_property
    def files(self) -> dict[Split, list[Path]]:
        """Those of each split, in the order of their names."""
        if all((self.root / name).is_dir() for name in SPLITS):
            found = {split: sorted((self.root / split).rglob("*.txt")) for split in SPLITS}
            if empty := [split for split, files in found.items() if not files]:
                raise DataError(f"{self.root / empty[0]} has no documents (*.txt). Put some there.")
            return found
        files = sorted(self.root.rglob("*.txt"))
        if len(files) < len(STREAM):
            raise DataError(
                f"{self.root} has {len(files)} documents (*.txt), but training, validation and test need one each. "
                "Put more there, one file for each document."
            )
        order = [files[place] for place in choose(episode_keys(LIBRARY, 0, [0]), len(files), len(files))[0]]
        whole = sum(self.shares.values())
        held_out = {split: max(round(len(files) * self.shares[split] / whole), 1) for split in ("val", "test")}
        test, val = held_out["test"], held_out["test"] + held_out["val"]
        if val >= len(files):
            raise ConfigError(
                f"shares={list(self.shares.values())} leave none of {len(files)} documents for training; raise the "
                "first of them."
            )
        return {"train": sorted(order[val:]), "val": sorted(order[test:val]), "test": sorted(order[:test])}

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Of the words of training."""
        texts = [read_text(path) for path in self.files["train"]]
        return Tokenizer.learn(texts, self.length, self.vocabulary, self.min_count)

    def state_dict(self) -> dict[str, Any]:
        return {"words": self.tokenizer.words}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if state_dict == self.state_dict():
            return
        log.info("Vocabulary: that of the checkpoint, in place of that of the files.")
        self.tokenizer = Tokenizer(state_dict["words"], self.length)
        for split, source in self.sources.items():  # Lightning sets up before it loads
            self.sources[split] = self.load_source(split).to(source.inputs.device)  # type: ignore[attr-defined]


def read_text(path: Path) -> str:
    """The content of a file in UTF-8. Raises `DataError`."""
    try:
        return path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 ({error.reason} at byte {error.start}); convert the file.") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error}); copy it anew.") from error
