"""Meta-NMT: translate a language of which there are few sentences, from a start that many other languages have taught.

Gu, Wang, Chen, Cho, Li: "Meta-Learning for Low-Resource Neural Machine Translation" (2018), arXiv:1808.08437: MAML over
source languages that are translated into one target language, of first order, with Adam in the inner loop
(equations 3 and 4).

Deviations: a language's vectors of words are those that all share plus a residual of its own, which is zero when
adaptation starts; the paper mixes the shared ones from a universal table by keys that are vectors learned on much text
of the language, which these tasks do not have. An inner step reads the whole support set, and losses are means over
words; translations are read off greedily, not by beam search.

`inner_steps: 0` is the paper's MultiNMT: one translator for all languages, that is fine-tuned on the one in question.
"""

from collections.abc import Callable
from typing import Any, Literal

from torch import Tensor
from torch.func import functional_call

from lightning_meta.backbones import Translator
from lightning_meta.core import Adam, Batch, InnerOptimizer, Params, TaskOutput
from lightning_meta.core.episode import Split
from lightning_meta.core.sentences import END, nats_per_token
from lightning_meta.datamodules.base import EpisodicDataModule
from lightning_meta.errors import ConfigError
from lightning_meta.metrics import EpisodicBLEU, EpisodicMetric
from lightning_meta.modules import InnerLoopModule

Moved = Literal["embeddings", "encoder", "all"]
# Beginnings of the names of the parameters of the translator.
MOVED: dict[Moved, tuple[str, ...]] = {
    "embeddings": ("source.",),
    "encoder": ("source.", "encoder."),
    "all": ("",),
}


class MetaNMT(InnerLoopModule):
    """Adapt a translator to the sentence pairs of one language; meta-learn where that starts.

    Args:
        backbone: the translator.
        inner_lr: step size of the inner loop.
        inner_steps: adaptation steps in training; 0 trains one translator for all languages.
        moves: what the inner loop moves: `embeddings` of the words of the source language;
            these and the `encoder`; or `all`, as the paper has it (Emb, Emb + Enc, All).
        inner_optimizer: makes the inner optimizer from the step size. None: `Adam`.
        metric: None: `EpisodicBLEU`, which needs sacrebleu.
        **kwargs: of `InnerLoopModule`. `first_order` is what the paper does.
    """

    backbone: Translator

    def __init__(
        self,
        backbone: Translator,
        inner_lr: float = 0.01,
        inner_steps: int = 5,
        moves: Moved = "encoder",
        inner_optimizer: Callable[[float], InnerOptimizer] | None = None,
        metric: EpisodicMetric | None = None,
        **kwargs: Any,
    ) -> None:
        if moves not in MOVED:
            raise ConfigError(f"moves={moves} must be one of {', '.join(MOVED)}.")
        super().__init__(
            backbone,
            inner_lr,
            inner_steps,
            inner_optimizer=inner_optimizer or Adam,
            moved=MOVED[moves],
            metric=metric or EpisodicBLEU(),
            **kwargs,
        )

    def logits(self, params: Params, batch: Batch) -> Tensor:
        """Of each word of the translations, where those before it are known: `(Q, L, V)`."""
        return functional_call(self.backbone, params, (batch.x, batch.y))

    def support_loss(self, params: Params, support: Batch) -> Tensor:
        return nats_per_token(self.logits(params, support), support.y)

    def query_loss(self, phi: Params, query: Batch) -> TaskOutput:
        """In evaluation the predictions are translations, made without a look at the true ones."""
        logits_QLV = self.logits(phi, query)
        preds_QL = logits_QLV.argmax(-1) if self.training else functional_call(self.backbone, phi, (query.x,))
        return TaskOutput(nats_per_token(logits_QLV, query.y), preds_QL)

    def unknown_targets(self, x: Tensor, outputs: int) -> Tensor:
        """As long as a translation may be."""
        return x.new_full((x.shape[0], self.backbone.length), END)

    def check_input(self, datamodule: EpisodicDataModule, split: Split) -> None:
        """Raise `ConfigError` when a split's episodes are no sentences, or others than the translator's."""
        query, name = datamodule.dataset(split)[0].query, datamodule.name
        if query.x.is_floating_point() or query.y.is_floating_point() or query.x.dim() != 2 or query.y.dim() != 2:
            raise ConfigError(
                f"{type(self).__name__} translates sentences, rows of token ids, but the examples of {name} are "
                f"{tuple(query.x.shape[1:])} and {tuple(query.y.shape[1:])}; take Ciphers or ParallelText."
            )
        longest, ids = max(query.x.shape[1], query.y.shape[1]), getattr(datamodule, "vocabulary", 0)
        if longest > self.backbone.length or ids > self.backbone.vocabulary:
            raise ConfigError(
                f"the backbone is for length={self.backbone.length} and vocabulary={self.backbone.vocabulary}, but "
                f"{name} has rows of {longest} and {ids} ids; take the data's."
            )
