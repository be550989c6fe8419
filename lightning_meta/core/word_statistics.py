"""What a collection of texts tells of its words: how many texts have one, and with which others it occurs.

Spärck Jones: "A Statistical Interpretation of Term Specificity and its Application in Retrieval" (1972): inverse
document frequency. Levy, Goldberg, Dagan: "Improving Distributional Similarity with Lessons Learned from Word
Embeddings" (2015), Transactions of the ACL 3: word vectors from the singular value decomposition of positive pointwise
mutual information. Halko, Martinsson, Tropp: "Finding Structure with Randomness" (2009), arXiv:0909.4061: the
decomposition of a large sparse matrix.

Deviations: words occur together when one text has both, which suits short texts; the papers slide a window over long
ones. Context frequencies are smoothed by the exponent 0.75 and singular values taken to the power 1/2, two of the
settings that Levy et al. compare.

Letters: E texts, L ids of a text, V ids in all. `words_V` says which ids are words; the others (padding) do not count.
"""

import warnings

import torch
from torch import Tensor
from torch.nn import functional as F

CONTEXT_SMOOTHING = 0.75
EXTRA_DIRECTIONS = 10  # beside those asked for
POWER_ITERATIONS = 4


def occurrences(ids_EL: Tensor, words_V: Tensor) -> Tensor:
    """Sparse `(E, V)`: 1 where a text has a word, however often."""
    texts, vocabulary = len(ids_EL), len(words_V)
    text_EL = torch.arange(texts)[:, None].expand_as(ids_EL)
    is_word_EL = words_V[ids_EL]
    places = torch.unique(text_EL[is_word_EL] * vocabulary + ids_EL[is_word_EL])
    return sparse(places // vocabulary, places % vocabulary, torch.ones(len(places)), (texts, vocabulary))


def inverse_document_frequencies(occurrences_EV: Tensor) -> Tensor:
    """`log((1 + E) / (1 + texts that have the word))` of each word `(V,)`: the rarer a word, the more it tells.

    A word that is in no text is given the weight of one more text, which has it alone.
    """
    texts, vocabulary = occurrences_EV.shape
    texts_with_V = torch.bincount(occurrences_EV.indices()[1], minlength=vocabulary)
    return ((1 + texts) / (1 + texts_with_V)).log()


def positive_pmi(occurrences_EV: Tensor) -> Tensor:
    """Sparse `(V, V)`: how much more often words i and j are in one text than if they were independent.

    `max(0, log(p(i, j) / (p(i) p'(j))))`: of all ordered pairs of different words that are in one text, p(i, j) is the
    share of the pair (i, j) and p(i) that of pairs which begin with i; p'(j) is proportional to `p(j) ** 0.75`.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")  # torch's, of its own format
        together_VV = torch.sparse.mm(occurrences_EV.t().coalesce(), occurrences_EV).coalesce()
    (i, j), count = together_VV.indices(), together_VV.values().double()
    i, j, count = (entries[i != j] for entries in (i, j, count))
    of_word_V = torch.bincount(i, count, minlength=together_VV.shape[0])
    as_context_V = of_word_V**CONTEXT_SMOOTHING
    pmi = (count * as_context_V.sum() / (of_word_V[i] * as_context_V[j])).log()
    return sparse(i[pmi > 0], j[pmi > 0], pmi[pmi > 0], together_VV.shape)


def truncated_svd(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """The largest singular values of a sparse matrix `(M, N)` and their vectors: U `(M, R)`, S `(R,)`, V `(N, R)`.

    Found by products with random directions, which are the same in every call. R is `rank`, or less in a small matrix.
    """
    transposed = matrix.t().coalesce()
    directions = min(rank + EXTRA_DIRECTIONS, *matrix.shape)
    draw = torch.randn(matrix.shape[1], directions, generator=torch.Generator().manual_seed(0), dtype=matrix.dtype)
    basis_MR = torch.linalg.qr(matrix @ draw).Q
    for _ in range(POWER_ITERATIONS):
        basis_MR = torch.linalg.qr(matrix @ (transposed @ basis_MR)).Q
    v_NR, s_R, u_RR = torch.linalg.svd(transposed @ basis_MR, full_matrices=False)
    return (basis_MR @ u_RR.mT)[:, :rank], s_R[:rank], v_NR[:, :rank]


def ppmi_vectors(occurrences_EV: Tensor, size: int) -> Tensor:
    """A vector `(V, size)` of each word, in float64: words that keep the same company have similar ones.

    The company is `positive_pmi`. The vector of a word without any is zero.
    """
    pmi_VV = positive_pmi(occurrences_EV)
    u_VR, s_R, _ = truncated_svd(pmi_VV, size)
    has_company_V = torch.zeros(len(u_VR), dtype=torch.bool)
    has_company_V[pmi_VV.indices()[0]] = True
    vectors_VR = u_VR * s_R.sqrt() * has_company_V[:, None]  # else not zero but nearly so
    return F.pad(vectors_VR, (0, size - vectors_VR.shape[1]))


def sparse(rows: Tensor, columns: Tensor, values: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A matrix of `shape` with these values in these places, which are sorted and different."""
    return torch.sparse_coo_tensor(
        torch.stack([rows, columns]), values, shape, is_coalesced=True, check_invariants=False
    )
