# # Your own images, texts, tables and functions
#
# ## Images
#
# A folder with a folder of images for each class is a data set. To have one, this script draws twelve classes of
# squares; put the path of your own folder in its place.

from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch
from PIL import Image

from lightning_meta.algorithms import MAML, CommonMean, ProtoNet
from lightning_meta.backbones import MLP, Conv4, EmbeddingAverage
from lightning_meta.core import Batch, Episode
from lightning_meta.core.sampling import uniform
from lightning_meta.datamodules import ClassSplit, EpisodicDataModule, ImageFolder, Tables, TextClasses
from lightning_meta.datamodules.episodes import TaskSource
from lightning_meta.metrics import EpisodicMSE

generator = np.random.default_rng(0)
for number in range(12):
    folder = Path("my_images", f"class_{number}")
    folder.mkdir(parents=True, exist_ok=True)
    for example in range(8):
        pixels = generator.integers(0, 100, (40, 40, 3), dtype=np.uint8)
        pixels[5 + number : 15 + number, 8:30, number % 3] = 255
        Image.fromarray(pixels).save(folder / f"{example}.png")

# Classes are shared out by fractions: those of the test are not seen in training. Lists of classes, or folders `train`,
# `val` and `test`, do the same. Small images are made once, and kept in one file.

SIZES = {"meta_batch_size": 4, "steps_per_epoch": 5, "val_episodes": 10, "test_episodes": 20}
TRAINER = {"max_steps": 10, "inference_mode": False, "accelerator": "cpu"}
QUIET = {"logger": False, "enable_checkpointing": False}

images = ImageFolder(
    root="my_images",
    image_size=32,
    split=ClassSplit(fractions=[0.5, 0.25, 0.25]),
    n_way=3,
    k_shot=1,
    n_query=5,
    **SIZES,
)
trainer = pl.Trainer(**TRAINER, **QUIET)
protonet = ProtoNet(Conv4(in_channels=3, image_size=32, norm="running"))
trainer.fit(protonet, datamodule=images)
(of_images,) = trainer.test(protonet, datamodule=images)

# As a command, on any experiment: `--data image_folder --data.root my_images`, and the size of the images for the
# network:
#
# ```bash
# python -m lightning_meta fit --config protonet_glyphs_5w1s --data image_folder --data.root my_images \
#   --data.image_size 32 --data.channels 3 --model.backbone.in_channels 3 --model.backbone.image_size 32
# ```
#
# ## Texts
#
# A table with a column of texts and one of classes, as CSV, TSV or JSON lines. The vocabulary is that of the training
# classes alone; `unknown_buckets` keeps words apart that were not among them.

WORDS = ["red", "green", "blue", "round", "square", "heavy", "light", "loud", "quiet", "sweet", "sour", "cold"]
rows = [f"{word},it is {word} and {other} today" for word in WORDS for other in ("near", "far", "old", "new", "big")]
Path("my_texts.csv").write_text("\n".join(["label,text", *rows]))

texts = TextClasses(
    file="my_texts.csv",
    split=ClassSplit(fractions=[0.5, 0.25, 0.25]),
    length=8,
    unknown_buckets=200,
    n_way=3,
    k_shot=1,
    n_query=2,
    **SIZES,
)
trainer = pl.Trainer(**TRAINER, **QUIET)
protonet = ProtoNet(EmbeddingAverage(vocabulary=texts.vocabulary, length=8, embedding_dim=16), distance="cosine")
trainer.fit(protonet, datamodule=texts)
(of_texts,) = trainer.test(protonet, datamodule=texts)

# ```bash
# python -m lightning_meta fit --config protonet_clinc150_5w1s --data text_classes --data.file my_texts.csv
# ```
#
# ## Tables
#
# The rows of a task are its examples; a column names the task (or, without one, each file of a folder is a task), and
# a column is to be predicted: numbers, or with `n_way` 2 and more classes. Other columns are inputs: numbers are
# scaled, words are categories, gaps are allowed. What is learned of them comes from the training tasks.

machines = ["machine,speed,material,wear"]
for machine in range(20):
    for _ in range(12):
        speed, material = generator.uniform(1, 5), generator.choice(["steel", "wood"])
        wear = (1 + machine / 20) * speed + (3 if material == "steel" else 0) + generator.normal(0, 0.1)
        machines.append(f"m{machine},{speed:.2f},{material},{wear:.2f}")
Path("my_table.csv").write_text("\n".join(machines))

table = Tables("my_table.csv", target="wear", task="machine", k_shot=4, n_query=8, **SIZES)
linear = MLP(in_features=3, hidden=[])  # speed, and a feature for each material
common_mean = CommonMean(linear)
trainer = pl.Trainer(**TRAINER, **QUIET)
trainer.fit(common_mean, datamodule=table)
(of_tables,) = trainer.test(common_mean, datamodule=table)

# ```bash
# python -m lightning_meta fit --config common_mean_school_10s --data tables --data.path my_table.csv \
#   --data.target wear --data.task machine --data.k_shot 4 --data.n_query 8 --model.backbone.in_features 3
# ```
#
# ## Functions, anything that can be drawn
#
# Where tasks are made and not stored, write how one is drawn. `keys` has a row of random numbers for each episode, and
# all chance must come from them: then episode 7 is the same on every machine, in every run. Here a task is a straight
# line.


class Lines(TaskSource):
    def sample(self, keys, shape):
        """Support and query points of a line for each key, with a leading axis of tasks."""
        numbers = torch.from_numpy(uniform(keys, 2 + shape.k_shot + shape.n_query, -1.0, 1.0)).float()
        slope, offset, x = numbers[:, :1], numbers[:, 1:2], numbers[:, 2:]
        x, y = x[..., None], (slope * x + offset)[..., None]
        k = shape.k_shot
        return Episode(support=Batch(x[:, :k], y[:, :k]), query=Batch(x[:, k:], y[:, k:]))

    def to(self, device):
        return self


class LineData(EpisodicDataModule):
    def load_source(self, split):
        return Lines()


lines = LineData(n_way=1, k_shot=5, n_query=10, **SIZES)
maml = MAML(MLP(hidden=[20]), n_way=1, inner_lr=0.05, loss_fn=torch.nn.functional.mse_loss, metric=EpisodicMSE())
trainer = pl.Trainer(**TRAINER, **QUIET)
trainer.fit(maml, datamodule=lines)
(of_lines,) = trainer.test(maml, datamodule=lines)
print(f"images {of_images['test/acc']:.2f}, texts {of_texts['test/acc']:.2f}")
print(f"tables {of_tables['test/mse']:.3f} MSE, lines {of_lines['test/mse']:.3f} MSE")
