# # From learn2learn
#
# The same outer step of MAML, by learn2learn and here: the losses and gradients are equal. It needs learn2learn.

import learn2learn as l2l
import torch
from torch import nn
from torch.nn import functional as F

from lightning_meta.algorithms import MAML
from lightning_meta.backbones import MLP
from lightning_meta.core import Batch

torch.manual_seed(0)
network = MLP(in_features=4, hidden=[16], activation="tanh")
model = MAML(network, n_way=3, inner_lr=0.5, inner_steps=2)
support = Batch(torch.randn(6, 4), torch.tensor([0, 0, 1, 1, 2, 2]))
query = Batch(torch.randn(9, 4), torch.arange(3).repeat(3))

# **learn2learn** clones a module, which `adapt` changes, one step at a time:

maml = l2l.algorithms.MAML(nn.Sequential(network, model.learner[1]), lr=0.5, first_order=False)
learner = maml.clone()
for _ in range(2):
    learner.adapt(F.cross_entropy(learner(support.x), support.y))
theirs = F.cross_entropy(learner(query.x), query.y)
theirs.backward()
their_gradient = network.layers[0].weight.grad.clone()

# **Here** `adapt` returns what it has learned and changes nothing. The same two calls are what a training step maps
# over a whole meta-batch; first order is `first_order=True`, Meta-SGD is `MetaSGD`, and so on.

network.zero_grad()
phi = model.adapt(support)
ours = model.query_loss(phi, query).loss
ours.backward()
print(f"losses {theirs:.6f} and {ours:.6f}")
torch.testing.assert_close(network.layers[0].weight.grad, their_gradient)

# | learn2learn | here |
# |---|---|
# | `maml.clone()`, `learner.adapt(loss)` | `phi = module.adapt(support)` |
# | `learner(x)` | `module.predict(phi, x)`, probabilities, after `module.eval()` |
# | a loop over tasks, losses summed | a meta-batch: `module.play(episodes)`, or simply the Trainer |
# | `MetaDataset`, `TaskDataset`, transforms | a datamodule: `Omniglot(n_way=5, k_shot=1, n_query=15)` |
# | `nway`, `kshot` | `n_way`, `k_shot`, `n_query` |
# | `optimizer.step()` by hand | `Trainer(...).fit(module, datamodule=data)` |
# | `l2l.vision.models` | [`Learn2LearnBackbone`](../learn2learn.md) |
# | `l2l.vision.benchmarks` | `--data Learn2LearnImages` |
