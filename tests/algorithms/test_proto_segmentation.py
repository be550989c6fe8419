"""Prototypical segmentation (proto_segmentation) against loops over images, classes and pixels in NumPy."""

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_meta.algorithms import ProtoNet, ProtoSegmentation
from lightning_meta.algorithms.compare.dn4 import descriptors
from lightning_meta.algorithms.compare.proto_segmentation import areas, masked_means
from lightning_meta.backbones import Backbone, Conv4
from lightning_meta.core import Batch
from lightning_meta.errors import ConfigError
from tests.conftest import SIZE, Make, blobs, conv4, random_masks, scenes


def maps() -> Conv4:
    return Conv4(hidden=6, image_size=2 * SIZE, halvings=2, norm="transductive")


SEGMENTERS: dict[str, Make] = {"proto_segmentation": lambda: ProtoSegmentation(maps())}


def means_by_loops(features: np.ndarray, masks: np.ndarray, side: int) -> dict[int, np.ndarray]:
    """Of each class: the mean over its images of the mean feature under its mask, a place counting by its share."""
    step, means = masks.shape[-1] // side, {}
    for c in range(masks.max() + 1):
        of_images = []
        for image, mask in zip(features, masks, strict=True):
            share = (mask == c).reshape(side, step, side, step).mean((1, 3)).reshape(-1)
            if share.sum() > 0:
                of_images.append((share[:, None] * image).sum(0) / share.sum())
        if of_images:
            means[c] = np.mean(of_images, 0)
    return means


@pytest.mark.parametrize("mode", ["vmap", "loop"])
@torch.no_grad()
def test_scores_and_loss_equal_loops_over_pixels(mode: str) -> None:
    module, tasks = ProtoSegmentation(maps(), scale=7.0, task_mode=mode).double().eval(), random_masks()
    out = module.play(tasks)
    side = module.map_shape[1]
    for t in range(3):
        support, query = (descriptors(module.backbone(part.x[t]), module.map_shape).numpy() for part in tasks)
        means = means_by_loops(support, tasks.support.y[t].numpy(), side)
        lengths = np.linalg.norm(query, axis=-1).clip(1e-12)  # of a place where all units are off, zero
        coarse = np.stack([7 * query @ mean / lengths / np.linalg.norm(mean) for mean in means.values()], 1)
        pixels = F.interpolate(torch.from_numpy(coarse).unflatten(2, (side, side)), 2 * SIZE, mode="bilinear")
        torch.testing.assert_close(out.preds[t, ..., :4], pixels.movedim(1, -1), rtol=1e-9, atol=1e-10)
        assert (out.preds[t, ..., 4:] == -torch.inf).all() and list(means) == [0, 1, 2, 3]
        torch.testing.assert_close(out.loss[t], F.cross_entropy(pixels, tasks.query.y[t]), rtol=1e-9, atol=1e-10)


@torch.no_grad()
def test_alignment_segments_the_support_by_what_was_found_in_the_queries() -> None:
    module, tasks = ProtoSegmentation(maps(), align_weight=0.5, task_mode="loop").double(), random_masks()
    trained, tested = module.train().play(tasks), module.eval().play(tasks)
    side = module.map_shape[1]
    for t in range(3):
        support, query = (descriptors(module.backbone(part.x[t]), module.map_shape) for part in tasks)
        coarse = module.scores(query, module.adapt_head(Batch(support.mT.flatten(1), tasks.support.y[t])).means)
        found = coarse[..., :4].argmax(-1).unflatten(-1, (side, side)).repeat_interleave(SIZE * 2 // side, 1)
        found = found.repeat_interleave(SIZE * 2 // side, 2)  # each place as a square of pixels
        means = means_by_loops(query.numpy(), found.numpy(), side)
        scores = torch.stack(
            [module.scores(support, torch.from_numpy(mean)[None])[..., 0] for mean in means.values()], 1
        )
        pixels = F.interpolate(scores.unflatten(2, (side, side)), 2 * SIZE, mode="bilinear").movedim(1, -1)
        known = torch.isin(tasks.support.y[t], torch.tensor([*means]))
        places = torch.tensor([[*means].index(c) for c in tasks.support.y[t][known].tolist()])
        expected = F.cross_entropy(pixels[known], places)
        torch.testing.assert_close(trained.logs["alignment"][t], expected, rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(trained.loss[t], tested.loss[t] + 0.5 * expected, rtol=1e-9, atol=1e-10)


class Colours(Backbone):
    """Features are the pixels themselves."""

    in_shape, out_features, map_shape = (3, 8, 8), 3 * 8 * 8, (3, 8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)


@torch.no_grad()
def test_where_classes_have_colours_of_their_own_every_pixel_is_right() -> None:
    """A support set without one of the classes in some images, and queries of other shapes."""
    masks = torch.zeros(5, 8, 8, dtype=torch.long)
    masks[0, :3], masks[1, 4:, 2:], masks[2, 1:3, 1:3], masks[3, :, 5:] = 1, 2, 1, 2
    masks[4, :4, :4], masks[4, 4:, 4:] = 1, 2
    x = F.one_hot(masks, 3).movedim(-1, 1).float()
    module = ProtoSegmentation(Colours()).eval()
    out = module.query_loss(module.adapt(Batch(x[:2], masks[:2])), Batch(x[2:], masks[2:]))
    assert torch.equal(out.preds.argmax(-1), masks[2:])
    assert module.metric.per_episode(out.preds[None], masks[None, 2:]).item() == 1
    assert torch.equal(module.predict(module.adapt(Batch(x[:2], masks[:2])), x[2:]), out.preds)


def test_means_of_a_class_that_is_nowhere_are_zero_and_marked() -> None:
    means, present = masked_means(torch.rand(2, 4, 3), areas(torch.tensor([[[0, 0], [2, 2]]] * 2), 4, (3, 2, 2)))
    assert present.tolist() == [True, False, True, False]
    assert not means[[1, 3]].any()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ProtoSegmentation(conv4(halvings=4)), "the maps of Conv4 have one place; take larger maps"),
        (lambda: ProtoSegmentation(maps(), scale=0), "scale=0 must be positive"),
    ],
)
def test_what_cannot_segment_is_refused(make: Make, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


@pytest.mark.parametrize(
    ("module", "data", "message"),
    [
        (lambda: ProtoSegmentation(maps()), blobs, r"learns masks \(6, 16, 16\).* of Blobs are \(6,\); take"),
        (
            lambda: ProtoNet(maps()),
            lambda: scenes("masks"),
            r"names one class for each input, but the targets of Scenes",
        ),
        (lambda: ProtoSegmentation(maps()), lambda: scenes("boxes"), r"learns masks .* are \(4, 2, 5\); take data"),
    ],
)
def test_targets_of_another_kind_are_refused(module: Make, data: Make, message: str, tmp_path) -> None:
    trainer = pl.Trainer(
        accelerator="cpu", max_steps=1, inference_mode=False, logger=False, default_root_dir=tmp_path,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    with pytest.raises(ConfigError, match=message):
        trainer.fit(module(), datamodule=data())
