"""Random numbers of tensor keys: those that are drawn of the same keys outside of hooks."""

import numpy as np
import torch
from torch.func import grad

from lightning_meta.core import dice, sampling

KEYS = sampling.episode_keys(7, 3, range(5))
AS_TENSORS = torch.from_numpy(KEYS.view(np.int64))


def test_they_are_the_numbers_of_sampling() -> None:
    """Words and uniform numbers bit for bit, for indices of any shape; normal ones as two libraries have the cosine."""
    for key, word in zip(AS_TENSORS, KEYS, strict=True):
        found = dice.subkey(key, torch.arange(6).view(2, 3))
        assert torch.equal(
            found.view(-1), torch.from_numpy(sampling.subkeys(word[None], np.arange(6))[0].view(np.int64))
        )
        drawn = dice.uniform(key, 2, 50, dtype=torch.float64)
        assert torch.equal(drawn.view(-1), torch.from_numpy(sampling.uniform(word[None], 100)[0]))
        bell = dice.normal(key, 2, 50, dtype=torch.float64).view(-1)
        torch.testing.assert_close(bell, torch.from_numpy(sampling.normal(word[None], 100)[0]), rtol=1e-12, atol=1e-12)


def test_mapped_keys_draw_what_each_draws_alone() -> None:
    mapped = torch.vmap(lambda key: dice.uniform(key, 4))(AS_TENSORS)
    assert torch.equal(mapped, torch.stack([dice.uniform(key, 4) for key in AS_TENSORS]))
    slope = torch.vmap(lambda key, w: grad(lambda w: (w * dice.uniform(key, 4)).sum())(w))(AS_TENSORS, torch.ones(5))
    torch.testing.assert_close(slope, mapped.sum(1))
