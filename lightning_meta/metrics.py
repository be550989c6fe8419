"""Metrics over EPISODES: mean and 95 % confidence interval of one value each, exact on any number of ranks."""

import math
from collections.abc import Callable
from typing import Any, Literal, Self

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric

from lightning_meta.core import mean_and_ci95
from lightning_meta.core.ctc import BLANK, edit_distances
from lightning_meta.core.gaussian import Gaussian, log_density
from lightning_meta.core.sentences import words_of
from lightning_meta.core.sound import si_sdr, si_sdr_improvement, sounding
from lightning_meta.core.tags import spans_of
from lightning_meta.core.tokenizer import PAD
from lightning_meta.extras import need


class EpisodicMetric(Metric):
    """Mean over episodes. Holds sums in float64, so that ranks of any size add up to the same result.

    The sums follow the module to its device, but never to its precision: in bfloat16 a sum of accuracies stops growing
    after a few hundred episodes.

    A subclass sets `name`, `mode` (whether larger is better) and `per_episode`, and how its values are written.
    """

    full_state_update = False
    name: str
    mode: Literal["min", "max"]
    scale, unit, digits = 1, "", 4  # of a value in words
    companions: "tuple[type[EpisodicMetric], ...]" = ()  # what is logged beside it in validation and test
    total: Tensor
    total_of_squares: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        for state in ("total", "total_of_squares", "count"):
            self.add_state(state, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> Self:
        """What moves or converts a module calls this."""
        super()._apply(lambda tensor: tensor.to(fn(tensor.new_empty(0)).device), *args, **kwargs)
        return self

    @staticmethod
    def per_episode(preds: Tensor, targets: Tensor) -> Tensor:
        """One value for each of T episodes from their predictions `(T, Q, ...)` and targets `(T, Q, ...)`."""
        raise NotImplementedError

    @staticmethod
    def unknown_targets(x: Tensor, outputs: int) -> Tensor:
        """Targets `(Q, ...)` of inputs `(Q, ...)` where none are known; of regression, so many `outputs` of each."""
        return x.new_zeros(x.shape[0], outputs)  # from the shape, which torch.export can follow

    def update(self, values: Tensor) -> None:
        """Add episodes by their values `(T,)`."""
        values = values.detach().double()
        self.total += values.sum()
        self.total_of_squares += values.square().sum()
        self.count += values.numel()

    def compute(self) -> tuple[Tensor, Tensor]:
        """Mean and half-width of the 95 % confidence interval."""
        return mean_and_ci95(self.total, self.total_of_squares, self.count)

    @classmethod
    def number(cls, mean: float, ci95: float | None = None) -> str:
        """A value, with half of its interval, in the metric's unit: `89.76 ± 0.58`

        With more digits where the smaller one would read as zero. One episode alone has no interval.
        """
        known = [mean] if ci95 is None or math.isnan(ci95) else [mean, ci95]
        values = [cls.scale * value for value in known]
        places = [-math.floor(math.log10(abs(value))) for value in values if value and math.isfinite(value)]
        digits = max([cls.digits, *places])
        return " ± ".join(f"{value:.{digits}f}" for value in values)

    @classmethod
    def text(cls, mean: float, ci95: float | None = None) -> str:
        """The same with the unit: `89.76 ± 0.58 %`"""
        return f"{cls.number(mean, ci95)} {cls.unit}".rstrip()

    @classmethod
    def label(cls, name: str) -> str:
        """A name with the unit, for columns and axes: `acc (%)`"""
        return f"{name} ({cls.unit})" if cls.unit else name


class EpisodicMean(EpisodicMetric):
    """Mean of a value that the hooks return: the query loss, or what they log."""

    name, mode = "loss", "min"


class FinalLoss(EpisodicMetric):
    """Loss of an optimizee at the end of its optimization."""

    name, mode = "final_loss", "min"


class EpisodicAccuracy(EpisodicMetric):
    """Share of query examples whose class is predicted, per episode."""

    name, mode = "acc", "max"
    scale, unit, digits = 100, "%", 2

    @staticmethod
    def per_episode(preds: Tensor, targets: Tensor) -> Tensor:
        return (preds.argmax(-1) == targets).double().mean(-1)

    @staticmethod
    def unknown_targets(x: Tensor, outputs: int) -> Tensor:
        return x.new_zeros(x.shape[0], dtype=torch.long)


class EpisodicR2(EpisodicMetric):
    """Coefficient of determination of the query predictions, per episode: 1 - squared error / variance of the targets.

    The variance is that of the episode's own query targets: 0 is as good as their mean, which nobody is told. Where
    they are all equal, it is 1 for predictions without an error and 0 for others, as in scikit-learn.
    """

    name, mode = "r2", "max"

    @staticmethod
    def per_episode(preds: Tensor, targets: Tensor) -> Tensor:
        preds, targets = preds.double().flatten(1), targets.double().flatten(1)
        error = (preds - targets).square().sum(1)
        variance = (targets - targets.mean(1, keepdim=True)).square().sum(1)
        return torch.where(variance > 0, 1 - error / variance, (error == 0).double())


class EpisodicMSE(EpisodicMetric):
    """Mean squared error of the query predictions, per episode."""

    name, mode = "mse", "min"
    companions = (EpisodicR2,)

    @staticmethod
    def per_episode(preds: Tensor, targets: Tensor) -> Tensor:
        return (preds.double() - targets.double()).square().flatten(1).mean(-1)


class EpisodicNDCG1(EpisodicMetric):
    """Normalised discounted cumulative gain of the query rated highest; see `ndcg`."""

    name, mode, places = "ndcg_1", "max", 1

    @classmethod
    def per_episode(cls, preds: Tensor, targets: Tensor) -> Tensor:
        return ndcg(preds, targets, cls.places)


class EpisodicNDCG3(EpisodicNDCG1):
    """Normalised discounted cumulative gain of the three queries rated highest; see `ndcg`."""

    name, places = "ndcg_3", 3


class EpisodicMAE(EpisodicMetric):
    """Mean absolute error of the query predictions, per episode; of ratings."""

    name, mode = "mae", "min"
    companions = (EpisodicMSE, EpisodicNDCG1, EpisodicNDCG3)

    @staticmethod
    def per_episode(preds: Tensor, targets: Tensor) -> Tensor:
        return (preds.double() - targets.double()).abs().flatten(1).mean(-1)


def ndcg(preds: Tensor, targets: Tensor, places: int) -> Tensor:
    """Gain of the queries `(T, Q, 1)` in the order of their predictions, by that in the order of their ratings, `(T,)`.

    A rating r gains `2^r - 1`, and nothing below 0; place p counts `1 / log2(1 + p)`, up to `places`. Predictions that
    are equal share the mean of their gains: the expectation over their orders. Without any gain it is 0.
    """
    preds_TQ, gains_TQ = preds.double().flatten(1), (2 ** targets.double().flatten(1).clamp_min(0)) - 1
    equal_TQQ = (preds_TQ[:, :, None] == preds_TQ[:, None]).double()
    shared_TQ = (equal_TQQ @ gains_TQ[..., None])[..., 0] / equal_TQQ.sum(-1)
    found_TQ = shared_TQ.gather(1, preds_TQ.argsort(dim=1, descending=True))[:, :places]
    best_TQ = gains_TQ.sort(dim=1, descending=True).values[:, :places]
    discounts = 1 / torch.arange(2, 2 + best_TQ.shape[1], device=preds.device, dtype=preds_TQ.dtype).log2()
    ideal_T = best_TQ @ discounts
    return torch.where(ideal_T > 0, found_TQ @ discounts / torch.where(ideal_T > 0, ideal_T, 1), 0)


def hits(preds: Tensor, targets: Tensor, places: int) -> Tensor:
    """Share of the queries whose true candidate is among the first `places`, per episode; see `ranks`."""
    return (ranks(preds, targets) <= places).double().mean(-1)


def ranks(preds: Tensor, targets: Tensor) -> Tensor:
    """Place of the true candidate of each query, `(T, Q)`: 1 is the best; of equal scores, the middle.

    Predictions are scores `(T, Q, C)`, targets the true candidates `(T, Q)`.
    """
    preds = preds.double()
    true_TQ1 = preds.gather(-1, targets[..., None])
    return 1 + (preds > true_TQ1).sum(-1).double() + ((preds == true_TQ1).sum(-1) - 1) / 2


class EpisodicHits1(EpisodicMetric):
    """Share of the queries whose true candidate has the best score, per episode."""

    name, mode, places = "hits_1", "max", 1
    scale, unit, digits = 100, "%", 2

    @classmethod
    def per_episode(cls, preds: Tensor, targets: Tensor) -> Tensor:
        return hits(preds, targets, cls.places)


class EpisodicHits5(EpisodicHits1):
    """Share of the queries whose true candidate is among the best five, per episode."""

    name, places = "hits_5", 5


class EpisodicHits10(EpisodicHits1):
    """Share of the queries whose true candidate is among the best ten, per episode."""

    name, places = "hits_10", 10


class EpisodicMRR(EpisodicMetric):
    """Mean reciprocal rank of the true candidates among all, per episode; see `ranks`."""

    name, mode = "mrr", "max"
    companions = (EpisodicHits1, EpisodicHits5, EpisodicHits10)

    @staticmethod
    def per_episode(preds: Tensor, targets: Tensor) -> Tensor:
        return (1 / ranks(preds, targets)).mean(-1)

    @staticmethod
    def unknown_targets(x: Tensor, outputs: int) -> Tensor:
        return x.new_zeros(x.shape[0], dtype=torch.long)


class EpisodicLogLikelihood(EpisodicMetric):
    """Mean log-density of the query points under normal predictions, in nats per point, per episode.

    Predictions are `(T, Q, Y, 2)`: mean and standard deviation of each of Y numbers, of which a point is made.
    """

    name, mode = "log_likelihood", "max"

    @staticmethod
    def per_episode(preds: Tensor, targets: Tensor) -> Tensor:
        prediction = Gaussian(*preds.double().unbind(-1))
        return log_density(targets.double(), prediction).sum(-1).mean(-1)


class EpisodicSISDR(EpisodicMetric):
    """Scale-invariant signal-to-distortion ratio, mean over the voices of an episode's mixtures that are not silent.

    Predictions and targets are `(T, Q, V, L)`.
    """

    name, mode = "si_sdr", "max"
    unit, digits = "dB", 2

    @staticmethod
    def per_episode(preds: Tensor, targets: Tensor) -> Tensor:
        return _mean_where(sounding(targets), si_sdr(preds.double(), targets.double()))


class EpisodicSISDRImprovement(EpisodicMetric):
    """By how much the SI-SDR of the predicted voices is better than that of the mixture, which is their sum."""

    name, mode = "si_sdri", "max"
    unit, digits = "dB", 2
    companions = (EpisodicSISDR,)

    @staticmethod
    def per_episode(preds: Tensor, targets: Tensor) -> Tensor:
        return _mean_where(sounding(targets), si_sdr_improvement(preds.double(), targets.double()))


def _mean_where(there: Tensor, values: Tensor) -> Tensor:
    """Of each episode, `(T,)`."""
    there, values = there.flatten(1), values.flatten(1)
    return torch.where(there, values, 0).sum(1) / there.sum(1).clamp_min(1)


class EpisodicNatsPerToken(EpisodicMetric):
    """Minus the logarithm of the probability of a query's next token, mean over the tokens of an episode.

    Predictions are logits `(T, Q, L, V)`, targets ids `(T, Q, L)`; padding does not count.
    """

    name, mode = "nats_per_token", "min"
    unit, digits = "nats per token", 3

    @staticmethod
    def per_episode(preds: Tensor, targets: Tensor) -> Tensor:
        nats_TQL = -preds.double().log_softmax(-1).gather(-1, targets[..., None])[..., 0]
        return _mean_where(targets != PAD, nats_TQL)

    @staticmethod
    def unknown_targets(x: Tensor, outputs: int) -> Tensor:
        return torch.full_like(x, PAD)


class EpisodicNats(EpisodicMetric):
    """Minus the logarithm of the likelihood of a query image, given the support images of its class.

    Predictions are log-likelihoods `(T, Q, C)` under each class. The largest of them names a class, by Bayes' rule.
    """

    name, mode = "nats", "min"
    unit, digits = "nats per image", 2
    companions = (EpisodicAccuracy,)

    @staticmethod
    def per_episode(preds: Tensor, targets: Tensor) -> Tensor:
        return -preds.double().gather(-1, targets[..., None])[..., 0].mean(-1)


class Return(EpisodicMetric):
    """Sum of the rewards of a trajectory, mean over those of a task. Predictions are the sums `(T, B)`."""

    name, mode, digits = "return", "max", 2

    @staticmethod
    def per_episode(preds: Tensor, targets: Tensor) -> Tensor:
        return preds.double().mean(-1)


class EpisodicIoU(EpisodicMetric):
    """Intersection over union of the predicted and the true pixels of a class, over the queries of an episode.

    Mean over the classes that there are, without the background. Predictions are logits `(T, Q, H, W, C)`, targets
    `(T, Q, H, W)`: 0 is the background.
    """

    name, mode = "iou", "max"
    scale, unit, digits = 100, "%", 2

    @staticmethod
    def per_episode(preds: Tensor, targets: Tensor) -> Tensor:
        classes_C = torch.arange(1, preds.shape[-1], device=preds.device)
        found_TXC = preds.argmax(-1).flatten(1)[..., None] == classes_C
        true_TXC = targets.flatten(1)[..., None] == classes_C
        both_TC = (found_TXC & true_TXC).sum(1).double()
        either_TC = (found_TXC | true_TXC).sum(1).clamp_min(1)
        there_TC = true_TXC.any(1)
        return (both_TC / either_TC * there_TC).sum(1) / there_TC.sum(1).clamp_min(1)


class EpisodicAveragePrecision(EpisodicMetric):
    """Average precision of detections, mean over the classes that there are in the queries of an episode.

    A detection is right if it overlaps an object of its class, which no better one has, by half of their union or more.
    Precision is the best at this recall or a larger one, as in PASCAL VOC since 2010. Predictions are
    `(T, Q, M, 6)`: label, score, top, left, bottom, right; targets `(T, Q, O, 5)`: the same without the score, of the
    label -1 where there is no object.
    """

    name, mode = "ap50", "max"
    scale, unit, digits = 100, "%", 2

    @staticmethod
    def per_episode(preds: Tensor, targets: Tensor) -> Tensor:
        hits_TX = _matched(preds.detach().double(), targets.double()).flatten(1)
        labels_TX, scores_TX = preds[..., 0].flatten(1), preds[..., 1].detach().flatten(1)
        rank_TX = scores_TX.argsort(dim=1, descending=True, stable=True).argsort(1)
        alike_TXX = (labels_TX[:, :, None] == labels_TX[:, None]) & (scores_TX > 0)[:, None]
        before_TXX = alike_TXX & (rank_TX[:, None] <= rank_TX[:, :, None])  # [x, y]: y is no later than x
        precision_TX = (before_TXX * hits_TX[:, None]).sum(2) / before_TXX.sum(2).clamp_min(1)
        later_TXX = alike_TXX & (rank_TX[:, None] >= rank_TX[:, :, None])
        best_TX = torch.where(later_TXX, precision_TX[:, None], 0).amax(2)
        objects_TY = targets[..., 0].flatten(1)
        there_TY = objects_TY >= 0
        of_class_TX = ((labels_TX[:, :, None] == objects_TY[:, None]) & there_TY[:, None]).sum(2).clamp_min(1)
        of_class_TY = ((objects_TY[:, :, None] == objects_TY[:, None]) & there_TY[:, None]).sum(2).clamp_min(1)
        classes_T = (there_TY / of_class_TY).sum(1)
        return (best_TX * hits_TX / of_class_TX).sum(1) / classes_T.clamp_min(1)


class EpisodicSpanF1(EpisodicMetric):
    """F1 of the spans of all query sentences of an episode: twice the right ones over those found and true.

    A span is right where a true one of its entity has the same words. Predictions are logits of tags `(T, Q, L, C)`,
    targets tags `(T, Q, L)` as in `core.tags`. Equal to seqeval's `f1_score` on the same tags.
    """

    name, mode = "span_f1", "max"
    scale, unit, digits = 100, "%", 2

    @staticmethod
    def per_episode(preds: Tensor, targets: Tensor) -> Tensor:
        found, true = spans_of(preds.argmax(-1).where(targets >= 0, 0)), spans_of(targets)
        right = found.begins & true.begins & (found.entity == true.entity) & (found.end == true.end)
        right_T, found_T, true_T = (where.sum((1, 2)).double() for where in (right, found.begins, true.begins))
        return 2 * right_T / (found_T + true_T).clamp_min(1)

    @staticmethod
    def unknown_targets(x: Tensor, outputs: int) -> Tensor:
        return x.new_zeros(x.shape[:2], dtype=torch.long)


class EpisodicWordAccuracy(EpisodicMetric):
    """Share of the words of the true translations, and of their ends, that stand at their places, per episode.

    Predictions `(T, Q, L)` and targets `(T, Q, M)` are ids, with padding after the end.
    """

    name, mode = "word_acc", "max"
    scale, unit, digits = 100, "%", 2

    @staticmethod
    def per_episode(preds: Tensor, targets: Tensor) -> Tensor:
        missing = max(targets.shape[-1] - preds.shape[-1], 0)
        preds = F.pad(preds, (0, missing), value=PAD)[..., : targets.shape[-1]]
        written = targets != PAD
        return ((preds == targets) & written).sum((1, 2)).double() / written.sum((1, 2)).clamp_min(1)


class EpisodicBLEU(EpisodicMetric):
    """BLEU of the query sentences of an episode together, by sacrebleu: Post (2018), arXiv:1804.08771.

    Words are ids, so its tokenisation is `none`: the signature is `nrefs:1|case:mixed|eff:no|tok:none|smooth:exp`. What
    stands for unknown words is never right. Predictions and targets are those of `EpisodicWordAccuracy`.
    """

    name, mode, digits = "bleu", "max", 2
    companions = (EpisodicWordAccuracy,)

    def __init__(self) -> None:
        super().__init__()
        need("sacrebleu", "EpisodicBLEU")

    @staticmethod
    def per_episode(preds: Tensor, targets: Tensor) -> Tensor:
        bleu = need("sacrebleu", "EpisodicBLEU").BLEU(tokenize="none", force=True)
        scores = [
            bleu.corpus_score(words_of(found), [words_of(true, unknown="??")]).score
            for found, true in zip(preds, targets, strict=True)
        ]
        return torch.tensor(scores, dtype=torch.float64, device=preds.device)


class EpisodicCharErrorRate(EpisodicMetric):
    """Insertions, deletions and substitutions that make the true strings of an episode, per symbol of those together.

    Predictions `(T, Q, S)` and targets `(T, Q, L)` are numbers of symbols, with padding of 0 after them.
    """

    name, mode = "cer", "min"
    scale, unit, digits = 100, "%", 2

    @staticmethod
    def per_episode(preds: Tensor, targets: Tensor) -> Tensor:
        return edit_distances(preds, targets).sum(-1).double() / (targets != BLANK).sum((-2, -1))

    @staticmethod
    def unknown_targets(x: Tensor, outputs: int) -> Tensor:
        return x.new_ones(x.shape[0], 1, dtype=torch.long)


def _matched(preds_TQM6: Tensor, targets_TQO5: Tensor) -> Tensor:
    """Which detections are right `(T, Q, M)`: in each image the best come first, and take the object away."""
    order_TQM = preds_TQM6[..., 1].argsort(dim=-1, descending=True, stable=True)
    ranked = preds_TQM6.gather(2, order_TQM[..., None].expand_as(preds_TQM6))
    same = (ranked[..., :1] == targets_TQO5[..., None, :, 0]) & (ranked[..., :1] >= 0) & (ranked[..., 1:2] > 0)
    overlaps_TQMO = torch.where(same, box_overlaps(ranked[..., 2:], targets_TQO5[..., 1:]), 0)
    free_TQO = torch.ones_like(targets_TQO5[..., 0])
    hits = []
    for place in range(ranked.shape[2]):
        best_TQ, object_TQ = (overlaps_TQMO[:, :, place] * free_TQO).max(-1)
        hits.append(best_TQ >= 0.5)
        free_TQO = free_TQO.scatter(
            -1, object_TQ[..., None], free_TQO.gather(-1, object_TQ[..., None]) * ~hits[-1][..., None]
        )
    return torch.stack(hits, -1).gather(-1, order_TQM.argsort(-1)).double()


def box_overlaps(a_M4: Tensor, b_O4: Tensor) -> Tensor:
    """Intersection over union of boxes `(..., M, O)`; top, left, bottom, right."""
    low = torch.maximum(a_M4[..., :, None, :2], b_O4[..., None, :, :2])
    high = torch.minimum(a_M4[..., :, None, 2:], b_O4[..., None, :, 2:])
    common = (high - low).clamp_min(0).prod(-1)
    sizes = [(boxes[..., 2:] - boxes[..., :2]).clamp_min(0).prod(-1) for boxes in (a_M4, b_O4)]
    either = sizes[0][..., :, None] + sizes[1][..., None, :] - common
    return torch.where(either > 0, common / torch.where(either > 0, either, 1), 0)


def metric_of(name: str) -> type[EpisodicMetric]:
    """How values are written that a file of results has by this name: a metric's, or those of parts, such as `mse_5`,
    or sums, such as `total_return`.

    Those of a metric of somebody else are written as plain numbers.
    """
    part = f"{name.removeprefix('total_')}_"
    known = (cls for cls in EpisodicMetric.__subclasses__() if part.startswith(f"{cls.name}_"))
    return max(known, key=lambda cls: len(cls.name), default=EpisodicMetric)
