"""The likelihood of strings against sums over all paths and torch's own; reading off; steps that strings take."""

from itertools import groupby, product

import pytest
import torch
from torch import Tensor
from torch.func import grad, vmap
from torch.nn import functional as F
from torchmetrics.functional.text import edit_distance

from lightning_meta.core.ctc import ctc_nats, edit_distances, read_off, steps_needed, strings_of

STRINGS = torch.tensor([[1, 2, 0], [1, 1, 0], [2, 0, 0], [1, 1, 2], [0, 0, 0]])


def logits(steps: int, symbols: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return 2 * torch.randn(len(STRINGS), steps, symbols, generator=generator, dtype=torch.float64)


def read(path: tuple[int, ...]) -> list[int]:
    return [symbol for symbol, _ in groupby(path) if symbol]


@pytest.mark.parametrize("steps", [4, 5])
def test_the_likelihood_is_the_sum_over_all_paths(steps: int) -> None:
    given = logits(steps)
    found = ctc_nats(given, STRINGS)
    probability = given.softmax(-1)
    for q, string in enumerate(STRINGS.tolist()):
        total = sum(
            torch.stack([probability[q, s, symbol] for s, symbol in enumerate(path)]).prod()
            for path in product(range(3), repeat=steps)
            if read(path) == [symbol for symbol in string if symbol]
        )
        torch.testing.assert_close(found[q], -total.log())


def test_all_strings_together_are_certain() -> None:
    given = logits(4)[:1]
    strings = [s for n in range(5) for s in product((1, 2), repeat=n)]
    padded = torch.tensor([[*s, *[0] * (4 - len(s))] for s in strings])
    nats = ctc_nats(given.expand(len(strings), -1, -1), padded)
    assert (-nats).exp().sum().item() == pytest.approx(1)


def test_value_and_gradient_are_those_of_torch() -> None:
    given = logits(9, symbols=4).requires_grad_()
    lengths = (STRINGS != 0).sum(1)
    theirs = F.ctc_loss(
        given.log_softmax(-1).transpose(0, 1), STRINGS, torch.full((len(STRINGS),), 9), lengths, reduction="none"
    )
    ours = ctc_nats(given, STRINGS)
    torch.testing.assert_close(ours, theirs)
    weights = torch.arange(1.0, 1 + len(STRINGS), dtype=torch.float64)
    (expected,) = torch.autograd.grad(theirs @ weights, given)
    (found,) = torch.autograd.grad(ours @ weights, given)
    torch.testing.assert_close(found, expected)


def test_second_derivatives_are_right_and_vmap_changes_nothing() -> None:
    given = logits(5)[:2].requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x: ctc_nats(x, STRINGS[:2]), given)
    tasks, strings = torch.stack([logits(6), logits(6).flip(0)]), torch.stack([STRINGS, STRINGS.flip(0)])
    of_one = grad(lambda x, y: ctc_nats(x, y).sum())
    torch.testing.assert_close(vmap(of_one)(tasks, strings), torch.stack(list(map(of_one, tasks, strings))))


def test_padding_changes_nothing_and_too_few_steps_are_impossible_without_being_no_number() -> None:
    given = logits(3).requires_grad_()
    found = ctc_nats(given, STRINGS)
    torch.testing.assert_close(ctc_nats(given, F.pad(STRINGS, (0, 2))), found)
    possible = steps_needed(STRINGS) <= 3
    assert possible.tolist() == [True, True, True, False, True]
    assert (found[~possible] > 1e28).all() and (found[possible] < 100).all()
    (gradient,) = torch.autograd.grad(found[possible].sum(), given)
    assert gradient.isfinite().all()


def test_steps_needed_are_the_fewest_with_a_path() -> None:
    for string in STRINGS:
        fewest = next(
            n for n in range(8) if any(read(p) == string[string > 0].tolist() for p in product(range(3), repeat=n))
        )
        assert steps_needed(string[None]).item() == fewest


def test_the_likeliest_path_is_read_off() -> None:
    paths = torch.tensor([[0, 1, 1, 0, 1, 2], [2, 2, 2, 2, 2, 2], [0, 0, 0, 0, 0, 0], [1, 2, 1, 0, 0, 1]])
    found = read_off(F.one_hot(paths, 3).double())
    assert [row[: len(read(path))] for row, path in zip(found.tolist(), paths.tolist(), strict=True)] == [
        [1, 1, 2], [2], [], [1, 2, 1, 1],
    ]  # fmt: skip
    assert (found != 0).sum(1).tolist() == [3, 1, 0, 4]
    torch.testing.assert_close(vmap(read_off)(F.one_hot(paths, 3).double()[None])[0], found)


def test_strings_are_written_with_their_symbols() -> None:
    assert strings_of(torch.tensor([[1, 3, 0], [0, 0, 0]]), "abc") == ["ac", ""]
    assert len(set(strings_of(torch.arange(1, 30)[:, None]))) == 29


def test_edit_distances_are_those_of_torchmetrics() -> None:
    """Of strings of all lengths, the empty one among them."""
    generator = torch.Generator().manual_seed(0)
    found, true = (torch.randint(1, 4, (200, size), generator=generator) for size in (7, 5))
    for strings in (found, true):
        lengths = torch.randint(strings.shape[1] + 1, (200, 1), generator=generator)
        strings[torch.arange(strings.shape[1]) >= lengths] = 0
    expected = [
        edit_distance(a, b, reduction="sum").item() for a, b in zip(*map(strings_of, (found, true)), strict=True)
    ]
    assert edit_distances(found, true).tolist() == expected
    assert edit_distances(found.view(20, 10, -1), true.view(20, 10, -1)).flatten().tolist() == expected
