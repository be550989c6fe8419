"""What data of sentences and their translations share."""

from typing import Any

from lightning_meta.core.episode import Split
from lightning_meta.datamodules.base import EpisodicDataModule


class TranslationDataModule(EpisodicDataModule):
    """Episodes of sentences and their translations, rows of ids. Data sets write `load_source` and what words are.

    Args:
        n_way: must be 1.
        k_shot, n_query: sentences of a language.
        vocabulary: how many ids each side has at most. On the command line the backbone follows it.
        length: ids in a row, with the end of a sentence. On the command line the backbone follows it.
        **kwargs: of `EpisodicDataModule`.
    """

    def __init__(self, n_way: int, k_shot: int, n_query: int, vocabulary: int, length: int, **kwargs: Any) -> None:
        super().__init__(n_way=n_way, k_shot=k_shot, n_query=n_query, **kwargs)
        self.vocabulary, self.length = vocabulary, length

    def source_words(self) -> list[str]:
        """How the words of the source languages are written, by their ids from `FIRST_WORD` on."""
        raise NotImplementedError

    def target_words(self) -> list[str]:
        """How the words of the common language are written, by their ids from `FIRST_WORD` on."""
        raise NotImplementedError

    def count_languages(self, split: Split) -> int:
        """How many languages a split has."""
        raise NotImplementedError

    def facts(self, split: Split) -> dict[str, Any]:
        return super().facts(split) | {"languages": self.count_languages(split), "vocabulary": self.vocabulary}

    def describe(self, split: Split) -> str:
        shape, languages = self.shapes[split], self.count_languages(split)
        return f"{shape.k_shot} support and {shape.n_query} query sentences of one of {languages} languages"
