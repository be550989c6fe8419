"""Made-up languages: what is drawn, and that the support set says what a kind is called."""

from typing import Any

import numpy as np
import pytest
import torch

from lightning_meta.core.sampling import episode_keys, subkeys
from lightning_meta.core.tags import NO_WORD
from lightning_meta.datamodules import MadeUpEntities
from lightning_meta.datamodules.language.made_up_entities import LENGTH, WORDS, written
from lightning_meta.errors import ConfigError
from tests.datamodules.test_episodes import assert_same, ready


def entities(**overrides: Any) -> MadeUpEntities:
    settings: dict[str, Any] = dict(k_shot=5, n_query=4, train_languages=20, val_languages=3, test_languages=6)
    return MadeUpEntities(**(settings | overrides))


def test_a_name_has_the_tag_of_the_word_before_it() -> None:
    """Word after word: a lower-case word is outside; the last one before a name is its kind's."""
    data = entities()
    ready(data)
    source, keys = data.sources["test"], episode_keys(0, 2, range(40))
    language = source.language(keys)
    words, tags = source.sentences(subkeys(keys, [1])[..., 0], language, 9)
    seen = set()
    for t in range(40):
        kinds = source.kinds[language[t]].tolist()
        own = {*kinds, *source.fillers[language[t]].tolist()}
        for row, of_row in zip(words[t].tolist(), tags[t].tolist(), strict=True):
            count = sum(word >= 0 for word in row)
            assert count and row[count:] == [-1] * (LENGTH - count) and of_row[count:] == [NO_WORD] * (LENGTH - count)
            kind, length = None, 0
            for word, tag in zip(row[:count], of_row[:count], strict=True):
                if word < WORDS:
                    assert word in own and tag == 0
                    kind, length = (kinds.index(word) if word in kinds else None), 0
                else:
                    assert kind is not None and tag == (1 if length == 0 else 2) + 2 * kind and length < 3
                    length += 1
                    seen.add(tag)
    assert seen == set(range(1, 9))


def test_words_are_different_and_names_have_a_capital() -> None:
    words = written()
    assert len({*words}) == 2 * WORDS
    assert all(word.islower() for word in words[:WORDS]) and all(word.istitle() for word in words[WORDS:])


def test_an_episode_is_a_function_of_its_number_and_splits_have_languages_of_their_own() -> None:
    data, again = entities(), entities()
    first, second = (ready(one).dataset("test").__getitems__([3, 1]) for one in (data, again))
    assert_same(first, second)
    assert not torch.equal(first.query.x[0], first.query.x[1])
    kinds = {split: {tuple(kinds) for kinds in data.sources[split].kinds.tolist()} for split in ("train", "test")}
    assert not kinds["train"] & kinds["test"]
    x, y = data.dataset("train").__getitems__([0]).support
    assert x.shape == (1, 5, LENGTH, 6) and torch.equal((x != 0).any(-1), y != NO_WORD)
    assert np.prod(y.shape) == 5 * LENGTH


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_way": 5}, "n_way=5, but words have 9 tags: O, and two for each of PER, ORG, LOC, DATE; set n_way to 9"),
        ({"entities": ["PER", "PER"], "n_way": 5}, r"entities=\['PER', 'PER'\] must be different names"),
        ({"words": 98}, "are more than the 100 that there are; take 96"),
        ({"length": 20}, "length=20, but sentences have up to 18"),
        ({"word_parts": 2}, "word_parts=2"),
    ],
)
def test_what_cannot_be_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        entities(**settings)


def test_other_entities_have_tags_of_their_own() -> None:
    assert entities(entities=["NAME"], n_way=3).tags == ["O", "B-NAME", "I-NAME"]
