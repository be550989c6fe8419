"""Tip-Adapter: what the names of the classes say of an image, and what the support set says, added up.

Zhang, Zhang, Fang, Gao, Li, Dai, Qiao, Li: "Tip-Adapter: Training-free Adaption of CLIP for Few-shot Classification"
(2022), ECCV, arXiv:2207.09519; zero-shot classification by names is CLIP's (Radford et al. 2021, arXiv:2103.00020).

Both halves of an image-text model give vectors of one space. The cosine with the embedding of a class's name is its
zero-shot score. The support set is a cache: its features are keys and its labels values, which a query reads by how
near it is. In Tip-Adapter-F, with `steps`, the keys are tuned on the support set.

Deviations: keys are features of one view of an image, not means over ten distorted ones, and are tuned on these, by
Adam on the whole support set at a constant rate. The two factors are settings; the authors search them on a validation
set. If a network has to be trained first, that is Baseline's training.
"""

from typing import Any, NamedTuple

from torch import Tensor
from torch.nn import functional as F

from lightning_meta.backbones import Backbone
from lightning_meta.class_embeddings import ClassEmbeddings, read_class_embeddings
from lightning_meta.core import Adam, Batch, Params, unroll
from lightning_meta.core.prototypes import exclude_absent
from lightning_meta.datamodules.classification import ClassificationDataModule
from lightning_meta.errors import ConfigError
from lightning_meta.modules import PretrainedModule
from lightning_meta.modules.pretrained import Features


class Cache(NamedTuple):
    """Keys `(S, D)`, and as values their labels, one-hot `(S, C)`."""

    keys: Tensor
    values: Tensor


class TipAdapter(PretrainedModule[Cache]):
    """Logits are cosines with class embeddings, times a scale, and what the cache says, times a weight.

    Args:
        backbone, n_classes, features: of `PretrainedModule`.
        class_embeddings: a file with a row for each class, as wide as the features (see `class_embeddings.py`). Labels
            are then indices of classes, in validation and test too. None: the cache alone speaks.
        scale: of the cosines; CLIP's is 100.
        cache_weight: of the cache (the paper's alpha). 0 leaves the zero-shot classifier.
        sharpness: how near a key must be (beta).
        steps, inner_lr: of Adam on the keys; 0 steps train nothing.
        **kwargs: of `PretrainedModule`.
    """

    texts: Tensor | None

    def __init__(
        self,
        backbone: Backbone,
        n_classes: int | None = None,
        features: Features = "l2n",
        class_embeddings: str | None = None,
        scale: float = 100.0,
        cache_weight: float = 1.17,
        sharpness: float = 1.0,
        steps: int = 0,
        inner_lr: float = 0.001,
        **kwargs: Any,
    ) -> None:
        super().__init__(backbone, n_classes, features, **kwargs)
        self.scale, self.cache_weight, self.sharpness = scale, cache_weight, sharpness
        self.steps, self.inner_optimizer = steps, Adam(inner_lr, eps=1e-4)
        self.embeddings: ClassEmbeddings | None = None
        self.register_buffer("texts", None, persistent=False)  # from the file whenever it is made
        if class_embeddings is None:
            if cache_weight == 0:
                raise ConfigError(
                    "cache_weight=0 leaves the names of the classes; give their class_embeddings, a file."
                )
            return
        self.embeddings = read_class_embeddings(class_embeddings)
        self.needs = self.needs | {"test_class_labels"}
        self.texts = F.normalize(self.embeddings.rows, dim=1)
        if (width := self.texts.shape[1]) != self.backbone.out_features:
            raise ConfigError(
                f"class_embeddings={class_embeddings} has rows of width {width}, but the backbone gives "
                f"{self.backbone.out_features} features; give those of the same image-text model."
            )

    def name_classes(self, data: ClassificationDataModule, split: Any) -> None:
        """Bring the class embeddings into the order of the classes of a split."""
        if self.embeddings is not None and self.texts is not None:
            rows = self.embeddings.of(data.class_names(split), data.n_classes(split), split)
            self.texts = F.normalize(rows, dim=1).to(self.texts)

    def on_validation_start(self) -> None:
        super().on_validation_start()
        self._name_classes("val")

    def on_test_start(self) -> None:
        super().on_test_start()
        self._name_classes("test")

    def on_predict_start(self) -> None:
        super().on_predict_start()
        self._name_classes("test")

    def _name_classes(self, split: str) -> None:
        data = getattr(self.trainer, "datamodule", None)
        if isinstance(data, ClassificationDataModule):
            self.name_classes(data, split)

    def fit_head(self, support: Batch) -> Cache:
        labels = len(support.y) if self.texts is None else len(self.texts)
        values_SC = F.one_hot(support.y, labels).to(support.x.dtype)

        def loss(moved: Params) -> Tensor:
            return F.cross_entropy(self.scores(Cache(moved["keys"], values_SC), support.x), support.y)

        tuned = unroll(loss, {"keys": support.x}, self.inner_optimizer, self.steps, first_order=True)
        return Cache(tuned["keys"], values_SC)

    def scores(self, cache: Cache, query_QD: Tensor) -> Tensor:
        read_QS = (self.sharpness * (query_QD @ cache.keys.T - 1)).exp()
        logits_QC = self.cache_weight * (read_QS @ cache.values)
        if self.texts is not None:
            logits_QC = logits_QC + self.scale * query_QD @ self.texts.T
        return exclude_absent(logits_QC, cache.values.sum(0) > 0)
