"""MetaASR: recognise the speech of a language, or a speaker, of which there is little, from a meta-learned start.

Hsu, Chen, Lee: "Meta Learning for End-to-End Low-Resource Speech Recognition" (2019), arXiv:1910.12094: MAML over
languages, with the loss of connectionist temporal classification.

Where the query sets have other speech than the support sets it is meta-transfer learning: Winata, Cahyawijaya, Lin,
Liu, Xu, Fung: "Meta-Transfer Learning for Code-Switched Speech Recognition" (2020), arXiv:2004.14228: inner steps on
speech of one kind, and the gradient of an outer step, on speech of another, where they have led. Which speech that is
the data say: see `SpeechDataModule`. The authors' code adds up the gradients at adapted weights and applies them to
the start, which is first order, as is the default here; the configs take second derivatives and learned rates.

Deviations: tasks are speakers, and symbols are words that all of them share. The recogniser is a small convolutional
network for both; that of meta-transfer learning is a Transformer, which writes symbol after symbol. Strings are read
off the likeliest path, without a beam search or a language model. The loss is in nats per symbol of a string, mean over
strings.

`inner_steps: 0` is what both papers compare with, one recogniser for everybody (multitask or joint training), which is
fine-tuned afterwards.
"""

from typing import Any

from torch import Tensor
from torch.func import functional_call

from lightning_meta.backbones import SpeechNet
from lightning_meta.core import Batch, Params, TaskOutput
from lightning_meta.core.ctc import BLANK, ctc_nats, read_off
from lightning_meta.core.episode import Split
from lightning_meta.datamodules.base import EpisodicDataModule
from lightning_meta.errors import ConfigError
from lightning_meta.metrics import EpisodicCharErrorRate, EpisodicMetric
from lightning_meta.modules import InnerLoopModule


class MetaASR(InnerLoopModule):
    """Adapt a recogniser to strings of a speaker and what they say; meta-learn where that starts.

    Args:
        backbone: the recogniser, all of which the inner loop moves.
        inner_lr: step size of the inner loop.
        inner_steps: adaptation steps in training; 0 trains one recogniser for all speakers.
        metric: None: `EpisodicCharErrorRate`.
        **kwargs: of `InnerLoopModule`. `first_order` is what the code of meta-transfer learning does.
    """

    backbone: SpeechNet

    def __init__(
        self,
        backbone: SpeechNet,
        inner_lr: float = 0.1,
        inner_steps: int = 3,
        metric: EpisodicMetric | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(backbone, inner_lr, inner_steps, metric=metric or EpisodicCharErrorRate(), **kwargs)

    def logits(self, params: Params, x: Tensor) -> Tensor:
        """Of the symbols in each step of time, `(Q, S, C)`."""
        return functional_call(self.backbone, params, (x,))

    def support_loss(self, params: Params, support: Batch) -> Tensor:
        return nats_per_symbol(self.logits(params, support.x), support.y)

    def query_loss(self, phi: Params, query: Batch) -> TaskOutput:
        logits_QSC = self.logits(phi, query.x)
        return TaskOutput(nats_per_symbol(logits_QSC, query.y), read_off(logits_QSC))

    def check_input(self, datamodule: EpisodicDataModule, split: Split) -> None:
        """Raise `ConfigError` when a split's episodes are no strings, or others than the recogniser's."""
        query, name, backbone = datamodule.dataset(split)[0].query, datamodule.name, self.backbone
        if not query.x.is_floating_point() or query.y.is_floating_point() or query.x.dim() != 3 or query.y.dim() != 2:
            raise ConfigError(
                f"{type(self).__name__} writes down sounds, rows of frames, but the examples of {name} are "
                f"{tuple(query.x.shape[1:])} and {tuple(query.y.shape[1:])}; take Babble or SpokenStrings."
            )
        frames, bands, symbols = *query.x.shape[1:], getattr(datamodule, "vocabulary", 0)
        if bands != backbone.bands or symbols > backbone.vocabulary:
            raise ConfigError(
                f"the backbone is for bands={backbone.bands} and vocabulary={backbone.vocabulary}, but {name} has "
                f"{bands} and {symbols}; take the data's."
            )
        longest = query.y.shape[1]
        if backbone.steps(frames) < 2 * longest - 1:
            raise ConfigError(
                f"{frames} frames are {backbone.steps(frames)} steps of stride={backbone.stride}, but {longest} equal "
                f"symbols take {2 * longest - 1}, with the blanks between them; lower model.backbone.stride or "
                "data.step."
            )


def nats_per_symbol(logits_QSC: Tensor, y_QL: Tensor) -> Tensor:
    """Mean over strings of their minus log-likelihoods, divided by their lengths."""
    return (ctc_nats(logits_QSC, y_QL) / (y_QL != BLANK).sum(-1).clamp_min(1)).mean()
