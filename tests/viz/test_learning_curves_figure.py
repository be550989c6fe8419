import pytest
import torch

from lightning_meta.viz import learning_curves


def test_a_line_and_a_band_for_each_optimizer_on_a_logarithmic_axis() -> None:
    mean, ci95 = torch.tensor([10.0, 1.0, 0.1]), torch.tensor([1.0, 0.1, 0.2])
    diverging = torch.tensor([10.0, 1e9, torch.inf])
    figure = learning_curves({"LSTM": (mean, ci95), "SGD": (diverging, torch.full((3,), torch.nan))}, 50, "A title")
    (axes,) = figure.axes
    assert figure.get_suptitle() == "A title\nmean and 95 % interval over 50 optimizees"
    assert axes.get_yscale() == "log"
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["LSTM", "SGD"]
    assert axes.lines[0].get_xdata() == pytest.approx([0, 1, 2])
    assert axes.lines[0].get_ydata() == pytest.approx(mean.tolist())
    band = axes.collections[0].get_paths()[0].vertices[:, 1]
    assert band.max() == pytest.approx(11.0)
    assert band.min() == pytest.approx(0.05), "a band that reaches below zero ends at half the mean"
    assert axes.get_ylim() == pytest.approx((0.05, 30)), "a diverging optimizer does not flatten the others"
