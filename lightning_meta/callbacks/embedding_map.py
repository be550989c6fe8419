"""How does the embedding arrange the classes of an episode?"""

from pathlib import Path

from torch import Tensor, nn

from lightning_meta.callbacks.calibration import is_classifier
from lightning_meta.callbacks.pictures import Pictures
from lightning_meta.callbacks.replay import Replay
from lightning_meta.compat import tree_map
from lightning_meta.core import Batch
from lightning_meta.viz import embedding_map


class EmbeddingMap(Pictures):
    """Picture `embedding`: support and query features of a test episode and the class means, in two dimensions.

    For classifiers that compare features: those whose `backbone`, with its meta-trained weights, embeds the support set
    in `adapt` and the query set in `query_loss` (ProtoNet and its relatives, ANIL, Baseline). Where adaptation changes
    the backbone (MAML), nothing is drawn. Features are those that the hooks compute, with their normalisation.

    Args:
        episode: which test episode.
    """

    def __init__(self, episode: int = 0) -> None:
        super().__init__()
        self.episode = episode

    def draw(self, replay: Replay, log_dir: Path) -> None:
        module = replay.module
        backbone = getattr(module, "backbone", None)
        if not isinstance(backbone, nn.Module) or not is_classifier(module):
            return
        trained = [id(parameter) for parameter in backbone.parameters()]
        embedded: list[Tensor] = []

        def keep(network: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
            if [id(parameter) for parameter in network.parameters()] == trained:
                embedded.append(output.flatten(1))

        support, query = tree_map(lambda leaf: leaf[0], replay.episodes([self.episode]))
        with replay.trainer.precision_plugin.test_step_context(), backbone.register_forward_hook(keep):
            with module.adapt_precision():
                adapted = module.adapt(support)
            n_adapt = len(embedded)
            preds = module.query_loss(adapted, query).preds
        features = [parts[-1] for parts in (embedded[:n_adapt], embedded[n_adapt:]) if parts]
        if [len(part) for part in features] != [len(support.y), len(query.y)]:
            return
        title = f"{replay.title}, test episode {self.episode}"
        sides = Batch(features[0], support.y), Batch(features[1], query.y)
        figure = embedding_map(*sides, preds, title, replay.class_names(self.episode))
        self.save(figure, "embedding", replay, log_dir)
