"""What data of sentences with a tag for each word share."""

from collections.abc import Sequence
from typing import Any

from lightning_meta.core.episode import EpisodeShape, Split
from lightning_meta.core.tags import tag_names
from lightning_meta.core.word_parts import FEWEST
from lightning_meta.datamodules.base import EpisodicDataModule
from lightning_meta.errors import ConfigError, require_at_least

ENTITIES = ("PER", "ORG", "LOC", "DATE")


class TaggingDataModule(EpisodicDataModule):
    """Episodes of sentences of one language and the tags of their words. Data sets write `load_source`.

    A word is the ids of its parts, see `core.word_parts`; inputs are `(sentences, length, parts)`. Targets
    `(sentences, length)` are tags as in `core.tags`, -100 where no word is.

    Args:
        n_way: how many tags there are: the classes of words, two for each entity and one for words outside. On the
            command line the algorithm follows it.
        k_shot, n_query: sentences.
        entities: kinds of spans, by name.
        vocabulary: how many ids parts of words share. On the command line the backbone follows it.
        length: words of a sentence.
        word_parts: of a word, at most.
        **kwargs: of `EpisodicDataModule`.
    """

    def __init__(
        self,
        n_way: int,
        k_shot: int,
        n_query: int,
        entities: Sequence[str] = ENTITIES,
        vocabulary: int = 5000,
        length: int = 32,
        word_parts: int = 10,
        **kwargs: Any,
    ) -> None:
        super().__init__(n_way=n_way, k_shot=k_shot, n_query=n_query, **kwargs)
        require_at_least(1, length=length)
        require_at_least(2, vocabulary=vocabulary)
        require_at_least(FEWEST, word_parts=word_parts)
        self.entities, self.vocabulary, self.length, self.word_parts = tuple(entities), vocabulary, length, word_parts
        if len({*entities}) < len(self.entities) or not entities:
            raise ConfigError(f"entities={list(entities)} must be different names, at least one.")
        self.tags = tag_names(self.entities)
        for split, shape in self.shapes.items():
            if shape.n_way != len(self.tags):
                raise ConfigError(
                    f"{split} episodes have n_way={shape.n_way}, but words have {len(self.tags)} tags: O, and two for "
                    f"each of {', '.join(self.entities)}; set n_way to {len(self.tags)}."
                )

    def count_languages(self, split: Split) -> int:
        """How many languages a split has."""
        raise NotImplementedError

    def facts(self, split: Split) -> dict[str, Any]:
        return super().facts(split) | {"languages": self.count_languages(split), "entities": list(self.entities)}

    def describe(self, split: Split) -> str:
        shape: EpisodeShape = self.shapes[split]
        return (
            f"{shape.k_shot} support and {shape.n_query} query sentences of one of {self.count_languages(split)} "
            f"languages, spans of {', '.join(self.entities)}"
        )
