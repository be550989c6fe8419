import pytest
import torch

from lightning_meta.viz import sequence_error


def test_a_line_and_a_band_for_each_learner_on_a_logarithmic_axis() -> None:
    mean, ci95 = torch.tensor([0.1, 0.01, 0.001]), torch.tensor([0.01, 0.001, 0.0001])
    exact = torch.tensor([0.2, 0.1, 1e-12])
    figure = sequence_error({"LSTM": (mean, ci95), "fit": (exact, torch.full((3,), torch.nan))}, 50, "A title")
    (axes,) = figure.axes
    assert figure.get_suptitle() == "A title\nmean and 95 % interval over 50 episodes"
    assert axes.get_yscale() == "log"
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["LSTM", "fit"]
    assert axes.lines[0].get_xdata() == pytest.approx([0, 1, 2])
    assert axes.lines[0].get_ydata() == pytest.approx(mean.tolist())
    band = axes.collections[0].get_paths()[0].vertices[:, 1]
    assert band.max() == pytest.approx(0.11) and band.min() == pytest.approx(0.0009)
    assert 1e-4 < axes.get_ylim()[0] < 1e-3  # an exact fit does not flatten the others
