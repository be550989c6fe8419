# # Your own network, and pre-trained ones
#
# Any `torch.nn.Module` can be the backbone of any algorithm: one of your own, of torchvision, of timm.

import pytorch_lightning as pl
import torch
from torch import nn

from lightning_meta.algorithms import MAML, PMF, Baseline, ProtoNet
from lightning_meta.backbones import LoRA, Wrapped
from lightning_meta.datamodules import Glyphs


class Net(nn.Module):
    def __init__(self, width=16):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, width, 3, stride=2), nn.BatchNorm2d(width)
        self.out = nn.Linear(width * 13 * 13, 32)

    def forward(self, x):  # (B, 1, 28, 28) -> (B, 32): a row of features for each image
        return self.out(self.norm(self.conv(x)).relu().flatten(1))


def trainer():
    return pl.Trainer(max_steps=5, inference_mode=False, accelerator="cpu", logger=False, enable_checkpointing=False)


data = Glyphs(n_way=5, k_shot=1, n_query=5, meta_batch_size=4, steps_per_epoch=5, val_episodes=10, test_episodes=20)
network = Net()
maml = MAML(network, n_way=5, inner_lr=0.1)
trainer().fit(maml, datamodule=data)

# The algorithm has a copy of it, `Wrapped`: your own object stays as it was. The features are what `forward` returns;
# MAML adds its linear head to them. A network of torchvision loses its classifier, and a note says so.
#
# **What was changed.** Some layers of torch have wrong or no second derivatives in an inner loop. They are converted,
# or repaired where they run, so that the meta-gradient is that of plain autograd (tested in float64 for residual
# networks, MobileNet, ConvNeXt, vision transformers, LSTMs, GRUs and others). Batch normalisation gets a protocol,
# which is part of every result: `transductive` here, by the statistics of the set at hand. Say which you want:

wrapped = Wrapped(network, in_shape=(1, 28, 28), norm="inductive")
trainer().fit(MAML(wrapped, n_way=5, inner_lr=0.1), datamodule=data)

# `in_shape` is needed only where the network does not tell: where its features grow with the image. `cut="out"` would
# leave a layer out.
#
# ## On the command line
#
# A class, or a function with `-> torch.nn.Module`, is named by its path. What follows `--model.backbone.` are its
# arguments, and `norm`, `in_shape` and `cut` of the wrapping:
#
# ```bash
# python -m lightning_meta fit --config maml_glyphs_5w1s --model.backbone torchvision.models.mobilenet_v3_small \
#   --model.backbone.norm inductive
# python -m lightning_meta fit --config protonet_glyphs_5w1s --model.backbone torchvision.models.resnet18 \
#   --model.backbone.weights DEFAULT
# ```
#
# `DEFAULT` are torchvision's ImageNet weights, which it downloads. For a class `Net` in a file `my_networks.py` of the
# folder you are in: `--model.backbone my_networks.Net --model.backbone.width 8`. For timm: `--model.backbone Timm
# --model.backbone.name resnet10t --model.backbone.pretrained true`, after `pip install -r requirements-networks.txt`.
# Glyphs are grey: for a network that takes three channels they are repeated.
#
# ## Pre-train, then meta-train
#
# `pretrained` is where a backbone starts: a file of weights, or a run of this project. All its tensors must be there,
# in their shapes; if not, the error says how many are, and which are not.

baseline = Baseline(Wrapped(Net(), norm="running"))
pretraining = trainer()
pretraining.fit(baseline, datamodule=data)
pretraining.save_checkpoint("pretraining.ckpt")

protonet = ProtoNet(Wrapped(Net(), norm="running"), pretrained="pretraining.ckpt", freeze=True)
(scores,) = trainer().test(protonet, datamodule=data)

# `freeze=True` trains no weight of it. In MAML and its family, `freeze` is the name of a layer: those up to it are
# moved neither by the inner loop nor by the outer update; `backbone` is all of them.

frozen = MAML(Wrapped(Net()), n_way=5, inner_lr=0.1, pretrained="pretraining.ckpt", freeze="norm")
trainer().fit(frozen, datamodule=data)
print(torch.equal(frozen.backbone.network.conv.weight, baseline.backbone.network.conv.weight))

# Between to freeze and to train is to train slowly: with `lr_multipliers={"backbone": 0.1}` the outer update moves the
# parameters whose names begin with `backbone` at a tenth of the optimizer's rate.
#
# On the command line a run is named by its experiment:
#
# ```bash
# python -m lightning_meta fit --config feat_cifarfs_5w1s --model.pretrained baseline_cifarfs_5w1s \
#   --model.lr_multipliers.backbone 0.1
# ```
#
# ## A large network, of which little is moved
#
# `LoRA` freezes a network and adds to each of its large weights a product of two thin matrices. They, and the head, are
# all that MAML then moves and trains:

low_rank = MAML(LoRA(Net(), rank=2), n_way=5, inner_lr=0.1, pretrained="pretraining.ckpt")
trainer().fit(low_rank, datamodule=data)
print(sum(p.numel() for p in low_rank.theta().values()), "of", sum(p.numel() for p in low_rank.parameters()))

# ```bash
# python -m lightning_meta fit --config maml_glyphs_5w1s --model.backbone LoRA --model.backbone.rank 8 \
#   --model.backbone.network torchvision.models.resnet18 --model.backbone.network.weights DEFAULT
# ```
#
# ## Fine-tune in every task
#
# `PMF` is ProtoNet in training, on a backbone that was pre-trained; in evaluation it fine-tunes the whole backbone to
# the support set of each task, by distorted copies of its images: pre-train, meta-train, fine-tune.

pmf = PMF(Wrapped(Net(), norm="running"), pretrained="pretraining.ckpt", finetune_steps=5)
trainer().fit(pmf, datamodule=data)
trainer().test(pmf, datamodule=data)
