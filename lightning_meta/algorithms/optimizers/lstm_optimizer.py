"""The LSTM optimizer: a recurrent network that has learned how to turn gradients into updates.

Andrychowicz, Denil, Gómez Colmenarejo, Hoffman, Pfau, Schaul, Shillingford, de Freitas: "Learning to learn by gradient
descent by gradient descent" (2016), arXiv:1606.04474.

Deviations: the output layer starts at zero, so that an untrained rule stands still. The meta-loss is the mean over the
steps of a segment, where the paper has the sum. Everything else, such as the optimizees and the length of the training,
is a setting and stands in the configs.
"""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any, cast

import torch
from torch import Tensor, nn

from lightning_meta.backbones.recurrent import LSTMCell, LSTMState
from lightning_meta.core import Params
from lightning_meta.core.preprocessing import log_and_sign
from lightning_meta.errors import ConfigError
from lightning_meta.modules import TruncatedModule


class LSTMOptimizer(TruncatedModule):
    """Learn the update rule: an LSTM that every coordinate of the optimizee's weights runs with a state of its own.

    Args:
        hidden: units of each layer.
        layers: of the LSTM.
        p: of the preprocessing, see `core.preprocessing.log_and_sign`.
        scale: of the output, the update.
        groups: patterns of parameter names, `["backbone.*", "*"]`: each group has an LSTM of its own. A parameter
            belongs to the first pattern that it matches.
        **kwargs: of `TruncatedModule`.
    """

    def __init__(
        self,
        hidden: int = 20,
        layers: int = 2,
        p: float = 10.0,
        scale: float = 0.1,
        groups: Sequence[str] = ("*",),
        **kwargs: Any,
    ) -> None:
        super().__init__(CoordinatewiseLSTM(hidden, layers, p, scale, groups), **kwargs)


class GradientLSTM(nn.Module):
    """Turns the gradients of P coordinates, step after step, into their updates.

    Args:
        hidden, layers, p, scale: of `LSTMOptimizer`.
    """

    def __init__(self, hidden: int, layers: int, p: float, scale: float) -> None:
        super().__init__()
        self.p, self.scale = p, scale
        self.cells = nn.ModuleList(LSTMCell(size, hidden) for size in [2] + [hidden] * (layers - 1))
        self.output = nn.Linear(hidden, 1)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def zero_state(self, gradient_P: Tensor) -> list[LSTMState]:
        """Hidden and cell state `(P, hidden)` of each layer before the first step."""
        return [cell.zero_state(gradient_P[:, None]) for cell in cast(list[LSTMCell], list(self.cells))]

    def forward(self, gradient_P: Tensor, state: list[LSTMState]) -> tuple[Tensor, list[LSTMState]]:
        """Updates `(P,)` and the next state."""
        x, next_state = log_and_sign(gradient_P, self.p), []
        for cell, former in zip(self.cells, state, strict=True):
            next_state.append(cell(x, former))
            x = next_state[-1][0]
        return self.scale * self.output(x).squeeze(-1), next_state


class CoordinatewiseLSTM(nn.Module):
    """An inner optimizer, `phi <- phi + m(gradient)`: one network m that every coordinate runs by itself.

    Args:
        hidden, layers, p, scale, groups: of `LSTMOptimizer`.
    """

    def __init__(self, hidden: int, layers: int, p: float, scale: float, groups: Sequence[str]) -> None:
        super().__init__()
        if min(hidden, layers, len(groups)) < 1:
            raise ConfigError(f"hidden={hidden}, layers={layers} and the number of groups={groups} must be at least 1.")
        self.groups = tuple(groups)
        self.networks = nn.ModuleList(GradientLSTM(hidden, layers, p, scale) for _ in groups)

    def init(self, params: Params) -> list[list[LSTMState]]:
        """The state of each group's network."""
        return [network.zero_state(values) for network, values in self._with_networks(params)]

    def update(
        self, grads: Params, state: list[list[LSTMState]], params: Params, loss: Tensor
    ) -> tuple[Params, list[list[LSTMState]]]:
        results = [
            network(gradient, former)
            for (network, gradient), former in zip(self._with_networks(grads), state, strict=True)
        ]
        steps = self._scatter([update for update, _ in results], params)
        return {name: value + steps[name] for name, value in params.items()}, [state for _, state in results]

    def _with_networks(self, tensors: Params) -> list[tuple[GradientLSTM, Tensor]]:
        """Each group's network and all coordinates of the group's tensors, `(P,)`."""
        names = self._names(tensors)
        if empty := [pattern for pattern, of_group in zip(self.groups, names, strict=True) if not of_group]:
            raise ConfigError(f"groups: the pattern {empty[0]!r} has no parameter among {list(tensors)}; leave it out.")
        values = [torch.cat([tensors[name].flatten() for name in of_group]) for of_group in names]
        return list(zip(cast(list[GradientLSTM], list(self.networks)), values, strict=True))

    def _scatter(self, coordinates: list[Tensor], like: Params) -> Params:
        """Coordinates `(P,)` of each group back in tensors shaped `like` theirs."""
        tensors: Params = {}
        for names, values_P in zip(self._names(like), coordinates, strict=True):
            parts = values_P.split([like[name].numel() for name in names])
            tensors |= {name: part.view_as(like[name]) for name, part in zip(names, parts, strict=True)}
        return tensors

    def _names(self, tensors: Params) -> list[list[str]]:
        """The names of each group's tensors."""
        names: list[list[str]] = [[] for _ in self.groups]
        for name in tensors:
            names[self.group_of(name)].append(name)
        return names

    def group_of(self, name: str) -> int:
        """The group that a parameter belongs to. Raises `ConfigError` where there is none."""
        for number, pattern in enumerate(self.groups):
            if fnmatchcase(name, pattern):
                return number
        raise ConfigError(f"groups={list(self.groups)} has no pattern for the parameter {name}; add one, such as '*'.")
