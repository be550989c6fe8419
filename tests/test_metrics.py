"""Metrics of scenes against another library and against loops."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.classification import MulticlassJaccardIndex

from lightning_meta.metrics import EpisodicAveragePrecision, EpisodicIoU, box_overlaps, metric_of


def test_intersection_over_union_is_that_of_torchmetrics() -> None:
    """The mean over classes without the background, of the pixels of all queries of an episode."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 4, 9, 9, 4, generator=generator)
    targets = torch.randint(4, (3, 4, 9, 9), generator=generator)
    ours = EpisodicIoU.per_episode(logits, targets)
    for t in range(3):
        theirs = MulticlassJaccardIndex(4, average=None)(logits[t].movedim(-1, 1), targets[t])
        assert ours[t].item() == pytest.approx(theirs[1:].mean().item(), abs=1e-6)


def test_classes_that_are_not_there_do_not_count() -> None:
    """Nor do slots without a class; but pixels taken for a class that is there do."""
    targets = torch.tensor([[[[0, 2], [2, 2]]]])
    found = F.one_hot(torch.tensor([[[[2, 2], [2, 1]]]]), 5).float()
    assert EpisodicIoU.per_episode(found, targets).item() == pytest.approx(2 / 4)


def test_overlaps_of_boxes_are_those_of_their_pixels() -> None:
    generator = torch.Generator().manual_seed(0)
    corners = torch.randint(6, (2, 8, 2), generator=generator)
    boxes = torch.cat([corners, corners + torch.randint(1, 6, (2, 8, 2), generator=generator)], -1)
    overlaps = box_overlaps(boxes[0].double(), boxes[1].double())
    pixels = [[torch.zeros(12, 12, dtype=torch.bool) for _ in range(8)] for _ in range(2)]
    for side in range(2):
        for place, (top, left, bottom, right) in enumerate(boxes[side].tolist()):
            pixels[side][place][top:bottom, left:right] = True
    for i, a in enumerate(pixels[0]):
        for j, b in enumerate(pixels[1]):
            assert overlaps[i, j].item() == pytest.approx(((a & b).sum() / (a | b).sum()).item())


def box(label: float, *rest: float) -> list[float]:
    return [label, *rest]


def detections(*of_images: list[list[float]]) -> Tensor:
    return torch.tensor([of_images])


def test_average_precision_by_hand() -> None:
    """Three objects; found in the order right, wrong, right: precision 1 to recall 1/3, 2/3 to recall 2/3."""
    targets = detections([box(0, 0, 0, 4, 4), box(0, 8, 8, 12, 12)], [box(0, 0, 0, 4, 4), [-1.0] * 5])
    preds = detections(
        [box(0, 0.9, 0, 0, 4, 4), box(0, 0.7, 9, 8, 13, 12)], [box(0, 0.8, 6, 6, 9, 9), box(0, 0.0, 0, 0, 4, 4)]
    )
    assert EpisodicAveragePrecision.per_episode(preds, targets).item() == pytest.approx((1 + 2 / 3) / 3)


def test_an_object_is_found_once_and_by_its_own_class() -> None:
    targets = detections([box(1, 0, 0, 4, 4), box(0, 8, 8, 12, 12)])
    twice = detections([box(1, 0.9, 0, 0, 4, 4), box(1, 0.8, 0, 0, 4, 4), box(0, 0.7, 8, 8, 12, 12)])
    assert EpisodicAveragePrecision.per_episode(twice, targets).item() == 1  # the second is wrong, but comes too late
    earlier = detections([box(1, 0.8, 0, 0, 4, 4), box(1, 0.9, 0, 1, 4, 5), box(0, 0.7, 0, 0, 4, 4)])
    assert EpisodicAveragePrecision.per_episode(earlier, targets).item() == pytest.approx(0.5)
    nothing = detections([[-1.0] * 5])
    assert EpisodicAveragePrecision.per_episode(twice, nothing).item() == 0


def test_precision_is_the_best_from_a_recall_on() -> None:
    """Against the definition: for each object found, the best precision among this and all later places."""
    torch.manual_seed(0)
    corners = 10.0 * torch.arange(12)
    targets = torch.stack([torch.zeros(12), corners, corners, corners + 4, corners + 4], -1)[None, None]
    hit = torch.rand(12) < 0.6
    place = torch.where(hit, corners, corners + 5)
    scores = torch.rand(12)
    preds = torch.stack([torch.zeros(12), scores, place, place, place + 4, place + 4], -1)[None, None]
    order = scores.argsort(descending=True)
    right = hit[order].tolist()
    precisions = [sum(right[: i + 1]) / (i + 1) for i in range(12)]
    expected = sum(max(precisions[i:]) for i in range(12) if right[i]) / 12
    assert EpisodicAveragePrecision.per_episode(preds, targets).item() == pytest.approx(expected)


def test_they_are_written_in_per_cent() -> None:
    assert metric_of("iou").text(0.4321, 0.01) == "43.21 ± 1.00 %"
    assert metric_of("ap50").text(0.5) == "50.00 %"
