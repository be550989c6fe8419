import pytest
import torch

from lightning_meta.viz import layer_similarity

LAYERS = ["blocks.0", "blocks.1", "head"]


def test_a_bar_with_interval_and_value_for_each_layer() -> None:
    mean, ci95 = torch.tensor([1.0, 0.8, 0.3]), torch.tensor([0.0, 0.05, 0.1])
    figure = layer_similarity(LAYERS, mean, ci95, episodes=50, examples=75, title="MAML on Blobs")
    (axes,) = figure.axes
    assert figure.get_suptitle() == "MAML on Blobs\nmean and 95 % interval over 50 episodes"
    assert [label.get_text() for label in axes.get_xticklabels()] == LAYERS
    assert [bar.get_height() for bar in axes.patches] == pytest.approx(mean.tolist())
    ends = [segment[:, 1].tolist() for segment in axes.collections[0].get_segments()]
    assert ends == [pytest.approx(end) for end in ([1, 1], [0.75, 0.85], [0.2, 0.4])]
    assert [text.get_text() for text in axes.texts] == ["1.000", "0.800", "0.300"]
    assert axes.get_ylim() == (0, pytest.approx(1.1))
    assert "75 query examples" in axes.get_xlabel()


def test_undefined_and_negative_estimates_are_not_hidden() -> None:
    nan = torch.nan
    figure = layer_similarity(LAYERS, torch.tensor([nan, -0.1, 0.5]), torch.tensor([nan, 0.2, nan]), 1, 5)
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.texts] == ["-0.100", "0.500"]
    assert axes.get_ylim()[0] == pytest.approx(-0.3)
