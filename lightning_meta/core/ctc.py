"""Connectionist temporal classification: what is the likelihood of a string, where nothing says when its symbols sound?

Graves, Fernandez, Gomez, Schmidhuber: "Connectionist Temporal Classification: Labelling Unsegmented Sequence Data with
Recurrent Neural Networks" (2006), section 4.1. At each step a network names a symbol or the blank. A path of such names
is read by dropping repetitions, then blanks; the likelihood of a string is the sum over all paths that read so.

In plain operations, because torch's `ctc_loss` has no second derivative and is slow under `vmap`. The blank is 0, and
so is the padding of strings.

Shape letters: `Q` strings, `S` steps of time, `C` symbols with the blank, `L` symbols of a string, `P` = 2 L + 1 places
of a string with blanks around its symbols.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

BLANK = 0
NEVER = -1e30  # a logarithm of zero, whose differences are numbers


def ctc_nats(logits_QSC: Tensor, y_QL: Tensor) -> Tensor:
    """Minus the log-likelihood `(Q,)` of strings; about 1e30 where there are too few steps for one."""
    places_QP = F.pad(torch.stack([torch.full_like(y_QL, BLANK), y_QL], -1).flatten(-2), (0, 1), value=BLANK)
    named_QSP = logits_QSC.log_softmax(-1).gather(-1, places_QP[:, None].expand(-1, logits_QSC.shape[1], -1))
    # From one symbol to the next without a blank between them, unless they are the same.
    over_QP = (places_QP != BLANK) & (places_QP != F.pad(places_QP, (2, 0))[:, :-2])
    leap_QP = torch.where(over_QP, 0.0, NEVER).to(logits_QSC.dtype)
    begins_P = torch.arange(places_QP.shape[1], device=y_QL.device) < 2
    paths_QP = torch.where(begins_P, named_QSP[:, 0], NEVER)
    for named_QP in named_QSP.unbind(1)[1:]:
        from_last = F.pad(paths_QP, (1, 0), value=NEVER)[:, :-1]
        from_last_but_one = F.pad(paths_QP, (2, 0), value=NEVER)[:, :-2] + leap_QP
        paths_QP = torch.stack([paths_QP, from_last, from_last_but_one]).logsumexp(0) + named_QP
    # A path ends in the last symbol or in the blank after it.
    last_Q1 = 2 * (y_QL != BLANK).sum(-1, keepdim=True)
    ends_QP = torch.arange(places_QP.shape[1], device=y_QL.device)
    ends_QP = (ends_QP == last_Q1) | (ends_QP == last_Q1 - 1)
    return -torch.where(ends_QP, paths_QP, NEVER).logsumexp(-1)


def read_off(logits_QSC: Tensor) -> Tensor:
    """The string `(Q, S)` of the likeliest path, with padding after its symbols."""
    path_QS = logits_QSC.argmax(-1)
    kept_QS = (path_QS != BLANK) & (path_QS != F.pad(path_QS, (1, 0), value=BLANK)[:, :-1])
    symbols_QS = torch.where(kept_QS, path_QS, BLANK)
    return symbols_QS.gather(-1, (~kept_QS).long().argsort(dim=-1, stable=True))


def steps_needed(y_QL: Tensor) -> Tensor:
    """How many steps of time each string takes at least, `(Q,)`: one for a symbol, one for a blank in a repetition."""
    again_QL = (y_QL[:, 1:] == y_QL[:, :-1]) & (y_QL[:, 1:] != BLANK)
    return (y_QL != BLANK).sum(-1) + again_QL.sum(-1)


def edit_distances(found_QS: Tensor, true_QL: Tensor) -> Tensor:
    """Fewest insertions, deletions and substitutions between strings with padding after them, `(Q,)`.

    Levenshtein (1966). One row of the table at a time: that a symbol is inserted costs 1 a place, so the best way to a
    place is a running minimum.
    """
    places_P = torch.arange(true_QL.shape[-1] + 1, device=true_QL.device)
    row_QP = places_P.expand(*true_QL.shape[:-1], -1)
    for symbol_Q in found_QS.unbind(-1):
        swapped_QL = row_QP[..., :-1] + (symbol_Q[..., None] != true_QL)
        best_QP = torch.cat([row_QP[..., :1] + 1, torch.minimum(row_QP[..., 1:] + 1, swapped_QL)], -1)
        best_QP = (best_QP - places_P).cummin(-1).values + places_P
        row_QP = torch.where(symbol_Q[..., None] != BLANK, best_QP, row_QP)
    return row_QP.gather(-1, (true_QL != BLANK).sum(-1, keepdim=True)).squeeze(-1)


def strings_of(ids_QL: Tensor, symbols: Sequence[str] | None = None) -> list[str]:
    """Strings by the numbers of their symbols, from 1 on; without symbols each is a letter of its own."""
    return ["".join(chr(id) if symbols is None else symbols[id - 1] for id in row if id) for row in ids_QL.tolist()]
