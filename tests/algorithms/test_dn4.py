"""DN4 (dn4) against a loop over queries, classes and descriptors in NumPy."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from lightning_meta.algorithms import DN4
from lightning_meta.backbones import MLP
from lightning_meta.core import Episode
from lightning_meta.core.prototypes import cosine_similarities
from lightning_meta.errors import ConfigError
from tests.conftest import SIZE, Make, conv4, random_episodes

# Half of a class's descriptors: of images of noise, rounding would change which few are the nearest.
CASES: dict[str, Make] = {"dn4": lambda: DN4(conv4(halvings=3), neighbours=4)}


@pytest.mark.parametrize("mode", ["vmap", "loop"])
@pytest.mark.parametrize(("halvings", "neighbours"), [(2, 3), (2, 20), (3, 7), (4, 5)])
@torch.no_grad()
def test_logits_and_loss_equal_a_loop_over_descriptors(mode: str, halvings: int, neighbours: int) -> None:
    """Maps of 4x4, 2x2 and 1x1; more neighbours than an image has descriptors, and than a class has."""
    module, tasks = DN4(conv4(halvings=halvings), neighbours, task_mode=mode).double(), random_episodes(k_shot=3)
    out = module.play(tasks)
    for t in range(3):
        # (images, places, channels)
        support, query = (module.backbone(b.x[t]).unflatten(1, (6, -1)).numpy().transpose(0, 2, 1) for b in tasks)
        expected = np.zeros((len(query), 3))
        for q, image in enumerate(query):
            for c in range(3):
                pool = np.concatenate([x for x, y in zip(support, tasks.support.y[t], strict=True) if y == c])
                for descriptor in image:
                    lengths = np.linalg.norm(pool, axis=1) * np.linalg.norm(descriptor)
                    cosines = np.divide(pool @ descriptor, lengths, out=np.zeros(len(pool)), where=lengths > 0)
                    expected[q, c] += np.sort(cosines)[::-1][:neighbours].sum()
        logits = torch.from_numpy(expected)
        torch.testing.assert_close(out.preds[t, :, :3], logits, rtol=1e-9, atol=1e-10)
        assert (out.preds[t, :, 3:] == -torch.inf).all()
        torch.testing.assert_close(out.loss[t], F.cross_entropy(logits, tasks.query.y[t]), rtol=1e-9, atol=1e-10)


@torch.no_grad()
def test_a_backbone_without_maps_gives_one_descriptor_for_each_image(episodes: Episode) -> None:
    """With one neighbour it is then the nearest neighbour by cosine."""
    module = DN4(MLP(SIZE**2, [7]), neighbours=1).double()
    preds = module.play(episodes).preds
    for t in range(3):
        support, query = (module.backbone(batch.x[t]) for batch in episodes)
        nearest = cosine_similarities(query, support).argmax(1)
        assert torch.equal(preds[t].argmax(1), episodes.support.y[t][nearest])


def test_plays_any_way_with_the_same_weights() -> None:
    module = DN4(conv4(halvings=2)).double()
    for n_way in (2, 7):
        assert module.play(random_episodes(n_way=n_way, k_shot=1)).preds.shape == (3, 2 * n_way, n_way)


def test_no_neighbours_are_refused() -> None:
    with pytest.raises(ConfigError, match="neighbours=0"):
        DN4(conv4(), neighbours=0)
