"""Meta-Weight-Net: its weights, what it learns, and what is logged."""

import pytest
import pytorch_lightning as pl
import torch
from torch.nn import functional as F

from lightning_meta.algorithms import MetaWeightNet
from lightning_meta.algorithms.bilevel.meta_weight_net import chance_of_order
from lightning_meta.core import Batch
from tests.algorithms.bilevel_cases import held_out, network

BILEVEL = {
    "meta-weight-net": lambda **kw: MetaWeightNet(network(), 4, hidden=5, **kw),
    "meta-weight-net-plain": lambda **kw: MetaWeightNet(network(), 4, hidden=5, normalise=False, **kw),
}


@pytest.mark.parametrize("normalise", [True, False])
def test_the_inner_loss_is_the_weighted_mean(normalise: bool) -> None:
    module = MetaWeightNet(network(), 4, hidden=5, normalise=normalise).double()
    weights = {name: p.detach() for name, p in module.network.named_parameters()}
    x, y = torch.rand(6, 256).double(), torch.tensor([0, 1, 2, 3, 0, 1])
    losses = F.cross_entropy(module.network(x), y, reduction="none")
    counts = torch.stack([module.weigher(loss.detach().view(1, 1)).squeeze() for loss in losses])
    expected = (counts * losses).sum() / (counts.sum() if normalise else 6)
    torch.testing.assert_close(module.inner_loss(weights, Batch(x, y)), expected)


def test_the_chance_of_order_is_the_area_under_the_curve() -> None:
    """Enumerated over all pairs; ties count half."""
    counts, right = torch.tensor([0.9, 0.5, 0.5, 0.1, 0.7]), torch.tensor([True, True, False, False, True])
    pairs = [
        1.0 if counts[i] > counts[j] else 0.5 if counts[i] == counts[j] else 0.0
        for i in range(5) for j in range(5) if right[i] and not right[j]
    ]  # fmt: skip
    assert chance_of_order(counts, right).item() == pytest.approx(sum(pairs) / len(pairs))
    assert chance_of_order(counts, torch.ones(5, dtype=torch.bool)) == 0.5


def test_examples_with_wrong_labels_come_to_count_less() -> None:
    """What the weigher learns of 40 % wrong labels orders right and wrong ones, and is logged."""
    torch.manual_seed(0)
    data = held_out(flip=0.4, support_per_class=6, held_out_per_class=2, val_per_class=2, test_per_class=2,
                    batch_size=24, test_episodes=2)  # fmt: skip
    module = MetaWeightNet(network(), 4, hidden=20, optimizer=lambda params: torch.optim.Adam(params, lr=0.01))
    trainer = pl.Trainer(
        accelerator="cpu", max_steps=150, inference_mode=False, logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, num_sanity_val_steps=0, limit_val_batches=0,
        log_every_n_steps=1,
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    logged = trainer.logged_metrics
    assert {"train/weight", "train/weight_auc"} <= logged.keys()
    assert logged["train/weight_auc"] > 0.8
