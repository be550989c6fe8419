"""Sentences that switch languages, against all that a small grammar has, put together word by word."""

from collections import Counter
from itertools import product
from math import log
from typing import Any

import numpy as np
import pytest
import torch

from lightning_meta.core import Episode
from lightning_meta.core.episode import EpisodeShape, Split
from lightning_meta.core.sampling import episode_keys
from lightning_meta.core.sentences import END, FIRST_WORD, words_of
from lightning_meta.core.tokenizer import PAD
from lightning_meta.datamodules import SwitchedCiphers
from lightning_meta.datamodules.language.switched_ciphers import SwitchedSource, spans
from lightning_meta.errors import ConfigError

Sentence = tuple[int, ...]
SMALL: dict[str, Any] = dict(vocabulary=19, pairs=[20, 3, 4])  # 8 words of a language, 432 sentences
SHAPE = EpisodeShape(1, 8, 12)


def source_of(split: Split = "test", **overrides: Any) -> SwitchedSource:
    return SwitchedCiphers(**(SMALL | overrides)).load_source(split)


def drawn(source: SwitchedSource, episodes: int = 5, shape: EpisodeShape = SHAPE) -> tuple[list[int], Episode]:
    """The numbers of the pairs, and the episodes."""
    keys = episode_keys(0, 2, range(episodes))
    return source.pair(keys).tolist(), source.sample(keys, shape)


def meanings(source: SwitchedSource) -> list[list[int | None]]:
    """Of all sentences: the concept in each place of the common language, or none."""
    choices = [
        [*range(first, first + count), *([None] if may_be_empty else [])]
        for first, count, may_be_empty in source.languages.grammar.choices
    ]
    return [list(concepts) for concepts in product(*choices)]


def written(source: SwitchedSource, pair: int, concepts: list[int | None], language: int) -> tuple[Sentence, Sentence]:
    """The words of a sentence in the order of one of the languages: in that language, and in the other."""
    there = [concepts[slot] for slot in source.languages.orders[2 * pair + language]]
    in_order = [concept for concept in there if concept is not None]
    words = source.languages.grammar.words
    both = [
        tuple(
            FIRST_WORD + words * of + int(source.languages.dictionaries[2 * pair + of, concept]) for concept in in_order
        )
        for of in (language, 1 - language)
    ]
    return both[0], both[1]


def switched(source: SwitchedSource, pair: int) -> list[Sentence]:
    """All sentences of a pair of languages that switch, in all ways."""
    found = []
    for concepts in meanings(source):
        matrix, embedded = written(source, pair, concepts, 0)
        for begin in range(len(matrix)):
            for end in range(begin + 1, len(matrix) + 1):
                if end - begin < len(matrix):
                    found.append(matrix[:begin] + embedded[begin:end] + matrix[end:])
    return found


def sentences(y_ML: torch.Tensor) -> list[Sentence]:
    return [tuple(row[: row.index(END)]) for row in y_ML.tolist()]


def test_sentences_are_those_of_the_two_languages() -> None:
    """The support set has those of one language each, in turn, the query set has those that switch."""
    source = source_of()
    pairs, tasks = drawn(source)
    assert len({*pairs}) > 1
    for t, pair in enumerate(pairs):
        alone = [{written(source, pair, concepts, language)[0] for concepts in meanings(source)} for language in (0, 1)]
        assert all(sentence in alone[m % 2] for m, sentence in enumerate(sentences(tasks.support.y[t])))
        assert {*sentences(tasks.query.y[t])} <= {*switched(source, pair)}


def test_no_prediction_is_better_than_the_entropy() -> None:
    """By the counts of all sentences: none can be written in two ways."""
    data = SwitchedCiphers(**SMALL)
    source = data.load_source("val")
    for languages in (2, 1):
        data.query_languages = languages
        chance: Counter[Sentence] = Counter()
        if languages == 2:
            every = switched(source, 1)
            per_meaning = Counter(len(written(source, 1, concepts, 0)[0]) for concepts in meanings(source))
            assert len(every) == len({*every}) == sum(len(spans(n)) * count for n, count in per_meaning.items())
            for sentence in every:
                chance[sentence] += 1 / len(meanings(source)) / len(spans(len(sentence)))
        else:
            for concepts, language in product(meanings(source), (0, 1)):
                chance[written(source, 1, concepts, language)[0]] += 0.5 / len(meanings(source))
        assert sum(chance.values()) == pytest.approx(1)
        nats = -sum(p * log(p) for p in chance.values())
        tokens = sum(p * (len(sentence) + 1) for sentence, p in chance.items())
        assert data.entropy() == pytest.approx(nats / tokens, rel=1e-9)


def test_each_span_is_as_likely_as_any_other() -> None:
    source, words = source_of(), np.full(20_000, 5)
    begin, end = source.drawn_spans(episode_keys(0, 0, range(len(words))), words)
    count = Counter(zip(begin[:, 0].tolist(), end[:, 0].tolist(), strict=True))
    assert {*count} == {(b, e) for b in range(5) for e in range(b + 1, 6)} - {(0, 5)}
    assert min(count.values()) > 20_000 / 14 * 0.88 and max(count.values()) < 20_000 / 14 * 1.12


def test_inputs_are_the_tokens_before() -> None:
    _, tasks = drawn(source_of())
    for batch in tasks:
        assert (batch.x[..., 0] == PAD).all() and torch.equal(batch.x[..., 1:], batch.y[..., :-1])
        assert ((batch.y == END).sum(-1) == 1).all()
        after = (batch.y == END).cumsum(-1) - (batch.y == END).long()
        assert ((batch.y == PAD) == (after > 0)).all()


def test_no_sentence_is_there_twice_nor_its_translation() -> None:
    source = source_of()
    pairs, tasks = drawn(source, shape=EpisodeShape(1, 100, 150))
    words = source.languages.grammar.words
    for t, pair in enumerate(pairs):
        concept_of = {
            FIRST_WORD + words * of + int(word): concept
            for of in (0, 1)
            for concept, word in enumerate(source.languages.dictionaries[2 * pair + of])
        }
        known = [sentences(tasks.support.y[t])[turn::2] for turn in (0, 1)]
        asked = sentences(tasks.query.y[t])
        in_matrix_order = [tuple(concept_of[word] for word in sentence) for sentence in known[0] + asked]
        assert len({*in_matrix_order}) == len(in_matrix_order) == 200
        said = {
            sentence: concepts for concepts in meanings(source) for sentence in [written(source, pair, concepts, 1)[0]]
        }
        moved = {tuple(concept_of[w] for w in written(source, pair, said[sentence], 0)[0]) for sentence in known[1]}
        assert not moved & {*in_matrix_order}


def test_either_side_can_switch_or_not() -> None:
    words = SwitchedCiphers(**SMALL).grammar.words

    def languages(y_ML: torch.Tensor) -> list[int]:
        return [len({(word - FIRST_WORD) // words for word in sentence}) for sentence in sentences(y_ML)]

    for support, query in product((1, 2), (1, 2)):
        _, tasks = drawn(source_of(support_languages=support, query_languages=query), 2)
        assert {*languages(tasks.support.y[0])} == {support} and {*languages(tasks.query.y[1])} == {query}


def test_splits_have_other_languages_and_an_episode_is_a_function_of_its_key() -> None:
    made = {split: SwitchedCiphers(pairs=[50, 20, 20]).load_source(split) for split in ("train", "val", "test")}
    together = np.concatenate([source.languages.dictionaries for source in made.values()])
    assert len(np.unique(together, axis=0)) == len(together) == 180
    again = SwitchedCiphers(pairs=[5, 1, 1]).load_source("train")
    assert (again.languages.dictionaries == made["train"].languages.dictionaries[:10]).all()
    many, few = (made["val"].sample(episode_keys(0, 1, ids), SHAPE) for ids in (range(9), [7]))
    assert torch.equal(many.query.y[7], few.query.y[0]) and torch.equal(many.support.x[7], few.support.x[0])


def test_words_of_the_embedded_language_are_in_capitals() -> None:
    data = SwitchedCiphers()
    assert len({*data.words()}) == data.vocabulary - FIRST_WORD
    written = words_of(torch.tensor([[FIRST_WORD, FIRST_WORD + data.grammar.words, END]]), data.words())[0].split()
    assert written[1] == written[0].upper() != written[0]


def test_without_word_order_all_languages_have_one() -> None:
    assert len(np.unique(source_of(word_order=False).languages.orders, axis=0)) == 1
    assert len(np.unique(source_of("train").languages.orders, axis=0)) > 10


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vocabulary": 42}, "vocabulary=42 leaves 39 words .* two languages cannot share equally; take 43"),
        ({"vocabulary": 17}, "vocabulary=17 leaves 7 words of a language .* take one from 19 to 173"),
        ({"length": 8}, "length=8 cuts sentences off.*take 9"),
        ({"pairs": [3, 0, 1]}, r"pairs=\[3, 0, 1\] must be three numbers of at least 1"),
        ({"pairs": [3, 1]}, r"pairs=\[3, 1\] must be three numbers"),
        ({"query_languages": 3}, "query_languages=3 must be 1 or 2"),
        ({"support_languages": 0}, "support_languages=0 must be 1 or 2"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SwitchedCiphers(**options)


def test_episodes_that_cannot_be_are_refused() -> None:
    with pytest.raises(ConfigError, match="one pair of languages: n_way must be 1, not 2"):
        SwitchedCiphers(n_way=2).setup("test")
    with pytest.raises(ConfigError, match=r"k_shot=200 .* n_query=300 sentences are needed, but the grammar has 432"):
        SwitchedCiphers(**SMALL, k_shot=200, n_query=300).setup("test")
