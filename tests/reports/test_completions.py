"""Which pixels completions are made from, in a real, tiny test of the Trainer, and what they show."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from lightning_meta.algorithms import ConditionalNeuralProcess
from lightning_meta.datamodules import ImageCompletion
from lightning_meta.reports import Completions
from lightning_meta.reports import completions as report
from lightning_meta.reports.completions import UNSEEN, completions
from tests.conftest import SIZE, blobs
from tests.reports.conftest import run_test


def test_completions_show_the_first_pixels_and_predict_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: dict[str, Tensor] = {}

    def spy(images: Tensor, contexts: dict[int, tuple[Tensor, Tensor]], title: str) -> object:
        shown.update(images=images, **{f"seen {k}": seen for k, (seen, _) in contexts.items()})
        shown.update({f"preds {k}": preds for k, (_, preds) in contexts.items()})
        return completions(images, contexts, title)

    monkeypatch.setattr(report, "completions", spy)
    module = ConditionalNeuralProcess(x_size=2, width=8, layers=1)
    data = ImageCompletion(blobs(), k_shot=20, n_query=5, val_episodes=2, test_episodes=7, eval_meta_batch_size=3)
    run_test(tmp_path, module, data, Completions(images=2, pixels=(20, 100, 1000)))
    assert set(shown) == {"images", "seen 20", "seen 100", "preds 20", "preds 100"}  # an image has 256 pixels
    assert shown["images"].shape == (2, SIZE, SIZE, 1)
    assert shown["seen 20"].sum((1, 2)).tolist() == [20, 20]
    assert (shown["seen 100"] >= shown["seen 20"]).all()
    tasks = data.dataset("test").__getitems__(range(2))
    seen = shown["images"][..., 0][shown["seen 20"]].view(2, -1)
    torch.testing.assert_close(seen.sort().values, tasks.support.y[..., 0].sort().values)
    preds = module.eval().play(tasks).preds
    down, right = ((tasks.query.x + 1) / 2 * (SIZE - 1)).round().long().unbind(-1)
    rows = torch.arange(2)[:, None]
    torch.testing.assert_close(shown["preds 20"][rows, down, right], preds.detach())


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
