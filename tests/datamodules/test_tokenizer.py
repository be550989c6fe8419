"""Text to token ids, written out by hand."""

import pytest
import torch

from lightning_meta.datamodules.tokenizer import Tokenizer, split_words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("What's new, Ada?", ["what's", "new", "ada"]),
        ("the cup 's song", ["the", "cup", "s", "song"]),
        ("Don\u2019t 'quote' me -- ÄRGER 2018", ["don't", "quote", "me", "ärger", "2018"]),
        ("?!", []),
    ],
)
def test_words_are_lower_case_without_punctuation(text: str, words: list[str]) -> None:
    assert split_words(text) == words


def test_a_row_has_length_ids_and_padding_and_unknown_words_have_their_own() -> None:
    tokenizer = Tokenizer(["a", "b", "c"], length=4)
    ids = tokenizer.encode(["C a", "", "b x b Y c a", "b?"])
    assert ids.tolist() == [[4, 2, 0, 0], [0, 0, 0, 0], [3, 1, 3, 1], [3, 0, 0, 0]]
    assert ids.dtype == torch.int64


@pytest.mark.parametrize("order", [1, -1])
def test_the_vocabulary_is_the_most_frequent_words_whatever_the_order_of_texts(order: int) -> None:
    texts = ["b a", "a B", "c a d", "d c", "once"][::order]
    assert Tokenizer.learn(texts, 5, vocabulary=100, min_count=2).words == ["a", "b", "c", "d"]
    assert Tokenizer.learn(texts, 5, vocabulary=100, min_count=3).words == ["a"]
    assert Tokenizer.learn(texts, 5, vocabulary=100, min_count=1).words == ["a", "b", "c", "d", "once"]
    few = Tokenizer.learn(texts, 5, vocabulary=5, min_count=1)
    assert few.words == ["a", "b", "c"] and few.encode(texts).max() == 4
