"""Quadratic programs as a differentiable layer, solved by qpth, also under `vmap`.

Amos, Kolter: "OptNet: Differentiable Optimization as a Layer in Neural Networks" (2017), arXiv:1703.00443.
"""

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from lightning_meta.errors import ConfigError

ITERATIONS = 15  # of the interior point method; enough for 11 digits in programs of 25 to 400 variables


def import_qpth() -> ModuleType:
    """The library, which does not exist for every Python."""
    try:
        import qpth.qp
    except ImportError as error:
        raise ConfigError(
            "this algorithm needs qpth, which is not installed; on Python 3.11 or 3.12 run "
            f"`pip install -r requirements.txt`, for Python 3.13 there is no qpth. ({error})"
        ) from error
    return qpth


def solve_qp(Q: Tensor, p: Tensor, G: Tensor, h: Tensor, A: Tensor, b: Tensor) -> Tensor:
    """The `z (n,)` that minimises `z'Qz/2 + p'z` where `Gz <= h` and `Az = b`; differentiable once in all arguments.

    Pass float64: in single precision the last steps of an interior point method fail.

    Args:
        Q: symmetric and positive definite `(n, n)`.
        p: `(n,)`.
        G, h: inequalities `(m, n)`, `(m,)`.
        A, b: equalities `(k, n)`, `(k,)`.
    """
    return _SolveQP.apply(Q, p, G, h, A, b)


class _SolveQP(torch.autograd.Function):
    """Makes one batch of all programs that a mapped call solves: much faster than one after the other.

    What qpth keeps between forward and backward cannot pass through `vmap`, so backward solves the programs again.
    """

    @staticmethod
    def forward(*arguments: Tensor) -> Tensor:
        return _solve(arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        with torch.enable_grad():
            arguments = [saved.detach().requires_grad_() for saved in ctx.saved_tensors]
            return torch.autograd.grad(_solve(arguments), arguments, gradient)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *arguments: Tensor) -> tuple[Tensor, int]:
        batched = [
            argument.expand(info.batch_size, *argument.shape) if dim is None else argument.movedim(dim, 0)
            for argument, dim in zip(arguments, in_dims, strict=True)
        ]
        return _SolveQP.apply(*batched), 0


def _solve(arguments: Any) -> Tensor:
    """One program, or several: then each argument has a leading axis.

    A fixed number of iterations, without early stopping: a program's solution must not depend on its neighbours.
    """
    solver = import_qpth().qp.QPFunction(
        eps=0, notImprovedLim=ITERATIONS, maxIter=ITERATIONS, check_Q_spd=False, verbose=-1
    )
    solution = solver(*arguments)
    return solution if arguments[1].ndim == 2 else solution[0]
