"""Ciphers: sentences against a grammar by hand, languages that are bijections, and answers that are known."""

import numpy as np
import pytest
import torch

from lightning_meta.core import Episode
from lightning_meta.core.episode import EpisodeShape
from lightning_meta.core.sampling import episode_keys
from lightning_meta.core.sentences import END, FIRST_WORD, up_to_end, words_of
from lightning_meta.datamodules import Ciphers
from lightning_meta.datamodules.language.ciphers import CipherSource, Grammar, spelled, word_orders
from lightning_meta.errors import ConfigError
from lightning_meta.metrics import EpisodicBLEU, EpisodicWordAccuracy
from tests.conftest import ciphers

SHAPE = EpisodeShape(1, 10, 6)


def drawn(episodes: int = 4) -> tuple[CipherSource, np.ndarray, Episode]:
    """The source of test languages, the numbers of those drawn, and the episodes."""
    source, keys = Ciphers().load_source("test"), episode_keys(0, 2, range(episodes))
    return source, source.language(keys), source.sample(keys, SHAPE)


def translated(row: list[int], dictionary: np.ndarray, order: np.ndarray, grammar: Grammar) -> list[int]:
    """Word by word with the dictionary; then the places are found again by the kinds of words."""
    meaning = {int(word): concept for concept, word in enumerate(dictionary)}
    concepts = [meaning[word - FIRST_WORD] for word in row[: row.index(END)]]
    kinds = [
        next(kind for kind, (first, count, _) in zip(range(8), grammar.choices, strict=True) if 0 <= c - first < count)
        for c in concepts
    ]
    slots: dict[int, int] = {}
    rest = list(zip(concepts, kinds, strict=True))
    for slot in order:  # a slot takes the next word if that is of its kind and can stand there
        kind = {4: 0, 5: 1, 6: 2}.get(int(slot), int(slot))
        if rest and rest[0][1] == kind:
            slots[int(slot)] = rest.pop(0)[0]
    return [slots[slot] for slot in sorted(slots)]


def test_sentences_follow_the_grammar() -> None:
    grammar = Ciphers().grammar
    names, nouns = grammar.names, set(grammar.names[: grammar.nouns])
    verbs = set(names[grammar.nouns : grammar.nouns + grammar.verbs])
    _, _, tasks = drawn()
    for text in words_of(tasks.query.y.flatten(0, 1), names):
        words = text.split()
        assert 3 <= len(words) <= 8
        assert sum(word in nouns for word in words) == 2 and sum(word in verbs for word in words) == 1
        verb = next(place for place, word in enumerate(words) if word in verbs)
        assert any(word in nouns for word in words[:verb]) and any(word in nouns for word in words[verb + 1 :])
        for place, word in enumerate(words):
            assert word != "-s" or words[place - 1] in nouns


def test_each_sentence_has_a_number_and_none_is_drawn_twice() -> None:
    grammar = Grammar.of(8)
    every = grammar.concepts(np.arange(grammar.sentences))
    assert len(np.unique(every, axis=0)) == len(every)
    source = ciphers().load_source("train")
    tasks = source.sample(episode_keys(0, 0, range(3)), EpisodeShape(1, 60, 60))
    for t in range(3):
        assert len(torch.cat([tasks.support.y[t], tasks.query.y[t]]).unique(dim=0)) == 120


def test_languages_are_bijections_with_an_order_of_their_own() -> None:
    source, _, _ = drawn()
    assert (np.sort(source.dictionaries, 1) == np.arange(source.grammar.words)).all()
    assert (np.sort(word_orders(), 1) == np.arange(8)).all() and len(np.unique(word_orders(), axis=0)) == 48
    assert len(np.unique(source.orders, axis=0)) > 40


def test_with_the_true_dictionary_translations_are_right() -> None:
    source, languages, tasks = drawn(8)
    for t, language in enumerate(languages):
        dictionary, order = source.dictionaries[language], source.orders[language]
        for x, y in zip(tasks.query.x[t].tolist(), tasks.query.y[t].tolist(), strict=True):
            concepts = translated(x, dictionary, order, source.grammar)
            assert [c + FIRST_WORD for c in concepts] + [END] == y[: len(concepts) + 1]
    assert (EpisodicWordAccuracy.per_episode(tasks.query.y, tasks.query.y) == 1).all()


def test_a_copy_has_the_ends_right_and_one_word_in_twenty() -> None:
    _, _, tasks = drawn(300)
    copied = EpisodicWordAccuracy.per_episode(tasks.query.x, tasks.query.y)
    words = (tasks.query.y != 0).sum((1, 2)).double()
    assert copied.mean().item() == pytest.approx(((6 + (words - 6) / 20) / words).mean().item(), abs=0.01)


def test_bleu_is_sacrebleus_on_the_sentences() -> None:
    sacrebleu = pytest.importorskip("sacrebleu")
    _, _, tasks = drawn()
    y = tasks.query.y
    assert (EpisodicBLEU.per_episode(y, y) > 99.99).all()
    wrong = torch.where(torch.rand(y.shape, generator=torch.Generator().manual_seed(0)) < 0.2, 5, y)
    found = EpisodicBLEU.per_episode(up_to_end(wrong), y)
    names = Ciphers().target_words()
    for t in range(4):
        system, truth = words_of(up_to_end(wrong[t]), names), words_of(y[t], names)
        assert found[t] == pytest.approx(sacrebleu.corpus_bleu(system, [truth], tokenize="none", force=True).score)
    assert 5 < found.mean() < 95


def test_an_unknown_word_is_never_right() -> None:
    pytest.importorskip("sacrebleu")
    y = torch.tensor([[[3, 1, 4, 5, 6, END, 0], [7, 8, 1, 9, 3, END, 0]]])
    assert EpisodicBLEU.per_episode(y, y).item() < 60


def test_word_accuracy_counts_the_words_of_the_truth() -> None:
    truth = torch.tensor([[[3, 4, END, 0], [5, END, 0, 0]]])
    preds = torch.tensor([[[3, 5, END, 0], [5, 6, END, 0]]])
    assert EpisodicWordAccuracy.per_episode(preds, truth).item() == pytest.approx(3 / 5)
    assert EpisodicWordAccuracy.per_episode(preds[..., :1], truth).item() == pytest.approx(2 / 5)


def test_splits_have_other_languages_and_an_episode_is_a_function_of_its_key() -> None:
    data = Ciphers(train_languages=300)
    dictionaries = [data.load_source(split).dictionaries for split in ("train", "val", "test")]
    together = np.concatenate(dictionaries)
    assert len(np.unique(together, axis=0)) == len(together) == 600
    again = Ciphers(train_languages=10).load_source("train")
    assert (again.dictionaries == dictionaries[0][:10]).all()
    assert (Ciphers(seed=1).load_source("train").dictionaries[:10] != dictionaries[0][:10]).any()
    many, few = (data.load_source("val").sample(episode_keys(0, 1, ids), SHAPE) for ids in (range(9), [7]))
    assert torch.equal(many.query.x[7], few.query.x[0]) and torch.equal(many.support.y[7], few.support.y[0])


def test_words_of_made_up_languages_are_written_differently() -> None:
    assert len({spelled(word) for word in range(85)}) == 85


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vocabulary": 10}, "vocabulary=10 leaves 7 words.*take one from 11 to 88"),
        ({"vocabulary": 500}, "leaves 497 words.*from 11 to 88"),
        ({"length": 8}, "length=8 cuts sentences off.*take 9"),
        ({"test_languages": 0}, "test_languages=0 must be at least 1"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Ciphers(**options)


def test_episodes_that_cannot_be_are_refused() -> None:
    with pytest.raises(ConfigError, match="n_way must be 1, not 2"):
        Ciphers(n_way=2).setup("fit")
    data = ciphers(k_shot=40_000)
    with pytest.raises(ConfigError, match=r"k_shot=40000 \+ n_query=3 sentences.*has \d+ different ones"):
        data.setup("fit")
