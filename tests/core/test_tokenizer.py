"""Text to token ids, written out by hand."""

import pytest
import torch

from lightning_meta.core.tokenizer import Tokenizer, split_words


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


def test_unknown_words_share_buckets_by_a_hash_that_no_process_changes() -> None:
    """CRC-32 of "123456789" is 0xCBF43926, the check value of its standard."""
    tokenizer = Tokenizer(["a", "b"], length=3, buckets=10)
    assert tokenizer.encode(["a b", "x 123456789 x"])[0].tolist() == [12, 13, 0]
    first, number, second = tokenizer.encode(["x 123456789 x"])[0].tolist()
    assert number == 2 + 0xCBF43926 % 10
    assert first == second and 2 <= first < 12
    many = Tokenizer(["a"], 1, buckets=7).encode([f"w{i}" for i in range(200)])
    assert many.unique().tolist() == [2, 3, 4, 5, 6, 7, 8]


def test_buckets_take_their_part_of_the_vocabulary() -> None:
    learned = Tokenizer.learn(["a b c d", "a b c", "a b"], 4, vocabulary=8, min_count=1, buckets=3)
    assert learned.words == ["a", "b", "c"]
    assert learned.encode(["a b c d"]).max() == 7
