"""What does an image look like to a module that has seen some of its pixels?"""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from lightning_meta.callbacks.pictures import Pictures
from lightning_meta.callbacks.replay import Replay
from lightning_meta.compat import tree_map
from lightning_meta.core import Batch, Episode
from lightning_meta.core.sampling import episode_keys
from lightning_meta.datamodules.episodes import STREAM
from lightning_meta.datamodules.functions.image_completion import PixelSource
from lightning_meta.metrics import EpisodicLogLikelihood
from lightning_meta.viz import completions


class Completions(Pictures):
    """Picture `completions`: images of test episodes, completed from more and more of their pixels.

    For `ImageCompletion` by algorithms that predict means and standard deviations; anything else is skipped without a
    word.

    Args:
        images: how many test episodes.
        pixels: numbers of support pixels; those beyond the image's are left out.
    """

    def __init__(self, images: int = 3, pixels: Sequence[int] = (10, 100, 300, 1000)) -> None:
        super().__init__()
        self.images, self.pixels = images, tuple(pixels)

    def draw(self, replay: Replay, log_dir: Path) -> None:
        data, source = replay.datamodule, replay.datamodule.sources["test"]
        if not isinstance(source, PixelSource) or not isinstance(replay.module.metric, EpisodicLogLikelihood):
            return
        keys = episode_keys(data.seed, STREAM["test"], range(min(self.images, data.test_episodes)))
        image, order_TP = source.pixels(keys), source.order(keys)

        def first(leaf: Tensor, count: int) -> Tensor:
            return leaf.gather(1, order_TP[:, :count, None].expand(-1, -1, leaf.shape[-1]))

        contexts: dict[int, tuple[Tensor, Tensor]] = {}
        for count in (count for count in self.pixels if count <= order_TP.shape[1]):
            tasks = Episode(Batch(*(first(leaf, count) for leaf in image)), image)
            preds = replay.play(replay.to_device(tasks)).preds.float().cpu()
            seen_TP = (order_TP.argsort(1) < count).cpu()
            contexts[count] = tree_map(lambda leaf: leaf.unflatten(1, source.size), (seen_TP, preds))
        title = f"{type(replay.module).__name__} on {data.name}"
        figure = completions(image.y.cpu().unflatten(1, source.size), contexts, title)
        self.save(figure, "completions", replay, log_dir)
