# # Write an algorithm
#
# An algorithm is two functions of ONE task: `adapt` learns from a support set, `query_loss` says how good that is. They
# are applied to all tasks of a meta-batch, at once where torch can do that, and training, metrics, checkpoints and
# devices come with the base class. Here is one from scratch: the nearest class mean, as in Prototypical Networks, but
# with a learned weight for each feature.

import pytorch_lightning as pl
import torch
from torch.nn import functional as F

from lightning_meta.backbones import Conv4
from lightning_meta.core import Batch, TaskOutput
from lightning_meta.datamodules import Glyphs
from lightning_meta.modules import EpisodicModule


class WeightedMeans(EpisodicModule):
    """Logits are negative distances to class means, each feature weighed by a learned number."""

    def __init__(self, backbone, n_way, **kwargs):
        super().__init__(**kwargs)
        self.backbone, self.n_way = backbone, n_way
        self.log_weights = torch.nn.Parameter(torch.zeros(backbone.out_features))

    def adapt(self, support):
        features = self.backbone(support.x)  # (S, D): S support examples
        belongs = F.one_hot(support.y, self.n_way).to(features)  # (S, N): N classes
        return belongs.T @ features / belongs.sum(0)[:, None]  # (N, D)

    def query_loss(self, means, query):
        differences = self.backbone(query.x)[:, None] - means  # (Q, N, D): Q queries
        logits = -(self.log_weights.exp() * differences.square()).sum(-1)
        return TaskOutput(F.cross_entropy(logits, query.y), logits)


# Two rules keep such code right. Hooks are **pure**: they read `self` and return, and assign nothing. And nothing in
# them depends on the *values* of tensors: no `if` on a loss, no `.item()`. So the same two hooks can be played for all
# tasks at once (`torch.vmap`), or one by one. Both must agree, which is easily seen:

data = Glyphs(n_way=5, k_shot=2, n_query=5, meta_batch_size=4, steps_per_epoch=5, val_episodes=10, test_episodes=40)
data.prepare_data()
data.setup("fit")
tasks = next(iter(data.dataset("train").batches([range(4)])))  # four episodes

pl.seed_everything(0)
module = WeightedMeans(Conv4(norm="transductive"), n_way=5)
losses = {}
for module.task_mode in ("vmap", "loop"):
    losses[module.task_mode] = module.play(tasks).loss
torch.testing.assert_close(losses["vmap"], losses["loop"], rtol=1e-4, atol=1e-4)

# It trains like any other. What it adapts for one task can be looked at too: it is what `adapt` returns.

module.task_mode = "auto"
trainer = pl.Trainer(max_steps=10, inference_mode=False, accelerator="cpu", logger=False, enable_checkpointing=False)
trainer.fit(module, datamodule=data)
(scores,) = trainer.test(module, datamodule=data)
means = module.eval().adapt(Batch(tasks.support.x[0], tasks.support.y[0]))
print(f"accuracy {100 * scores['test/acc']:.1f} %, class means {tuple(means.shape)}")

# ## On the command line
#
# A class in any module of yours works at once, with its arguments as options: `--model my_package.WeightedMeans
# --model.backbone Conv4`. To make it part of this repository it needs four files and no change in others: the class in
# `lightning_meta/algorithms/<family>/`, its settings in `configs/model/`, an experiment in
# `configs/experiment/<family>/` and its tests. [Contributing](../contributing.md) shows them.
#
# An algorithm whose network does not adapt is better written as an `EmbeddingModule`, as [Prototypical
# Networks](../algorithms/compare.md) are: support and query sets of all tasks then go through the network in one pass.
