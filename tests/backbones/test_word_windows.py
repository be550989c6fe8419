"""Features of words: what they depend on, and what not."""

import pytest
import torch

from lightning_meta.backbones import WordWindows
from lightning_meta.core.word_parts import encoded_words
from lightning_meta.errors import ConfigError

SENTENCES = [["one", "two", "three", "four", "five", "six", "seven"], ["one", "two"], ["one"]]


def encoder(**overrides: int) -> WordWindows:
    return WordWindows(**(dict(vocabulary=60, embedding_dim=6, features=5) | overrides)).double()


def test_more_padding_changes_no_feature_of_a_word() -> None:
    module = encoder()
    short, long = (module(encoded_words(SENTENCES, length, 60, parts)) for length, parts in ((7, 8), (12, 14)))
    torch.testing.assert_close(short, long[:, :7], rtol=1e-12, atol=1e-12)
    assert not long[1, 2:].any() and not long[:, 7:].any()
    assert short[0].any(1).all()


def test_a_word_sees_its_window_and_no_further() -> None:
    """Two layers of three words each: two words to either side."""
    module, ids = encoder(), encoded_words(SENTENCES, 7, 60, 8)
    other = ids.clone()
    other[0, 6] = encoded_words([["zero"]], 1, 60, 8)[0, 0]
    differ = (module(ids)[0] != module(other)[0]).any(1)
    assert differ.tolist() == [False] * 4 + [True] * 3


def test_a_word_is_the_mean_of_its_parts() -> None:
    """Of one layer that sees one word, by plain matrices."""
    module, ids = encoder(layers=1, width=1), encoded_words([["Abuja", "a"]], 2, 60, 8)
    layer = module.convolutions[0]
    for place, parts in ((0, 7), (1, 3)):
        mean = module.embedding.weight[ids[0, place, :parts]].mean(0)
        expected = (layer.weight[:, :, 0] @ mean + layer.bias).relu()
        torch.testing.assert_close(module(ids)[0, place], expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"width": 4}, "width=4 has no middle; take 5"), ({"vocabulary": None}, "needs vocabulary")],
)
def test_what_cannot_be_is_refused(settings: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        encoder(**settings)
