"""How alike two representations of the same examples are: linear CKA, from few examples.

Kornblith, Norouzi, Lee, Hinton: "Similarity of Neural Network Representations Revisited" (2019), arXiv:1905.00414.

CKA is HSIC normalised, `HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L))`, where K and L are the Gram matrices of the two
representations of Q examples. The paper's estimate of HSIC is too high for few examples of many features: two
independent representations of 75 examples by 1600 normal features have a CKA of 0.955 on average. Here HSIC is
estimated without bias (Song et al. 2012, "Feature Selection via Dependence Maximization"), as Nguyen, Raghu, Kornblith
(2021, arXiv:2010.15327) do for minibatches, which gives 0.000 in that example:

    HSIC_1(K, L) = [ tr(KL) + 1'K1 1'L1 / ((Q-1)(Q-2)) - 2 1'KL1 / (Q-2) ] / (Q (Q-3)),    diagonals of K, L set to 0.

With `centred_gram`, which subtracts from each entry the means of its row and column so that all rows sum to zero
("U-centring", Székely and Rizzo 2014, arXiv:1310.2926), this is `<K, L> / (Q (Q-3))`, and CKA is a plain cosine.
"""

from torch import Tensor

MIN_EXAMPLES = 4  # with three, a symmetric matrix without diagonal whose rows sum to zero is zero


def centred_gram(features_QD: Tensor) -> Tensor:
    """Inner products of each pair of different examples `(Q, Q)`, U-centred, in float64; the diagonal is zero."""
    features_QD = features_QD.double()
    shifted_QD = features_QD - features_QD[0]  # changes nothing, but makes a constant representation exactly zero
    n = len(features_QD)
    gram_QQ = (shifted_QD @ shifted_QD.T).fill_diagonal_(0)
    rows_Q = gram_QQ.sum(1)
    centred_QQ = gram_QQ - (rows_Q[:, None] + rows_Q) / (n - 2) + rows_Q.sum() / ((n - 1) * (n - 2))
    return centred_QQ.fill_diagonal_(0)


def linear_cka(a_QQ: Tensor, b_QQ: Tensor) -> Tensor:
    """Debiased linear CKA of two representations given by their `centred_gram`, from at least 4 examples.

    1: the same up to rotation, scale and shift. About 0: unrelated; the estimate may then be negative. NaN: one of them
    is the same for all examples. Its spread over samples grows as they get smaller.
    """
    return (a_QQ * b_QQ).sum() / (a_QQ.square().sum() * b_QQ.square().sum()).sqrt()
