"""Data sets of learn2learn as sources of episodes, from files in the formats that learn2learn reads."""

import pickle
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from lightning_meta.core.episode import Split
from lightning_meta.datamodules import Learn2LearnImages
from lightning_meta.datamodules.images.learn2learn_images import MODES
from lightning_meta.errors import DataError
from tests.conftest import needs_learn2learn

pytestmark = needs_learn2learn
SHAPE = {"n_way": 2, "k_shot": 1, "n_query": 2, "meta_batch_size": 2}
GREY = {"train": 40, "val": 120, "test": 200}  # of the first class of each split; the next ones are lighter by 10


def mini_imagenet(root: Path) -> Learn2LearnImages:
    """Three classes of 4 images of 12 x 10 pixels in each split, each class of one grey."""
    root.mkdir(exist_ok=True)
    for split, mode in MODES.items():
        greys = np.repeat([GREY[split], GREY[split] + 10, GREY[split] + 20], 4).astype(np.uint8)
        content = {
            "image_data": np.broadcast_to(greys[:, None, None, None], (12, 12, 10, 3)).copy(),
            "class_dict": {f"n{c}": list(range(4 * c, 4 * c + 4)) for c in range(3)},
        }
        (root / f"mini-imagenet-cache-{mode}.pkl").write_bytes(pickle.dumps(content))
    return Learn2LearnImages("MiniImagenet", str(root), image_size=6, download=False, **SHAPE)


def greys(data: Learn2LearnImages, split: Split) -> Tensor:
    """The grey of every image that is drawn, `(T, examples)`, which is checked to be one grey."""
    data.setup("fit" if split != "test" else "test")
    tasks = data.dataset(split).__getitems__(range(20))
    x = torch.cat([tasks.support.x, tasks.query.x], dim=1)
    assert x.shape[2:] == (3, 6, 6)
    assert torch.equal(x.amax((2, 3, 4)), x.amin((2, 3, 4)))
    return (x[:, :, 0, 0, 0] * 255).round()


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_classes_of_a_split_become_episodes(split: Split, tmp_path: Path) -> None:
    data = mini_imagenet(tmp_path / "data")
    data.prepare_data()
    found = greys(data, split)
    assert found.unique().tolist() == [GREY[split], GREY[split] + 10, GREY[split] + 20]
    support, query = found[:, :2], found[:, 2:]
    assert torch.equal(query.reshape(20, 2, 2), support[:, :, None].expand(-1, -1, 2))  # of the class of the label


def test_learn2learn_is_not_asked_twice(tmp_path: Path) -> None:
    data = mini_imagenet(tmp_path)
    data.prepare_data()
    for file in tmp_path.glob("*.pkl"):
        file.unlink()
    data.prepare_data()
    assert len(greys(data, "test")) == 20


def test_images_that_learn2learn_gives_as_pillow_images(tmp_path: Path) -> None:
    from learn2learn.vision.datasets import describable_textures

    for position, name in enumerate(chain(*describable_textures.SPLITS.values())):
        folder = tmp_path / describable_textures.DATA_DIR / "dtd" / "images" / name
        folder.mkdir(parents=True)
        for i in range(3):
            Image.new("L", (9, 8), 5 * position).save(folder / f"{i}.png")
    data = Learn2LearnImages("DescribableTextures", str(tmp_path), image_size=6, download=False, **SHAPE)
    data.prepare_data()
    assert set(greys(data, "train").unique().tolist()) <= set(range(0, 255, 5))
    assert data.n_classes("train") == len(describable_textures.SPLITS["train"])


def test_missing_files_are_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    data = Learn2LearnImages("MiniImagenet", str(tmp_path), download=False, **SHAPE)
    with pytest.raises(DataError, match=r"train split of MiniImagenet in .*Put its files there"):
        data.prepare_data()
    assert not list(tmp_path.glob("*.pt"))
