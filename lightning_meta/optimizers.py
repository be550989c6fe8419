"""Outer optimizers that torch does not have."""

from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_meta.errors import require_at_least
from lightning_meta.ranks import gather


class SuccessStory(Optimizer):
    """Gradient descent whose steps are undone unless more was earned after each of them than after the one before.

    Schmidhuber, Zhao, Schraudolph: "Reinforcement Learning with Self-Modifying Policies" (1997), in Learning to Learn;
    Schmidhuber, Zhao, Wiering: "Shifting Inductive Bias with Success-Story Algorithm, Adaptive Levin Search, and
    Incremental Self-Improvement" (1997), Machine Learning.

    There is one life, whose time is counted in outer steps, and a stack of the changes that are in force. What is
    earned in a step is minus its loss, so the loss must be what is to become small, as it is with
    `EvolutionStrategies`; a surrogate, whose value means nothing, would be no story. At each evaluation the changes on
    top of the stack are undone until the average since each of them is above the average since the one below it, and
    the lowest one's above the average of the whole life.

    Deviations: changes are steps along the gradient; the papers' policies change themselves. The gradient of weights
    that were given up is of no use, so no change follows when some were undone.

    Args:
        params: to be changed.
        lr: of a change.
        every: outer steps from one evaluation to the next, in which what was changed shows its worth.
    """

    def __init__(self, params: Iterable[Tensor], lr: float = 0.1, every: int = 10) -> None:
        require_at_least(1, every=every)
        if not lr > 0:
            raise ValueError(f"lr={lr} must be above 0.")
        # `story` has the time and what had been earned at each change; the weights before it are in `state`.
        super().__init__(params, {"lr": lr, "every": every, "time": 0, "earned": 0.0, "story": []})

    @property
    def _life(self) -> dict[str, Any]:
        """All groups have one life."""
        return self.param_groups[0]

    def rates(self) -> list[float]:
        """What a step earned on average: in the whole life, and since each change in force, the oldest first."""
        life = self._life
        since = [(0, 0.0), *life["story"]]
        now = life["time"]
        return [(life["earned"] - earned) / (now - time) for time, earned in since if time < now]

    @torch.no_grad()
    def step(self, closure: Callable[[], Any]) -> Any:  # type: ignore[override]
        with torch.enable_grad():
            loss = closure()
        shares, life = gather(float(loss)), self._life
        life["time"] += 1
        life["earned"] -= sum(shares) / len(shares)
        if life["time"] % life["every"] == 0 and not self._undo():
            self._change()
        return loss

    def _undo(self) -> bool:
        """Whether changes had to be undone for the rates to increase."""
        story, undone = self._life["story"], False
        while story and any(later <= before for before, later in pairwise(self.rates())):
            story.pop()
            for group in self.param_groups:
                for param in group["params"]:
                    param.copy_(self.state[param]["before"].pop())
            undone = True
        return undone

    def _change(self) -> None:
        life = self._life
        life["story"].append((life["time"], life["earned"]))
        for group in self.param_groups:
            for param in group["params"]:
                self.state[param].setdefault("before", []).append(param.clone())
                if param.grad is not None:
                    param.sub_(group["lr"] * param.grad)
