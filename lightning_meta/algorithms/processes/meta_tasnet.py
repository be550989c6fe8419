"""Meta-TasNet: the network that extracts an instrument from a mixture is written by what the instrument is like.

Samuel, Ganeshan, Naradowsky: "Meta-learning Extractors for Music Source Separation" (2020), arXiv:2002.07016.

Encoder and decoder are shared (Conv-TasNet: Luo and Mesgarani 2019, arXiv:1809.07454); the weights of the network in
between come from an embedding of the instrument through a narrow bottleneck. Beside it stand the two that the paper
compares it with: a network for each instrument, and one that makes the masks of all.

Deviations: generated weights are added to shared ones (`GeneratedParams`), which the paper has not. There is one stage
at one sample rate, where the paper's has three; the loss is SI-SDR alone, without those of similarity and
reconstruction. Filters come in pairs and start as a Fourier transform (`backbones/conv_tasnet.py`). Beside the learned
embedding of each instrument there is one that is read from the support set, for instruments that were not trained on.
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lightning_meta.backbones.conv_tasnet import MaskNetwork, loudness
from lightning_meta.core import Batch, Params
from lightning_meta.core.generated import GeneratedParams
from lightning_meta.errors import require_at_least
from lightning_meta.modules import SeparationModule


class MetaTasNet(SeparationModule[Params]):
    """One network makes the mask of a voice, with weights that are generated for it.

    `adapt` returns the weights of all voices, with a leading axis `V`.

    Args:
        voices, window: of `SeparationModule`.
        channels, hidden, blocks, repeats: of the network, see `MaskNetwork`.
        embed: `support`: the embedding of a voice is read from how it sounds in the support set. `learned`: the first
            voice, the second and so on have one each, and the support set is not looked at.
        embedding: numbers of it.
        rank: of the bottleneck. With one less than there are voices, there are as many weights as `IndependentTasNet`
            has.
        **kwargs: of `SeparationModule`.
    """

    def __init__(
        self,
        voices: int = 4,
        window: int = 512,
        channels: int = 48,
        hidden: int = 96,
        blocks: int = 5,
        repeats: int = 2,
        embed: Literal["support", "learned"] = "support",
        embedding: int = 8,
        rank: int = 3,
        **kwargs: Any,
    ) -> None:
        super().__init__(voices, window, **kwargs)
        require_at_least(1, embedding=embedding, rank=rank)
        self.extractor = MaskNetwork(self.filters.pairs, channels, hidden, blocks, repeats)
        self.generated = GeneratedParams(dict(self.extractor.named_parameters()), embedding, rank)
        self.embed = embed
        if embed == "support":
            self.listener = Listener(self.filters.pairs, hidden, embedding)
        else:
            self.embeddings = nn.Parameter(torch.randn(voices, embedding))

    def adapt(self, support: Batch) -> Params:
        theta = dict(self.extractor.named_parameters())
        embeddings_VE = self.embeddings if self.embed == "learned" else self.heard(support.y)
        return torch.vmap(lambda embedding_E: self.generated(theta, embedding_E))(embeddings_VE)

    def heard(self, y_KVL: Tensor) -> Tensor:
        """Embeddings of voices `(V, E)`, the mean over the support set."""
        coefficients, _ = self.taken_apart(y_KVL.flatten(0, 1))
        return self.listener(loudness(coefficients)).unflatten(0, y_KVL.shape[:2]).mean(0)

    def scores(self, adapted: Params, magnitudes_QSF: Tensor) -> Tensor:
        def of_voice(params: Params) -> Tensor:
            return functional_call(self.extractor, params, (magnitudes_QSF,))

        return torch.vmap(of_voice, out_dims=1)(adapted)


class Listener(nn.Module):
    """Embeddings `(B, E)` of sounds by their magnitudes `(B, S, F)`, the mean over the steps."""

    def __init__(self, pairs: int, hidden: int, embedding: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(pairs, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU())
        self.out = nn.Linear(hidden, embedding)

    def forward(self, magnitudes_BSF: Tensor) -> Tensor:
        return self.out(self.layers(magnitudes_BSF).mean(-2))


class IndependentTasNet(SeparationModule[Params]):
    """A network for each voice, by its place: the first, the second and so on. The support set is not looked at.

    Args:
        voices, window: of `SeparationModule`.
        channels, hidden, blocks, repeats: of each network, see `MaskNetwork`.
        **kwargs: of `SeparationModule`.
    """

    def __init__(
        self,
        voices: int = 4,
        window: int = 512,
        channels: int = 48,
        hidden: int = 96,
        blocks: int = 5,
        repeats: int = 2,
        **kwargs: Any,
    ) -> None:
        super().__init__(voices, window, **kwargs)
        sizes = (self.filters.pairs, channels, hidden, blocks, repeats)
        self.extractors = nn.ModuleList(MaskNetwork(*sizes) for _ in range(voices))

    def adapt(self, support: Batch) -> Params:
        return {}

    def scores(self, adapted: Params, magnitudes_QSF: Tensor) -> Tensor:
        return torch.stack([extractor(magnitudes_QSF) for extractor in self.extractors], 1)


class MultiTaskTasNet(SeparationModule[Params]):
    """One network makes the masks of all voices, by their places. The support set is not looked at.

    Args:
        voices, window: of `SeparationModule`.
        channels, hidden, blocks, repeats: of the network, see `MaskNetwork`. It has the default size of `MetaTasNet`.
        **kwargs: of `SeparationModule`.
    """

    def __init__(
        self,
        voices: int = 4,
        window: int = 512,
        channels: int = 96,
        hidden: int = 192,
        blocks: int = 5,
        repeats: int = 2,
        **kwargs: Any,
    ) -> None:
        super().__init__(voices, window, **kwargs)
        self.extractor = MaskNetwork(self.filters.pairs, channels, hidden, blocks, repeats, voices)

    def adapt(self, support: Batch) -> Params:
        return {}

    def scores(self, adapted: Params, magnitudes_QSF: Tensor) -> Tensor:
        return self.extractor(magnitudes_QSF).unflatten(-1, (self.voices, -1)).movedim(-2, 1)
