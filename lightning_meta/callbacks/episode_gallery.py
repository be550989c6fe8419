"""What does an episode look like, and what is confused with what?"""

from pathlib import Path

from lightning_meta.callbacks.pictures import Pictures
from lightning_meta.callbacks.replay import Replay
from lightning_meta.compat import tree_map
from lightning_meta.viz import episode_gallery


class EpisodeGallery(Pictures):
    """Pictures `episode_0`, `episode_1`, ...: support and query images of test episodes with the predictions.

    For image classification; other tasks, such as texts, are skipped without a word.

    Args:
        episodes: how many test episodes.
    """

    def __init__(self, episodes: int = 2) -> None:
        super().__init__()
        self.episodes = episodes

    def draw(self, replay: Replay, log_dir: Path) -> None:
        tasks = replay.episodes(range(min(self.episodes, replay.datamodule.test_episodes)))
        if tasks.query.x.ndim != 5 or tasks.query.y.is_floating_point():
            return
        preds = replay.play(tasks).preds
        for index in range(len(preds)):
            support, query = tree_map(lambda leaf: leaf[index], tasks)  # noqa: B023 - used at once
            title = f"{replay.title}, test episode {index}"
            figure = episode_gallery(support, query, preds[index], title, replay.class_names(index))
            self.save(figure, f"episode_{index}", replay, log_dir)
