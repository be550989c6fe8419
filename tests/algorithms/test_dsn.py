"""Deep Subspace Networks (dsn) against singular vectors in NumPy."""

import numpy as np
import pytest
import torch

from lightning_meta.algorithms import DSN, ProtoNet
from lightning_meta.backbones import MLP
from lightning_meta.core import Batch, Episode
from tests.conftest import SIZE, Make, conv4, meta_gradient, random_episodes

CASES: dict[str, Make] = {"dsn": lambda: DSN(conv4(halvings=3))}


def dsn(**overrides) -> DSN:
    torch.manual_seed(0)
    return DSN(MLP(SIZE**2, [20]), **overrides).double()


def basis(features: torch.Tensor) -> np.ndarray:
    """An orthonormal basis `(D, K - 1)` of the differences of K features from their mean."""
    features = features.detach().numpy()
    return np.linalg.svd((features - features.mean(0)).T)[0][:, : len(features) - 1]


@pytest.mark.parametrize("mode", ["vmap", "loop"])
@pytest.mark.parametrize("k_shot", [2, 4])
def test_distances_and_overlap_are_those_of_singular_vectors(mode: str, k_shot: int) -> None:
    module, tasks = dsn(overlap_weight=0.1, task_mode=mode), random_episodes(k_shot=k_shot)
    out, plain = module.train().play(tasks), module.eval().play(tasks)
    for t in range(3):
        support, query = (module.backbone(batch.x[t]) for batch in tasks)
        classes = [support[tasks.support.y[t] == c] for c in range(3)]
        bases = [basis(examples) for examples in classes]
        for c, examples in enumerate(classes):
            difference = (query - examples.mean(0)).detach().numpy()
            rest = difference - difference @ bases[c] @ bases[c].T
            np.testing.assert_allclose(out.preds[t, :, c].detach(), -(rest**2).sum(1), rtol=1e-6, atol=1e-9)
        assert (out.preds[t, :, 3:] == -torch.inf).all()
        overlap = sum(((bases[i].T @ bases[j]) ** 2).sum() for i in range(3) for j in range(3) if i != j)
        assert out.logs["overlap"][t].item() == pytest.approx(overlap, rel=1e-6)
        assert (out.loss[t] - plain.loss[t]).item() == pytest.approx(0.1 * overlap, rel=1e-6)


def test_in_one_shot_episodes_it_is_a_prototypical_network() -> None:
    module, tasks = dsn(), random_episodes(k_shot=1)
    protonet = ProtoNet(module.backbone)
    torch.testing.assert_close(module.play(tasks).preds, protonet.play(tasks).preds, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(meta_gradient(module, tasks), meta_gradient(protonet, tasks), rtol=1e-7, atol=1e-10)


def test_equal_examples_span_less_and_do_no_harm() -> None:
    """The subspace of three examples, two of them equal, is the line through both places; gradients are finite."""
    module, tasks = dsn(overlap_weight=0), random_episodes(n_way=2, k_shot=3)
    x, y = tasks.support.x.clone(), torch.arange(2).repeat_interleave(3).expand(3, -1)
    x[:, 1] = x[:, 0]
    tasks = Episode(Batch(x, y), tasks.query)
    preds = module.play(tasks).preds
    for t in range(3):
        support, query = (module.backbone(batch.x[t]) for batch in tasks)
        line = (support[2] - support[0]) / (support[2] - support[0]).norm()
        difference = query - support[0]
        rest = difference - (difference @ line)[:, None] * line
        torch.testing.assert_close(preds[t, :, 0], -rest.square().sum(1), rtol=1e-5, atol=1e-7)
    assert all(gradient.isfinite().all() for gradient in meta_gradient(module, tasks).values())
