# # Use a trained meta-learner
#
# A meta-learner is trained once; a new task is then a matter of a few examples and milliseconds, in your own program.
# Here one is trained for a moment to have a checkpoint. Yours lies in `runs/<experiment>/version_<n>/checkpoints/`.

import pytorch_lightning as pl
import torch

from lightning_meta.algorithms import ProtoNet
from lightning_meta.backbones import Conv4
from lightning_meta.core import Batch
from lightning_meta.datamodules import Glyphs

data = Glyphs(n_way=5, k_shot=1, n_query=5, meta_batch_size=4, steps_per_epoch=5, val_episodes=10)
trainer = pl.Trainer(max_steps=5, inference_mode=False, accelerator="cpu", logger=False, enable_checkpointing=False)
trainer.fit(ProtoNet(Conv4(norm="running")), datamodule=data)
trainer.save_checkpoint("protonet.ckpt")

# **Load it.** The checkpoint of a run from the command line knows its network: `load_from_checkpoint(path)` is enough.
# One from Python is told again what it was given. `eval()` matters: in training mode adaptation may differ.

module = ProtoNet.load_from_checkpoint("protonet.ckpt", map_location="cpu", backbone=Conv4(norm="running")).eval()

# **Adapt** to a support set: images like those of training (here 28 x 28 pixels, ink 1 on 0) and labels 0, 1, 2, ...
# The way and the shot need not be those of training; of MAML and others with an output for each class, the way must.

images, labels = torch.rand(6, 1, 28, 28), torch.tensor([0, 0, 1, 1, 2, 2])
adapted = module.adapt(Batch(images, labels))

# **Predict**, as often as you like. Column c is for label c; further columns are 0. What was adapted is a plain bundle
# of tensors: keep it, move it, save it.

probabilities = module.predict(adapted, torch.rand(4, 1, 28, 28))
print(probabilities.argmax(1), probabilities[:, :3])

# Another task has its own `adapted`, of the same module; nothing in the module changes. Many tasks at once are adapted
# by `torch.vmap(module.adapt)`, or played as in training by `module.play`.
#
# ## Without writing a program
#
# ```bash
# python -m lightning_meta predict maml_glyphs_5w1s --support my/support --query my/query
# ```
#
# It takes folders of images, `my/support/<class>/*.png` and `my/query/*.png`, and writes a table and a picture of its
# predictions; see [Use](../use.md#use-a-trained-meta-learner).
