"""Our heads against those of easyfsl 1.5 (Sicara), on the same features: needs `pip install --no-deps easyfsl`.

Where theirs differ from the papers or from ours they are made equal here, which says what the differences are.
"""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_meta.algorithms import BDCSPN, PTMAP, TIM, LaplacianShot, SimpleShot, TransductiveFinetuning
from lightning_meta.algorithms.transductive.bd_cspn import rectified
from lightning_meta.algorithms.transductive.laplacian_shot import affinities
from lightning_meta.core import Batch
from lightning_meta.modules import EpisodicModule
from tests.conftest import feature_episodes

methods = pytest.importorskip("easyfsl.methods", reason="easyfsl is not installed")
TASKS = feature_episodes(n_way=5, k_shot=3, n_query=10, width=16)


def theirs(method: nn.Module, t: int, prepare=lambda x: x) -> Tensor:
    """Scores of the queries of task `t`."""
    method.process_support_set(prepare(TASKS.support.x[t]), TASKS.support.y[t])
    return method(prepare(TASKS.query.x[t]))


def ours(module: EpisodicModule) -> Tensor:
    """Scores `(T, Q, 5)`."""
    return module.double().eval().play(TASKS).preds[..., :5]


def test_simple_shot() -> None:
    """Theirs compares by cosines with class means, ours (the paper) by distances: the same of means at length one."""
    found = ours(SimpleShot(nn.Flatten(), features="l2n"))
    for t in range(3):
        method = methods.SimpleShot(feature_normalization=2.0)
        cosines = theirs(method, t)
        lengths = method.prototypes.norm(dim=1)
        torch.testing.assert_close(found[t], 2 * cosines * lengths - 1 - lengths.square(), rtol=1e-9, atol=1e-9)


def test_bd_cspn() -> None:
    """In theirs all queries join, and weights are the exponentials of cosines, not of ten times as much."""
    module = BDCSPN(nn.Flatten(), features="l2n", pseudo=None, sharpness=1.0, scale=1.0)
    found = ours(module)
    for t in range(3):
        expected = theirs(methods.BDCSPN(feature_normalization=2.0), t)
        torch.testing.assert_close(found[t], expected, rtol=1e-9, atol=1e-9)


def test_laplacian_shot() -> None:
    """Their affinity is one-sided; and they stop early, but not within three steps."""

    class Theirs(methods.LaplacianShot):
        def compute_pairwise_affinities(self, features: Tensor) -> Tensor:
            return affinities(features, 2)

        def rectify_prototypes(self, query_features: Tensor) -> None:
            support = Batch(self.support_features, self.support_labels)
            self.prototypes = rectified(support, query_features, None, 10.0)[0][:5]

    found = ours(LaplacianShot(nn.Flatten(), features="l2n", steps=3)).exp()
    for t in range(3):
        expected = theirs(Theirs(feature_normalization=2.0, inference_steps=3), t)
        torch.testing.assert_close(found[t], expected, rtol=1e-9, atol=1e-9)


def minus_half_squares(method: nn.Module, samples: Tensor) -> Tensor:
    return -torch.cdist(samples, method.prototypes).square() / 2


def test_tim(monkeypatch: pytest.MonkeyPatch) -> None:
    """Theirs has cosines in place of the paper's distances, and other weights, rates and numbers of steps."""
    monkeypatch.setattr(methods.TIM, "cosine_distance_to_prototypes", minus_half_squares)
    settings = dict(steps=50, inner_lr=0.003, sharpness=10.0, support_weight=1.0)
    found = ours(TIM(nn.Flatten(), **settings)).softmax(2)
    for t in range(3):
        method = methods.TIM(fine_tuning_steps=50, fine_tuning_lr=0.003, use_softmax=True, feature_normalization=2.0)
        torch.testing.assert_close(found[t], theirs(method, t), rtol=1e-5, atol=1e-6)


def test_transductive_finetuning(monkeypatch: pytest.MonkeyPatch) -> None:
    """Theirs tunes class means that are compared by distances; ours (the paper) weights that begin at length one, by
    products, and biases, which are here one more column of theirs.
    """
    monkeypatch.setattr(
        methods.TransductiveFinetuning,
        "l2_distance_to_prototypes",
        lambda method, samples: F.pad(samples, (0, 1), value=1.0) @ method.prototypes.T,
    )
    found = ours(TransductiveFinetuning(nn.Flatten(), steps=25, inner_lr=0.003, scale=4.0)).softmax(2)
    for t in range(3):
        method = methods.TransductiveFinetuning(
            fine_tuning_steps=25, fine_tuning_lr=0.003, temperature=4.0, use_softmax=True, feature_normalization=2.0
        )
        method.process_support_set(TASKS.support.x[t], TASKS.support.y[t])
        method.prototypes = F.pad(F.normalize(method.prototypes), (0, 1))
        torch.testing.assert_close(found[t], method(TASKS.query.x[t]), rtol=1e-5, atol=1e-6)


def test_pt_map(monkeypatch: pytest.MonkeyPatch) -> None:
    """Theirs takes powers alone, ours (the authors' code) centres them and gives them a length of one."""
    monkeypatch.setattr("easyfsl.methods.pt_map.power_transform", lambda features, power: features)
    module = PTMAP(nn.Flatten(), steps=10, transport_steps=500)
    found = ours(module).exp()
    for t in range(3):
        expected = theirs(methods.PTMAP(), t, module.made_normal)
        torch.testing.assert_close(found[t], expected, rtol=1e-4, atol=1e-5)
