"""Active learning: which examples are worth a label, chosen a few at a time; GLISTER beside entropy and chance.

Killamsetty, Sivasubramanian, Ramakrishnan, Iyer: "GLISTER: Generalization based Data Subset Selection for Efficient and
Robust Learning" (2021), arXiv:2012.10630, with predicted labels in place of unknown ones (its GLISTER-Active).

An outer step is a round: the network of the round before chooses the examples that are labelled next, and another one
is trained from its beginning on the labels there are then. GLISTER takes, one by one, the example whose gradient step
lowers the loss of judge examples most, by `gains`, and takes that step before it looks for the next one. `entropy`
takes those that the network is least sure of.

Deviations: each step is looked for among all examples, by its first-order gain, where the paper also offers faster
approximations. The gradient is that of all weights; the authors' code takes the last layer's.
"""

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.func import grad

from lightning_meta.algorithms.bilevel.learning_to_reweight import gains
from lightning_meta.backbones import Backbone
from lightning_meta.core import Batch, Params, Progress
from lightning_meta.core.initial_weights import initial_weights
from lightning_meta.core.sampling import choose, subkeys, uniform
from lightning_meta.datamodules.bilevel.trials import BilevelDataModule, Trial
from lightning_meta.errors import ConfigError, require_at_least
from lightning_meta.modules.bilevel import BilevelModule

FIRST, CHANCE = 2**20, 2**21  # indices of a training's key: of its first labels, and of its choices from there on


class ActiveLearning(BilevelModule):
    """Chooses what is labelled of the examples to learn from; nothing but this choice is carried on.

    Shapes: `E` examples to learn from, `L` labels at the end, `T` trainings, which differ in their weights and first
    labels. Validation and test judge the network of the last round.

    Args:
        backbone, n_classes: of `BilevelModule`.
        acquire: `glister`, `entropy` or `random`.
        start: labels before the first round, of examples taken by chance.
        per_round: labels that a round adds.
        labels: so many there may be at the end; `trainer.max_steps` is then `(labels - start) / per_round + 1`.
        inner_steps: on all labelled examples at once, in each round.
        judged_by: whose loss GLISTER lowers: `labelled`, the examples that have labels by now, or `held_out` ones,
            whose labels then count as given.
        virtual_lr: of the steps between GLISTER's choices of a round.
        **kwargs: of `BilevelModule`.
    """

    def __init__(
        self,
        backbone: Backbone,
        n_classes: int = 10,
        acquire: Literal["glister", "entropy", "random"] = "glister",
        start: int = 10,
        per_round: int = 10,
        labels: int = 200,
        inner_steps: int = 100,
        judged_by: Literal["labelled", "held_out"] = "labelled",
        virtual_lr: float = 0.01,
        **kwargs: Any,
    ) -> None:
        super().__init__(backbone, n_classes, **kwargs)
        if acquire not in ("glister", "entropy", "random") or judged_by not in ("labelled", "held_out"):
            raise ConfigError(
                f"acquire={acquire!r} must be glister, entropy or random, and judged_by={judged_by!r} labelled or "
                "held_out."
            )
        require_at_least(1, start=start, per_round=per_round, inner_steps=inner_steps)
        if labels < start or (labels - start) % per_round:
            raise ConfigError(
                f"labels={labels} cannot be reached from start={start} by {per_round} a round; take "
                f"{start + max(labels - start, 0) // per_round * per_round}, say."
            )
        self.acquire, self.start, self.per_round, self.labels = acquire, start, per_round, labels
        self.inner_steps, self.judged_by, self.virtual_lr = inner_steps, judged_by, virtual_lr
        self.pool: Batch | None = None  # all examples to learn from, once there are data

    def inner_loss(self, weights: Params, batch: Batch) -> Tensor:
        return self.losses(weights, batch).mean()

    @property
    def examples(self) -> Batch:
        """All that there are to learn from, in the precision and on the device of the network."""
        assert self.pool is not None, "the examples come with a datamodule"
        return Batch(self.pool.x.to(next(self.network.parameters())), self.pool.y.to(self.device))

    # ---- one training -------------------------------------------------------------------------------------------

    def labelled(self, order_L: Tensor) -> tuple[Batch, Tensor]:
        """The examples chosen `(L, ...)`, and which of these places are taken; -1 in `order` is none."""
        examples = self.examples
        return Batch(*(part[order_L.clamp_min(0)] for part in examples)), order_L >= 0

    def loss_of_labelled(self, weights: Params, order_L: Tensor) -> Tensor:
        """Mean cross-entropy of the examples that have labels."""
        batch, taken_L = self.labelled(order_L)
        return (self.losses(weights, batch) * taken_L).sum() / taken_L.sum()

    def trained(self, weights: Params, order_L: Tensor) -> Params:
        """The network after the steps of a round."""
        state = self.inner_optimizer.init(weights)
        for _ in range(self.inner_steps):
            slopes = grad(self.loss_of_labelled)(weights, order_L)
            weights, state = self.inner_optimizer.update(slopes, state, weights, torch.zeros(()))
        return weights

    def next_order(self, weights: Params, order_L: Tensor, chance_E: Tensor, query: Batch) -> Tensor:
        """`order` with the examples of this round behind those before.

        Args:
            weights: of the network trained on those before.
            order_L: which examples have been chosen, in turn.
            chance_E: uniform draws; for `random`.
            query: held-out examples, for `judged_by: held_out`.
        """
        open_E = (torch.arange(len(chance_E), device=order_L.device)[:, None] != order_L).all(1)
        if self.acquire == "glister":
            picked_K = self.greedy(weights, order_L, open_E, query)
        else:
            scores_E = chance_E if self.acquire == "random" else self.uncertainty(weights)
            picked_K = torch.where(open_E, scores_E, -torch.inf).topk(self.per_round).indices
        places_K = (order_L >= 0).sum() + torch.arange(self.per_round, device=order_L.device)
        fits_K = places_K < self.labels
        places_K = places_K.clamp_max(self.labels - 1)
        return order_L.scatter(0, places_K, torch.where(fits_K, picked_K, order_L.gather(0, places_K)))

    def uncertainty(self, weights: Params) -> Tensor:
        """Entropies of the predictions of all examples `(E,)`, in nats."""
        log_p_EC = self.logits(weights, self.examples.x).log_softmax(1)
        return -(log_p_EC.exp() * log_p_EC).sum(1)

    def greedy(self, weights: Params, order_L: Tensor, open_E: Tensor, query: Batch) -> Tensor:
        """GLISTER's choice `(K,)`: each by its gain after the steps on those before it."""
        pool_x = self.examples.x
        guess_E = self.logits(weights, pool_x).argmax(1)

        def losses(weights: Params) -> Tensor:
            return self.losses(weights, Batch(pool_x, guess_E))

        def judge(weights: Params) -> Tensor:
            if self.judged_by == "held_out":
                return self.losses(weights, query).mean()
            return self.loss_of_labelled(weights, order_L)

        picks = []
        for _ in range(self.per_round):
            pick = torch.where(open_E, gains(losses, weights, judge), -torch.inf).argmax()
            picks.append(pick)
            open_E = open_E & (torch.arange(len(open_E), device=open_E.device) != pick)
            one = Batch(pool_x[pick][None], guess_E[pick][None])
            slopes = grad(lambda w, one=one: self.losses(w, one).mean())(weights)
            weights = {name: value - self.virtual_lr * slopes[name] for name, value in weights.items()}
        return torch.stack(picks)

    # ---- owned here ---------------------------------------------------------------------------------------------

    def beginnings(self) -> Iterator[tuple[Params, Tensor]]:
        """In evaluation: of the trainings of all ranks the weights that a round starts from, and what was chosen."""
        assert self.judged is not None
        keys = self.judged.state["key"]
        params = initial_weights(self.network, keys.cpu().numpy().view(np.uint64))
        for place, order_L in enumerate(self.judged.state["order"]):
            yield {name: value[place].to(self.device) for name, value in params.items()}, order_L

    def begin(self, tasks: Trial) -> Progress:
        """Untrained networks, and the first labels, by chance."""
        keys = tasks.key.cpu().numpy().view(np.uint64)
        first = torch.from_numpy(choose(subkeys(keys, [FIRST])[:, 0], len(self.examples.y), self.start))
        order_TL = torch.full((len(keys), self.labels), -1)
        order_TL[:, : self.start] = first
        return Progress(super().begin(tasks).params, {"order": order_TL.to(self.device), "key": tasks.key})

    def measure(self, tasks: Trial) -> tuple[dict[str, Tensor], dict[str, Any]]:
        if not self.training:
            return super().measure(tasks)
        self.trials, self.carried = tasks, self.progress(tasks)
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            order_TL = self.carried.state["order"]
            rounds = tasks.start.cpu().numpy()
            if rounds.any():
                keys = np.diagonal(subkeys(tasks.key.cpu().numpy().view(np.uint64), CHANCE + rounds - 1))
                chance_TE = torch.from_numpy(uniform(keys, len(self.examples.y))).to(tasks.query.x)
                order_TL = self._map(self.next_order, tasks, self.carried.params, order_TL, chance_TE, tasks.query)
            params = self._map(self.trained, tasks, super().begin(tasks).params, order_TL)
            out = self._map(self.query_loss, tasks, params, tasks.query)
        self.after = Progress(params, {"order": order_TL, "key": tasks.key})  # the labels that it was trained on
        return self._values(out, tasks.query), {"preds": out.preds}

    def settle(self) -> None:
        self.carried, self.trials = self.after, None

    def check_trials(self, data: BilevelDataModule) -> None:
        super().check_trials(data)
        if data.truncation != 1 or data.unroll_steps is not None:
            raise ConfigError(
                f"a round trains {self.inner_steps} steps of its own and the choice goes on from round to round; set "
                f"data.truncation={data.truncation} to 1 and data.unroll_steps={data.unroll_steps} to null."
            )
        pool = data.learned_from()
        if self.labels > len(pool.y):
            raise ConfigError(
                f"labels={self.labels}, but {data.name} has {len(pool.y)} examples to learn from; lower it or raise "
                "data.support_per_class."
            )
        self.pool = pool
