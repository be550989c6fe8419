"""Prototypical detection (proto_detection): its heat maps, its loss and its peaks, by hand and by loops."""

import math

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_meta.algorithms import ProtoDetection
from lightning_meta.algorithms.compare.proto_detection import focal_loss
from lightning_meta.backbones import Backbone
from lightning_meta.core import Batch
from lightning_meta.errors import ConfigError
from tests.algorithms.test_proto_segmentation import maps
from tests.conftest import SIZE, Make, blobs, random_boxes, scenes

DETECTORS: dict[str, Make] = {"proto_detection": lambda: ProtoDetection(maps())}


class Colours(Backbone):
    """Features are the colours of the pixels, in squares of two by two."""

    in_shape, out_features, map_shape = (3, 16, 16), 3 * 8 * 8, (3, 8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, 2).flatten(1)


def scene(*boxes: list[float]) -> Batch:
    """An image whose objects have the colour of their label, on paper of a colour of its own."""
    x = torch.zeros(1, 3, 16, 16)
    x[0, 2] = 1
    for label, top, left, bottom, right in boxes:
        x[0, :, int(top) : int(bottom), int(left) : int(right)] = F.one_hot(torch.tensor(int(label)), 3)[:, None, None]
    return Batch(x, torch.tensor([boxes]))


def test_a_class_is_the_mean_of_what_its_boxes_cover() -> None:
    """A box that cuts through places: each counts by its area within."""
    support = Batch(torch.rand(2, 3, 16, 16), torch.tensor([[[1.0, 3, 5, 8, 6]], [[0.0, 0, 0, 16, 16]]]))
    detector = ProtoDetection(Colours()).adapt(support).head
    shares = torch.zeros(8, 8)
    for y in range(3, 8):
        shares[y // 2, 5 // 2] += 1  # the box is one pixel wide
    features = F.avg_pool2d(support.x, 2)
    torch.testing.assert_close(detector.means[1], (features[0] * shares).sum((1, 2)) / shares.sum())
    torch.testing.assert_close(detector.means[0], features[1].mean((1, 2)))
    assert detector.present.all() and detector.sizes.tolist() == [[16, 16], [5, 1]]


def test_heat_is_one_at_a_centre_and_falls_as_a_gaussian() -> None:
    module = ProtoDetection(Colours())
    heat = module.target_heat(torch.tensor([[[1.0, 2, 4, 8, 16], [-1] * 5]]), 3).unflatten(1, (8, 8))
    assert heat.shape == (1, 8, 8, 3) and not heat[..., [0, 2]].any()
    for y in range(8):
        for x in range(8):  # the centre (5, 10) is in place (2, 5); the box is 3 by 6 places
            expected = math.exp(-(((y - 2) / 0.5) ** 2 + ((x - 5) / 1) ** 2) / 2)
            assert heat[0, y, x, 1].item() == pytest.approx(expected, abs=1e-6)


def test_focal_loss_is_the_papers_formula() -> None:
    torch.manual_seed(0)
    logits, heat = torch.randn(2, 9, 3).double(), torch.rand(2, 9, 3).double()
    heat[0, 3, 1] = heat[1, 8, 0] = 1
    present, total = torch.tensor([True, True, False]), 0.0
    for p, target in zip(logits[..., :2].sigmoid().flatten().tolist(), heat[..., :2].flatten().tolist(), strict=True):
        total -= (1 - p) ** 2 * math.log(p) if target == 1 else (1 - target) ** 4 * p**2 * math.log(1 - p)
    assert focal_loss(logits, heat, present).item() == pytest.approx(total / 2, rel=1e-10)


@torch.no_grad()
def test_where_classes_have_colours_of_their_own_all_objects_are_found() -> None:
    """Two objects of one class and one of another, of the size of the support's."""
    module = ProtoDetection(Colours()).eval()
    support = [scene([0.0, 2, 2, 4, 4]), scene([1.0, 8, 6, 10, 8])]
    detector = module.adapt(Batch(*(torch.cat(parts) for parts in zip(*support, strict=True))))
    query = scene([0.0, 0, 0, 2, 2], [1.0, 10, 2, 12, 4], [0.0, 8, 8, 10, 10])
    out = module.query_loss(detector, query)
    assert module.metric.per_episode(out.preds[None], query.y[None]).item() == 1
    assert torch.equal(module.predict(detector, query.x), out.preds)


@torch.no_grad()
def test_a_peak_is_no_smaller_than_its_neighbours_and_the_best_come_first() -> None:
    module = ProtoDetection(maps(), detections=5).double().eval()
    tasks = random_boxes()
    preds = module.play(tasks).preds
    assert preds.shape == (3, 6, 5, 6)
    scores = preds[..., 1]
    assert (scores.diff(dim=-1) <= 0).all() and (preds[..., 0] < 3).all()
    detector = module.adapt(Batch(tasks.support.x[0], tasks.support.y[0]))
    features = F.normalize(module.backbone(tasks.query.x[0]).unflatten(1, (6, -1)).mT, dim=-1)
    heat = (module.log_scale.exp() * (features @ F.normalize(detector.head.means, dim=-1).mT - module.bound)).sigmoid()
    for image in range(6):
        of_image = heat[image, :, :3].mT.unflatten(1, (8, 8))
        peaks = sorted(
            (of_image[c, y, x].item() for c in range(3) for y in range(8) for x in range(8)
             if of_image[c, y, x] >= of_image[c, max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2].max()),
            reverse=True,
        )[:5]  # fmt: skip
        assert scores[0, image, : len(peaks)].tolist() == pytest.approx(peaks)


def test_targets_of_another_kind_are_refused(tmp_path) -> None:
    trainer = pl.Trainer(
        accelerator="cpu", max_steps=1, inference_mode=False, logger=False, default_root_dir=tmp_path,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    with pytest.raises(ConfigError, match=rf"learns boxes .* are \(4, {2 * SIZE}, {2 * SIZE}\); take Scenes with"):
        trainer.fit(ProtoDetection(maps()), datamodule=scenes("masks"))
    with pytest.raises(ConfigError, match=r"learns boxes .* are \(6,\); take Scenes with"):
        trainer.fit(ProtoDetection(maps()), datamodule=blobs())  # which are of another size, too
