"""CKA against the formulas of the papers, written out with explicit matrices."""

import pytest
import torch
from torch import Tensor

from lightning_meta.core.similarity import centred_gram, linear_cka

Q = 12


def cka(x: Tensor, y: Tensor) -> Tensor:
    return linear_cka(centred_gram(x), centred_gram(y))


def related(q: int = Q, d: int = 7) -> tuple[Tensor, Tensor]:
    """Two representations, neither equal nor independent."""
    x = torch.randn(q, d).double()
    return x, x @ torch.randn(d, 5).double() + torch.randn(q, 5).double()


def hsic_1(x: Tensor, y: Tensor) -> Tensor:
    """The unbiased estimate of Song et al. (2012)."""
    n = len(x)
    k, l, ones = x @ x.T, y @ y.T, torch.ones(n, 1).double()  # noqa: E741 - the paper's letters
    k, l = k - k.diag().diag(), l - l.diag().diag()  # noqa: E741
    sums = (ones.T @ k @ ones) * (ones.T @ l @ ones) / ((n - 1) * (n - 2)) - 2 * (ones.T @ k @ l @ ones) / (n - 2)
    return ((k @ l).trace() + sums.squeeze()) / (n * (n - 3))


def biased_cka(x: Tensor, y: Tensor) -> Tensor:
    """Kornblith et al. (2019): HSIC with the centring matrix H."""
    h = torch.eye(len(x)).double() - 1 / len(x)
    k, l = h @ x @ x.T @ h, h @ y @ y.T @ h  # noqa: E741
    return (k @ l).trace() / ((k @ k).trace() * (l @ l).trace()).sqrt()


@pytest.mark.parametrize("q", [4, 5, Q])
def test_equals_the_ratio_of_unbiased_hsic(q: int) -> None:
    x, y = related(q)
    expected = hsic_1(x, y) / (hsic_1(x, x) * hsic_1(y, y)).sqrt()
    torch.testing.assert_close(cka(x, y), expected, rtol=1e-9, atol=1e-12)
    assert expected < 0.99


def test_equals_the_papers_cka_where_there_are_many_examples() -> None:
    x, y = related(q=500, d=4)
    torch.testing.assert_close(cka(x, y), biased_cka(x, y), rtol=0, atol=0.01)
    assert 0.3 < cka(x, y) < 0.95


def test_identical_representations_have_exactly_one() -> None:
    x, _ = related()
    assert cka(x, x.clone()) == 1


def test_rotation_scale_and_shift_do_not_matter_and_other_linear_maps_do() -> None:
    x, y = related()
    rotation, _ = torch.linalg.qr(torch.randn(7, 7).double())
    torch.testing.assert_close(cka(x, 3 * x @ rotation + 100), torch.ones(()).double(), rtol=1e-9, atol=0)
    torch.testing.assert_close(cka(0.1 * x @ rotation - 5, y), cka(x, y), rtol=1e-9, atol=0)
    stretch = torch.linspace(0.1, 10, 7).double().diag()
    assert cka(x, x @ stretch) < 0.99


def test_independent_representations_have_about_zero_where_the_papers_estimate_is_near_one() -> None:
    pairs = [(torch.randn(20, 400).double(), torch.randn(20, 400).double()) for _ in range(50)]
    debiased, biased = (torch.stack([estimate(*pair) for pair in pairs]) for estimate in (cka, biased_cka))
    assert debiased.mean().abs() < 4 * debiased.std() / 50**0.5 < 0.1
    assert biased.mean() > 0.9


def test_centred_gram_is_float64_without_diagonal_and_its_rows_sum_to_zero() -> None:
    x = torch.randn(Q, 7) + 5
    gram = centred_gram(x)
    assert gram.dtype == torch.float64
    assert (gram.diagonal() == 0).all()
    assert gram.sum(1).abs().max() < 1e-10 * gram.norm()


def test_a_constant_representation_has_no_similarity() -> None:
    x, _ = related()
    assert cka(x, torch.full((Q, 3), 0.1)).isnan()
