"""Algorithms that learn to name the classes of meta-training, with a linear classifier of features."""

from typing import Any, Generic

from torch import Tensor, nn

from lightning_meta.backbones.base import Backbone
from lightning_meta.datamodules.classification import ClassificationDataModule
from lightning_meta.errors import ConfigError
from lightning_meta.modules.embedding import EmbeddingModule, Head


class NamingModule(EmbeddingModule[Head], Generic[Head]):
    """Base of them. The labels of training episodes are the indices of their classes.

    Args:
        backbone: feature extractor.
        n_classes: of meta-training. None: as many as the datamodule has.
        **kwargs: of `EmbeddingModule`.
    """

    needs = frozenset({"class_labels"})
    backbone: Backbone
    bias = True  # of the classifier

    def __init__(self, backbone: Backbone, n_classes: int | None = None, **kwargs: Any) -> None:
        super().__init__(backbone, **kwargs)
        self.classifier: nn.Linear | None = None if n_classes is None else self.new_classifier(n_classes)

    @property
    def classified_features(self) -> int:
        """How many features the classifier reads."""
        return self.backbone.out_features

    def new_classifier(self, n_classes: int) -> nn.Linear:
        return nn.Linear(self.classified_features, n_classes, self.bias, device=self.device, dtype=self.dtype)

    @property
    def trained_classifier(self) -> nn.Linear:
        """Raises `ConfigError` where there is none yet."""
        if self.classifier is None:
            raise ConfigError(f"{type(self).__name__} has no classifier to train yet; pass n_classes.")
        return self.classifier

    def class_logits(self, features_BD: Tensor) -> Tensor:
        """Scores of the training classes, by the classifier."""
        return self.trained_classifier(features_BD)

    def setup(self, stage: str) -> None:
        if stage == "fit":
            self._follow_classes()
        super().setup(stage)

    def _follow_classes(self) -> None:
        """Before training, make the classifier for their classes."""
        datamodule = getattr(self.trainer, "datamodule", None)
        if not isinstance(datamodule, ClassificationDataModule):
            raise ConfigError(
                f"{type(self).__name__} is trained to name classes, but {type(datamodule).__name__} has none; take a "
                "ClassificationDataModule, such as Omniglot."
            )
        n_classes = datamodule.n_classes("train")
        if self.classifier is None:
            self.classifier = self.new_classifier(n_classes)
        if self.classifier.out_features != n_classes:
            raise ConfigError(
                f"the classifier has n_classes={self.classifier.out_features}, but meta-training has {n_classes} "
                "classes; leave n_classes out to follow the data."
            )

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """A module that was not trained in this process has no classifier for the weights of the checkpoint."""
        if self.another(checkpoint):
            self.classifier = None
        super().on_load_checkpoint(checkpoint)
        saved = checkpoint["state_dict"]
        if self.classifier is None and "classifier.weight" in saved:
            self.classifier = self.new_classifier(len(saved["classifier.weight"]))
