"""Mixed sources: an episode is of one source; in validation and test it is one that the source plays alone."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from torch import Tensor

from lightning_meta.algorithms import Baseline, ProtoNet
from lightning_meta.callbacks import RunSummary
from lightning_meta.core import Episode
from lightning_meta.core.episode import Split
from lightning_meta.datamodules import ClassificationDataModule, Mixed, TextClasses, UniformTasks
from lightning_meta.datamodules.class_bank import ClassBank
from lightning_meta.datamodules.images.mixed import in_shape
from lightning_meta.errors import ConfigError
from tests.conftest import SIZE, Blobs, conv4
from tests.datamodules.test_episodes import SPLITS, assert_same, at, on_rank, ready

SHAPE: dict[str, Any] = dict(n_way=3, k_shot=2, n_query=2)
SIZES: dict[str, Any] = dict(meta_batch_size=4, steps_per_epoch=4, val_episodes=5, test_episodes=7)


class Dots(ClassificationDataModule):
    """Images of one value: 5 classes of 9 examples, class `c` has the values from 20 `c` on."""

    shape: tuple[int, ...] = (1, SIZE, SIZE)
    classes = 5

    def load_source(self, split: Split) -> ClassBank:
        values = 20 * torch.arange(self.classes)[:, None] + torch.arange(9)
        return ClassBank.from_classes(values[..., None, None, None].expand(-1, -1, *self.shape).to(torch.uint8))


class Colours(Dots):
    shape = (3, 2 * SIZE, 2 * SIZE)


class Few(Dots):
    classes = 2


def mixed(**settings: Any) -> Mixed:
    given = {"sources": {"blobs": Blobs(), "dots": Dots()}} | SHAPE | SIZES | settings
    return ready(Mixed(**given))  # type: ignore[return-value]


def is_dots(x: Tensor) -> bool:
    return bool((x == x[..., :1, :1, :1]).flatten(1).all())


# ---- episodes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variable", [None, UniformTasks(n_way=(2, 5), k_shot=(1, 3), n_query=(1, 2))])
@pytest.mark.parametrize("split", ["val", "test"])
def test_sources_take_turns_with_the_episodes_that_each_has_alone(split: Split, variable: UniformTasks | None) -> None:
    together = mixed(variable=variable, seed=3).dataset(split)
    alone = [ready(kind(variable=variable, seed=3, **SHAPE)).dataset(split) for kind in (Blobs, Dots)]
    ids = [0, 1, 2, 3, 9, 8]
    drawn = together.__getitems__(ids)
    for place, i in enumerate(ids):
        own = alone[i % 2].__getitems__([i // 2])
        ours = drawn[place] if isinstance(drawn, list) else at(drawn, place)
        assert_same(ours, own[0] if isinstance(own, list) else at(own, 0))
        assert_same(together[i], alone[i % 2][i // 2])
    assert mixed().parts(split, ids) == ["blobs", "dots", "blobs", "dots", "dots", "blobs"]


def test_a_test_plays_as_many_episodes_of_each_source_on_any_number_of_ranks() -> None:
    def played(rank: int, ranks: int) -> list[Episode]:
        loader = on_rank(mixed(eval_meta_batch_size=3), rank, ranks).test_dataloader()
        return [at(batch, t) for batch in loader for t in range(len(batch.query.y))]

    alone, shared = played(0, 1), [played(rank, 3) for rank in range(3)]
    assert len(alone) == 14
    assert sum(is_dots(episode.query.x) for episode in alone) == 7
    for i, episode in enumerate(alone):
        assert_same(episode, shared[i % 3][i // 3])


@pytest.mark.parametrize(("weights", "share"), [(None, 0.5), ({"blobs": 3.0, "dots": 1.0}, 0.25)])
def test_training_draws_each_source_as_often_as_its_weight_says(weights: Any, share: float) -> None:
    drawn = mixed(weights=weights).dataset("train").__getitems__(range(2000))
    of_dots = [is_dots(torch.cat([at(drawn, t).support.x, at(drawn, t).query.x])) for t in range(2000)]
    deviation = (share * (1 - share) / 2000) ** 0.5
    assert np.mean(of_dots) == pytest.approx(share, abs=4 * deviation)


def test_a_source_without_weight_is_only_tested() -> None:
    module = mixed(weights={"blobs": 1, "dots": 0})
    drawn = module.dataset("train").__getitems__(range(50))
    assert not any(is_dots(at(drawn, t).query.x) for t in range(50))
    assert module.n_classes("train") == 12
    assert module.n_classes("test") == 17
    assert module.trained_on() == "Blobs"
    assert module.name == "Blobs + Dots"
    assert module.facts("test")["sources"] == ["blobs", "dots"]


@pytest.mark.parametrize("split", SPLITS)
def test_an_episode_is_the_same_alone_and_beside_others(split: Split) -> None:
    dataset, ids = mixed().dataset(split), [7, 0, 123456, 2]
    together = dataset.__getitems__(ids)
    for place, i in enumerate(ids):
        assert_same(dataset[i], at(together, place))


def test_classes_are_numbered_through_for_algorithms_that_name_them() -> None:
    """The label of an image of `Dots` is its class there, after the classes of `Blobs`."""
    module = mixed()
    module.needs = frozenset({"class_labels"})
    drawn = module.dataset("train").__getitems__(range(100))
    seen = set()
    for x, y in zip(drawn.query.x.flatten(0, 1), drawn.query.y.flatten(), strict=True):
        if is_dots(x[None]):
            assert y == 12 + (255 * x[0, 0, 0]).round() // 20
        seen.add(int(y))
    assert seen == set(range(17))


# ---- images ---------------------------------------------------------------------------------------------------------


def test_colours_become_the_grey_that_pillow_makes() -> None:
    pixels = torch.randint(256, (40, 3, 9, 9), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    ours = in_shape(pixels, channels=1, size=9)
    assert ours.shape == (40, 1, 9, 9)
    for image, grey in zip(pixels, ours, strict=True):
        theirs = np.asarray(Image.fromarray(image.permute(1, 2, 0).numpy()).convert("L"))
        assert np.abs(theirs.astype(int) - grey[0].numpy()).max() <= 1


def test_images_are_resized_as_pillow_does() -> None:
    pixels = torch.randint(256, (10, 1, 24, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for size in (8, 16, 48):
        for image, small in zip(pixels, in_shape(pixels, channels=1, size=size), strict=True):
            theirs = Image.fromarray(image[0].numpy()).resize((size, size), Image.Resampling.BILINEAR)
            assert np.abs(np.asarray(theirs).astype(int) - small[0].numpy()).max() <= 1


def test_grey_becomes_three_equal_channels_and_nothing_is_done_without_need() -> None:
    grey = torch.randint(256, (4, 1, 5, 5), dtype=torch.uint8)
    assert torch.equal(in_shape(grey, channels=3, size=5), grey.repeat(1, 3, 1, 1))
    assert in_shape(grey, channels=1, size=5) is grey


def test_sources_of_different_shapes_are_made_alike() -> None:
    module = mixed(sources={"blobs": Blobs(), "colours": Colours()}, image_size=SIZE, channels=3)
    drawn = module.dataset("test").__getitems__([0, 1])
    assert drawn.support.x.shape == (2, 6, 3, SIZE, SIZE)
    blob = ready(Blobs(**SHAPE)).dataset("test")[0]
    assert_same(drawn.support.x[0], blob.support.x.repeat(1, 3, 1, 1))


# ---- metrics --------------------------------------------------------------------------------------------------------


def trainer(folder: Path, **more: Any) -> pl.Trainer:
    return pl.Trainer(
        accelerator="cpu", max_steps=4, max_epochs=-1, inference_mode=False, num_sanity_val_steps=0, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
        **more,
    )  # fmt: skip


def test_each_source_has_the_result_that_it_has_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module = ProtoNet(conv4("running"))
    how = trainer(tmp_path, callbacks=[RunSummary()])
    how.fit(module, datamodule=mixed())
    assert {"val/acc", "val/blobs/acc", "val/dots/acc", "val/dots/acc_ci95"} <= how.callback_metrics.keys()
    (together,) = how.test(module, datamodule=mixed(eval_meta_batch_size=3), verbose=False)
    result, printed = json.loads((tmp_path / "result.json").read_text()), capsys.readouterr().out
    assert result["episodes"] == 14
    assert result["trained_on"] == result["data"] == "Blobs + Dots"
    for name, kind in (("blobs", Blobs), ("dots", Dots)):
        (alone,) = trainer(tmp_path).test(module, datamodule=kind(**SHAPE, **SIZES), verbose=False)
        assert f"test/{name}/acc" not in alone
        for key in ("acc", "acc_ci95", "loss"):
            assert together[f"test/{name}/{key}"] == pytest.approx(alone[f"test/{key}"], rel=1e-5)
            assert result["parts"][name][key] == pytest.approx(alone[f"test/{key}"], rel=1e-5)
        assert f"  {name}" in printed
    mean = (together["test/blobs/acc"] + together["test/dots/acc"]) / 2
    assert together["test/acc"] == pytest.approx(mean)
    assert not any("/" in name for name in result["logs"])


def test_data_of_one_source_have_no_parts(tmp_path: Path) -> None:
    how = trainer(tmp_path, callbacks=[RunSummary()])
    how.test(ProtoNet(conv4("running")), datamodule=Blobs(**SHAPE, **SIZES), verbose=False)
    assert "parts" not in json.loads((tmp_path / "result.json").read_text())


def test_a_baseline_learns_the_classes_of_all_sources(tmp_path: Path) -> None:
    module = Baseline(conv4("running"), eval_inner_steps=2)
    trainer(tmp_path).fit(module, datamodule=mixed())
    assert module.classifier is not None
    assert module.classifier.out_features == 17


def test_features_of_a_frozen_backbone_stand_in_for_images(tmp_path: Path) -> None:
    def tested(freeze: bool) -> dict[str, float]:
        torch.manual_seed(0)
        module = ProtoNet(conv4("running"), freeze=freeze, feature_folder=str(tmp_path))
        (result,) = trainer(tmp_path).test(module, datamodule=mixed(), verbose=False)
        return result

    assert tested(True) == pytest.approx(tested(False), rel=1e-5)


# ---- what cannot be -------------------------------------------------------------------------------------------------


def of_texts() -> TextClasses:
    source = TextClasses("texts.csv")
    source.load_source = lambda split: ClassBank.from_classes(torch.zeros(9, 9, 4).long())  # type: ignore[method-assign]
    return source


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"sources": {}}, "sources is empty"),
        ({"sources": {"my.dots": Dots()}}, r"'my\.dots' gets names such as test/my\.dots/acc.*without \. / and spaces"),
        ({"weights": {"blobs": 1, "dot": 1}}, r"in one of them only: dot, dots\. Give each source a weight"),
        ({"weights": {"blobs": -1, "dots": 1}}, "must not be negative"),
        ({"weights": {"blobs": 0, "dots": 0}}, "one must be more than 0"),
        ({"image_size": 0}, "image_size=0 must be at least 1"),
        ({"channels": 2}, "channels=2 must be 3"),
        ({"labels": "fixed"}, "labels=fixed is not for mixed data; leave it out"),
        ({"train_classes": 4}, "train_classes=4 is not for mixed data; say it of a source"),
        ({"sources": {"dots": Dots(n_way=4)}}, r"sources\.dots has episodes of its own \(4-way 1-shot"),
        ({"sources": {"dots": Dots(), "blobs": Blobs(), "colours": Colours()}},
         f"images of dots are 1 x {SIZE} x {SIZE}, but those of colours 3 x {2 * SIZE} x {2 * SIZE}; set"),
        ({"sources": {"blobs": Blobs(), "few": Few()}}, "few: n_way=3, but the split has 2 classes"),
        ({"sources": {"blobs": Blobs(), "few": Few()}, "variable": UniformTasks((3, 4), (1, 2), (1, 1))},
         "few: episodes have up to 4 classes, but the split has 2"),
        ({"sources": {"texts": of_texts()}}, "texts: TextClasses has no images"),
    ],
)  # fmt: skip
def test_what_cannot_be_mixed_is_said_in_one_line(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as error:
        mixed(**settings)
    assert "\n" not in str(error.value)
