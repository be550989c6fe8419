"""Mixtures of sounds and the voices in them: what every separator by masks shares with the others."""

from typing import Any, TypeVar

import torch
from torch import Tensor

from lightning_meta.backbones.conv_tasnet import EPS, Filterbank, loudness
from lightning_meta.core import Batch, TaskOutput
from lightning_meta.core.episode import Split
from lightning_meta.core.sound import si_sdr, si_sdr_improvement, sounding
from lightning_meta.datamodules.base import EpisodicDataModule
from lightning_meta.errors import ConfigError, require_at_least
from lightning_meta.metrics import EpisodicMetric, EpisodicSISDRImprovement
from lightning_meta.modules.episodic import EpisodicModule

Adapted = TypeVar("Adapted")


class SeparationModule(EpisodicModule[Adapted]):
    """Base of learners that take mixtures `(B, L)` apart into their voices `(B, V, L)`. One writes `adapt`, `scores`.

    A support set has mixtures and voices, as a query set has. The masks of all voices add up to one. Shapes: `L`
    samples, `S` steps, `F` pairs of filters (see `Filterbank`).

    Args:
        voices: of a mixture.
        window: samples of a filter.
        metric: Default: improvement of the SI-SDR.
        **kwargs: of `EpisodicModule`.
    """

    def __init__(self, voices: int, window: int, metric: EpisodicMetric | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        require_at_least(2, voices=voices)
        self.measure_by(metric or EpisodicSISDRImprovement())
        self.voices, self.filters = voices, Filterbank(window)

    def scores(self, adapted: Adapted, magnitudes_QSF: Tensor) -> Tensor:
        """What masks are made from by a softmax over the voices, `(Q, V, S, F)`, of the magnitudes of mixtures."""
        raise NotImplementedError

    def query_loss(self, adapted: Adapted, query: Batch) -> TaskOutput:
        found_QVL = self.separate(adapted, query.x).to(query.x.dtype)
        there_QV = sounding(query.y).to(found_QVL.dtype)
        loss = -(si_sdr(found_QVL, query.y) * there_QV).sum() / there_QV.sum().clamp_min(1)
        better_QV = si_sdr_improvement(found_QVL.detach(), query.y) * there_QV
        better_V = better_QV.sum(0) / there_QV.sum(0).clamp_min(1)
        return TaskOutput(loss, found_QVL, {f"si_sdri_voice_{v + 1}": better_V[v] for v in range(self.voices)})

    def separate(self, adapted: Adapted, x_QL: Tensor) -> Tensor:
        """The voices `(Q, V, L)` of mixtures."""
        coefficients, level_Q1 = self.taken_apart(x_QL)
        masks_QVSF = self.scores(adapted, loudness(coefficients)).softmax(1)
        of_voices = coefficients[:, None] * masks_QVSF[..., None, :]
        return self.filters.decode(of_voices, x_QL.shape[-1]) * level_Q1[:, None]

    def taken_apart(self, x_BL: Tensor) -> tuple[Tensor, Tensor]:
        """Coefficients `(B, S, 2, F)` of sounds as they would be at a mean power of 1; and their levels `(B, 1)`."""
        level_B1 = (x_BL.square().mean(-1, keepdim=True) + EPS**2).sqrt()
        return self.filters.encode(x_BL / level_B1), level_B1

    def unknown_targets(self, x: Tensor, outputs: int) -> Tensor:
        return torch.zeros_like(x)[:, None].expand(-1, self.voices, -1)

    def check_input(self, datamodule: EpisodicDataModule, split: Split) -> None:
        super().check_input(datamodule, split)
        x, y = datamodule.dataset(split)[0].query
        if x.dim() != 2 or y.dim() != 3 or not y.is_floating_point():
            raise ConfigError(
                f"{type(self).__name__} takes mixtures apart into voices, but {datamodule.name} has inputs of the "
                f"shape {tuple(x.shape[1:])} and targets of {tuple(y.shape[1:])}; take data such as VoiceMixtures."
            )
        if y.shape[1] != self.voices:
            raise ConfigError(
                f"voices={self.voices}, but the mixtures of {datamodule.name} have {y.shape[1]} voices; set "
                f"model.voices to {y.shape[1]}."
            )
        if x.shape[-1] < self.filters.window:
            raise ConfigError(
                f"mixtures of {x.shape[-1]} samples are shorter than the window={self.filters.window} of a filter; "
                "lower model.window, or raise data.seconds."
            )
