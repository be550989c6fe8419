"""Statistics of words: counted by hand on four texts, and against NumPy's decomposition of the whole matrix."""

from itertools import permutations
from math import log

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_meta.core.word_statistics import (
    inverse_document_frequencies,
    occurrences,
    positive_pmi,
    ppmi_vectors,
    truncated_svd,
)

# Ids: 0 is padding and 1 no word either; 2 to 6 are words, and 6 is in no text.
TEXTS = [[2, 3, 2, 2], [3, 4, 0, 0], [2, 3, 1, 0], [5, 0, 0, 0]]
VOCABULARY = 7
WORDS = torch.arange(VOCABULARY) >= 2
ALL = torch.ones(80, dtype=torch.bool)


def counted(texts: list[list[int]]) -> Tensor:
    return occurrences(torch.tensor(texts), WORDS)


def pmi_by_hand(texts: list[list[int]]) -> np.ndarray:
    """From the list of all ordered pairs of different words that a text has."""
    pairs = [pair for text in texts for pair in permutations({word for word in text if word >= 2}, 2)]
    begins = [[first for first, _ in pairs].count(word) for word in range(VOCABULARY)]
    context = [count**0.75 for count in begins]
    found = np.zeros((VOCABULARY, VOCABULARY))
    for i, j in set(pairs):
        p_pair, p_word, p_context = pairs.count((i, j)) / len(pairs), begins[i] / len(pairs), context[j] / sum(context)
        found[i, j] = max(0, log(p_pair / (p_word * p_context)))
    return found


def random_texts(texts: int = 300, vocabulary: int = 80, length: int = 9) -> Tensor:
    """Ids with a few frequent words, as in language."""
    generator = torch.Generator().manual_seed(0)
    return (vocabulary * torch.rand(texts, length, generator=generator) ** 2).long()


def test_a_word_occurs_once_in_a_text_however_often_it_is_there() -> None:
    expected = [[0, 0, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 0, 0], [0, 0, 1, 1, 0, 0, 0], [0, 0, 0, 0, 0, 1, 0]]
    assert counted(TEXTS).to_dense().tolist() == expected


def test_inverse_document_frequencies_by_hand() -> None:
    expected = [log(5 / (1 + texts)) for texts in (0, 0, 2, 3, 1, 1, 0)]
    torch.testing.assert_close(inverse_document_frequencies(counted(TEXTS)), torch.tensor(expected))


def test_pmi_by_hand() -> None:
    """Of the pairs (2, 3), (3, 2), (3, 4), (4, 3), (2, 3), (3, 2): words 2, 3, 4 begin 2, 3 and 1 of them."""
    found = positive_pmi(counted(TEXTS)).to_dense()
    context = 2**0.75 + 3**0.75 + 1
    assert found[2, 3].item() == pytest.approx(log((2 / 6) / (2 / 6 * 3**0.75 / context)))
    assert found[4, 3].item() == pytest.approx(log((1 / 6) / (1 / 6 * 3**0.75 / context)))
    assert found[3, 4].item() == pytest.approx(log((1 / 6) / (3 / 6 * 1 / context)))
    np.testing.assert_allclose(found, pmi_by_hand(TEXTS), atol=1e-12)


def test_words_that_are_seldom_together_have_no_pmi() -> None:
    texts = [[2, 3]] * 5 + [[4, 5]] * 5 + [[2, 4]]
    found = positive_pmi(counted(texts)).to_dense()
    assert found[2, 4] == 0 < found[2, 3]
    np.testing.assert_allclose(found, pmi_by_hand(texts), atol=1e-12)


def test_neither_order_nor_padding_matters() -> None:
    longer = [[0, *text[::-1], 1] for text in TEXTS[::-1]]
    for statistic in (inverse_document_frequencies, positive_pmi):
        assert torch.equal(*(statistic(counted(texts)).to_dense() for texts in (TEXTS, longer)))


@pytest.mark.parametrize("shape", [(60, 40), (40, 60)])
def test_the_decomposition_equals_numpys(shape: tuple[int, int]) -> None:
    """Of a matrix whose singular values fall by a third each."""
    random = np.random.default_rng(0)
    u, v = (np.linalg.qr(random.normal(size=(size, 40)))[0] for size in shape)
    matrix = torch.from_numpy(u * 1.5 ** -np.arange(40) @ v.T)
    found_u, found_s, found_v = truncated_svd(matrix.to_sparse_coo(), 6)
    u, s, vh = np.linalg.svd(matrix.numpy())
    np.testing.assert_allclose(found_s, s[:6], rtol=1e-9)
    np.testing.assert_allclose(found_u * found_s @ found_v.mT, u[:, :6] * s[:6] @ vh[:6], atol=1e-6)


def test_few_directions_come_near_the_best_ones_of_numpy() -> None:
    """PMI has singular values that fall slowly, the hard case."""
    matrix = positive_pmi(occurrences(random_texts(), ALL))
    u, s, v = truncated_svd(matrix, 5)
    best = np.linalg.svd(matrix.to_dense().numpy())[1]
    assert ((matrix.to_dense() - u * s @ v.mT).norm() / np.linalg.norm(best[5:])).item() < 1.002


def test_all_directions_give_the_matrix_back_and_numpys_vectors() -> None:
    """Vectors are compared by their inner products: a decomposition has the signs of its directions free."""
    found = occurrences(random_texts(), ALL)
    matrix = positive_pmi(found)
    u, s, v = truncated_svd(matrix, 80)
    torch.testing.assert_close(u * s @ v.mT, matrix.to_dense())
    vectors = ppmi_vectors(found, 80)
    u, s, _ = np.linalg.svd(matrix.to_dense().numpy())
    np.testing.assert_allclose(vectors @ vectors.mT, u * s @ u.T, atol=1e-10)


def test_vectors_are_the_same_in_every_call_and_leave_the_noise_of_training_alone() -> None:
    found = occurrences(random_texts(), ALL)
    torch.manual_seed(1)
    first, noise = ppmi_vectors(found, 5), torch.rand(3)
    torch.manual_seed(1)
    assert torch.equal(noise, torch.rand(3))
    assert torch.equal(ppmi_vectors(found, 5), first)


def test_words_with_the_same_company_are_alike_and_words_without_any_have_no_vector() -> None:
    vectors = ppmi_vectors(counted([[2, 3], [2, 4], [5, 3], [5, 4], [6, 0]]), 20)
    assert vectors.shape == (VOCABULARY, 20)
    torch.testing.assert_close(vectors[2], vectors[5])
    torch.testing.assert_close(vectors[3], vectors[4])
    assert abs(vectors[2] @ vectors[3]) < 1e-9 and vectors[2].norm() > 0.1
    assert not vectors[[0, 1, 6]].any()
