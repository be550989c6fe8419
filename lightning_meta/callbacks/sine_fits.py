"""What does adaptation do to a function?"""

from collections.abc import Sequence
from pathlib import Path

import torch

from lightning_meta.callbacks.pictures import Pictures
from lightning_meta.callbacks.replay import Replay
from lightning_meta.compat import tree_map
from lightning_meta.core import Batch, Episode
from lightning_meta.core.sampling import episode_keys
from lightning_meta.datamodules.episodes import STREAM
from lightning_meta.datamodules.functions.sinusoid import SinusoidSource
from lightning_meta.viz import sine_fits

GRID_POINTS = 200


class SineFits(Pictures):
    """Picture `sine_fits`: true waves of test episodes, their support points, and the fits after some inner steps.

    For sinusoid regression by an algorithm that has `eval_inner_steps`; anything else is skipped without a word.

    Args:
        tasks: how many test episodes.
        steps: inner step counts; 0 is the fit before adaptation.
    """

    def __init__(self, tasks: int = 3, steps: Sequence[int] = (0, 1, 10)) -> None:
        super().__init__()
        self.tasks, self.steps = tasks, tuple(steps)

    def draw(self, replay: Replay, log_dir: Path) -> None:
        module, datamodule = replay.module, replay.datamodule
        source = datamodule.sources["test"]
        if not isinstance(source, SinusoidSource) or not hasattr(module, "eval_inner_steps"):
            return
        ids = range(min(self.tasks, datamodule.test_episodes))
        support = replay.episodes(ids).support
        x = torch.linspace(*source.x_range, GRID_POINTS, dtype=torch.float64)
        truth = torch.from_numpy(source.wave(episode_keys(datamodule.seed, STREAM["test"], ids), x.numpy()))
        query = Batch(x.expand_as(truth)[..., None].to(support.x), truth[..., None].to(support.y))
        tasks = Episode(support, query)
        fits = {steps: replay.play(tasks, inner_steps=steps).preds.float().cpu().squeeze(-1) for steps in self.steps}
        title = f"{type(module).__name__} on {datamodule.name}, {datamodule.shapes['test'].k_shot}-shot"
        figure = sine_fits(x, truth, tree_map(lambda leaf: leaf.float().cpu(), support), fits, title)
        self.save(figure, "sine_fits", replay, log_dir)
