# # Train MAML
#
# This page is a script, `docs/tutorials/train_maml.py`: run it, change it. It trains for 10 steps of 4 tasks, which
# take seconds and teach little; 400 steps of 16 tasks reach about 89 %.
#
# MAML looks for initial weights from which one or a few steps of gradient descent on a handful of images learn a new
# task. A task here is to tell five letters apart after seeing one example of each: 5-way 1-shot.

import pytorch_lightning as pl

from lightning_meta.algorithms import MAML
from lightning_meta.backbones import Conv4
from lightning_meta.datamodules import Glyphs

# **Data.** Glyphs are letters of 14 scripts, drawn from fonts: nothing is downloaded. An *episode* is one task: a
# support set to adapt on, and a query set to be judged by. Scripts of the test are seen in no training episode.

data = Glyphs(n_way=5, k_shot=1, n_query=5, meta_batch_size=4, steps_per_epoch=5, val_episodes=10, test_episodes=40)

# **Model.** The network is any `torch.nn.Module` that makes features; the head with an output for each class is MAML's
# own. `inner_steps` are taken in training, `eval_inner_steps` in validation and test.

pl.seed_everything(0)
model = MAML(Conv4(downsample="stride"), n_way=5, inner_lr=0.4, inner_steps=1, eval_inner_steps=3)

# **Training** is Lightning's, so all that a `Trainer` can do is there: devices, precision, loggers, callbacks. One
# setting is not its default: `inference_mode=False`, because adaptation needs gradients in evaluation too.

trainer = pl.Trainer(max_steps=10, inference_mode=False, accelerator="cpu", logger=False, enable_checkpointing=False)
trainer.fit(model, datamodule=data)

# **Test.** Its episodes are the same in every run, whatever the machine, so two methods can be compared episode by
# episode. The interval is over episodes.

(scores,) = trainer.test(model, datamodule=data)
print(f"accuracy {100 * scores['test/acc']:.1f} ± {100 * scores['test/acc_ci95']:.1f} %")

# ## The same by one command
#
# A file in `configs/experiment/` says all of this, and a run then keeps its settings, checkpoints, pictures and the
# result of every test episode in a folder of its own.
#
# ```bash
# python -m lightning_meta fit --config maml_glyphs_5w1s
# python -m lightning_meta fit --config maml_glyphs_5w1s --model.inner_lr 0.2 --data.k_shot 5
# python -m lightning_meta test --config maml_glyphs_5w1s --ckpt_path best --model.eval_inner_steps 10
# ```
#
# [Use](../use.md) has all commands; [Use a trained meta-learner](use_a_trained_one.md) goes on from here.
