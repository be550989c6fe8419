"""Figures of neural processes hold what they should show."""

import pytest
import torch

from lightning_meta.core import Batch
from lightning_meta.viz import completions, process_fits
from lightning_meta.viz.completion import UNSEEN


def test_fits_and_posteriors_have_means_and_bands_of_two_deviations() -> None:
    x = torch.linspace(-2, 2, 20)
    truth = torch.stack([x.sin(), torch.full_like(x, 0.1)], -1).expand(3, -1, -1)
    fits = torch.stack([x.cos(), torch.full_like(x, 0.5)], -1).expand(3, -1, -1)
    support = Batch(torch.zeros(3, 4, 1), torch.zeros(3, 4, 1))
    figure = process_fits(x, truth, support, fits, "Fits")
    assert [axes.axison for axes in figure.axes] == [True, True, True, False]
    mean, low, high, prediction = (line.get_ydata() for line in figure.axes[2].lines)
    assert mean == pytest.approx(x.sin().numpy())
    assert high - low == pytest.approx(0.4)
    assert prediction == pytest.approx(x.cos().numpy())
    band = figure.axes[2].collections[0].get_paths()[0].vertices
    assert band[:, 1].max() == pytest.approx(2, abs=0.01)
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["true posterior", "prediction", "support points"]


@pytest.mark.parametrize("channels", [1, 3])
def test_completions_hide_what_was_not_shown(channels: int) -> None:
    images = torch.rand(2, 4, 5, channels)
    seen = torch.zeros(2, 4, 5, dtype=torch.bool)
    seen[:, 0] = True
    preds = torch.stack([images, torch.full_like(images, 0.25)], -1)
    figure = completions(images, {5: (seen, preds), 20: (~seen | seen, preds)})
    pictures = [torch.tensor(picture.get_array().data).float() for picture in figure.axes[0].images]
    assert len(pictures) == 2 * (3 * 2 + 1)
    expected = (1 - images[0].expand(-1, -1, 3)) if channels == 1 else images[0]
    shown, mean, deviation, all_shown = pictures[:4]
    torch.testing.assert_close(shown[0], expected[0])
    torch.testing.assert_close(shown[1:], torch.tensor(UNSEEN).expand(3, 5, 3))
    torch.testing.assert_close(mean, expected)
    torch.testing.assert_close(deviation, torch.full_like(expected, 0.5))
    torch.testing.assert_close(all_shown, expected)
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts[1:4] == ["5 pixels", "20 pixels", "image"]
