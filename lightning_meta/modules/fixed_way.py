"""Algorithms that are built for one number of classes."""

from lightning_meta.core.episode import EpisodeShape, Split
from lightning_meta.errors import ConfigError
from lightning_meta.modules.episodic import Adapted, EpisodicModule


class FixedWayModule(EpisodicModule[Adapted]):
    """Base of algorithms with an output for each class of an episode, so that all splits have the same way.

    A subclass sets `self.n_way = self.required_way(n_way)` when it is made.
    """

    n_way: int

    def required_way(self, n_way: int | None) -> int:
        """The way; `ConfigError` where none was given. On the command line it follows `data.n_way`."""
        if n_way is None:
            raise ConfigError(f"{type(self).__name__} needs n_way, the number of its outputs: classes per episode.")
        return n_way

    def check_task(self, shape: EpisodeShape, split: Split) -> None:
        super().check_task(shape, split)
        if shape.n_way != self.n_way:
            raise ConfigError(
                f"{split} episodes are {shape.n_way}-way, but {type(self).__name__} has n_way={self.n_way} outputs; it "
                f"needs the same way everywhere: data.{split}.n_way {self.n_way}, and only this way in data.variable."
            )
