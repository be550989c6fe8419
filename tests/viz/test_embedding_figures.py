"""What the embedding map and the reliability diagram show."""

import pytest
import torch

from lightning_meta.core import Batch
from lightning_meta.viz import embedding_map, reliability_diagram
from lightning_meta.viz.embedding_map import principal_plane


def test_the_plane_is_that_of_the_largest_variances() -> None:
    """Points in a rotated plane: distances are kept, and the shares are those of the eigenvalues."""
    flat = torch.randn(30, 2, dtype=torch.float64) * torch.tensor([3.0, 1.0])
    rotation = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64)).Q[:2]
    points = flat @ rotation + 7
    shown, share = principal_plane(points, points)
    torch.testing.assert_close(torch.cdist(shown, shown), torch.cdist(flat, flat))
    values = torch.linalg.eigvalsh(flat.T.cov()).flip(0)
    assert share == pytest.approx((values / values.sum()).tolist())
    torch.testing.assert_close(principal_plane(-points, -points)[0].abs(), shown.abs())


def test_features_of_one_dimension_have_a_map_too() -> None:
    shown, share = principal_plane(torch.randn(4, 1), torch.randn(6, 1))
    assert shown.shape == (6, 2)
    assert share == pytest.approx([1, 0])


@pytest.mark.parametrize("n_way", [3, 9])
def test_every_example_and_class_mean_is_drawn(n_way: int) -> None:
    labels = torch.arange(n_way).repeat(2)
    support, query = Batch(torch.randn(2 * n_way, 4), labels), Batch(torch.randn(2 * n_way, 4), labels)
    preds = torch.nn.functional.one_hot(labels, 2 * n_way).double()
    preds[0] = preds[1]
    figure = embedding_map(support, query, preds, "ProtoNet on Blobs")
    assert figure.get_suptitle() == f"ProtoNet on Blobs\n{2 * n_way - 1} of {2 * n_way} queries right " + (
        "(83%)" if n_way == 3 else "(94%)"
    )
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.texts] == [str(label) for label in range(n_way)]
    assert sum(len(points.get_offsets()) for points in axes.collections) == 4 * n_way + n_way
    assert len({tuple(points.get_edgecolor()[0]) for points in axes.collections[::4]}) == n_way


def test_bins_show_accuracy_confidence_and_size() -> None:
    count = torch.tensor([0.0, 10.0, 30.0])
    figure = reliability_diagram(count, torch.tensor([0, 6.0, 27.0]), torch.tensor([0, 4.0, 27.0]), 0.05, "MAML")
    above, below = figure.axes
    assert figure.get_suptitle() == "MAML\naccuracy 77.5%, mean confidence 82.5%\nexpected calibration error 0.0500"
    assert [bar.get_height() for bar in above.patches] == pytest.approx([0.4, 0.9])
    assert [bar.get_height() for bar in below.patches] == [0, 10, 30]
    gaps = [segment[:, 1].tolist() for segment in above.collections[0].get_segments()]
    assert gaps == [pytest.approx([0.6, 0.4]), pytest.approx([0.9, 0.9])]
