"""The MAML step of the comparison in JAX: adaptation, query losses, meta-gradient and Adam in one compiled function.

Written as JAX's users write it: pure functions of arrays, `jax.grad` within `jax.grad`, and tasks either vectorised
(`vmap`) or one after the other (`lax.map`). The network is the strided `Conv4` of MAML on Omniglot with a linear head.
"""

import os
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_meta.benchmark.peers import InnerLoop
from lightning_meta.core import Episode

# JAX would take three quarters of the GPU's memory at once, and PyTorch is here too.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax
from jax import lax
from jax import numpy as jnp

TaskMap = Literal["vmap", "map"]
LR, BETAS, EPS = 1e-4, (0.9, 0.999), 1e-8  # of Adam, as the other contenders have it


class JaxMAML:
    """An outer step, compiled when it is made for meta-batches like `tasks`.

    Args:
        network: its weights are those to start from.
        loop: the inner loop, second order.
        tasks: a meta-batch of float tensors and labels.
        task_map: `vmap` or `map`.
        tf32: multiply in TensorFloat-32 where the GPU can (JAX's default precision); else in full float32 (`highest`).
    """

    def __init__(self, network: nn.Module, loop: InnerLoop, tasks: Episode, task_map: TaskMap, tf32: bool) -> None:
        theta = [to_jax(param) for param in network.parameters()]
        self.state = (theta, [jnp.zeros_like(p) for p in theta], [jnp.zeros_like(p) for p in theta], jnp.zeros(()))
        precision = lax.Precision.DEFAULT if tf32 else lax.Precision.HIGHEST
        step = jax.jit(adam_step(meta_loss(loop.lr, loop.steps, precision, task_map)), donate_argnums=0)
        self.lowered = step.lower(self.state, batch(tasks))
        self.compiled: Callable[..., Any] | None = None

    def compile(self) -> None:
        """Takes seconds; several threads may do so at once."""
        self.compiled = self.lowered.compile()

    def step(self, tasks: Any) -> None:
        """One outer step on what `batch` returned; it is launched, not waited for."""
        assert self.compiled is not None
        self.state = self.compiled(self.state, tasks)

    def wait(self) -> None:
        jax.block_until_ready(self.state)

    def first_gradient(self) -> Tensor:
        """The meta-gradient of the first step, which Adam's first moment holds, after one step."""
        moments = [torch.from_numpy(jax.device_get(m).copy()).flatten() for m in self.state[1]]
        return torch.cat(moments) / (1 - BETAS[0])


def to_jax(tensor: Tensor) -> Any:
    return jnp.asarray(tensor.detach().cpu().numpy())


def batch(tasks: Episode) -> tuple[Any, ...]:
    """A meta-batch in JAX's arrays: support inputs and labels, query inputs and labels."""
    (support_x, support_y), (query_x, query_y) = tasks
    return tuple(to_jax(part) for part in (support_x, support_y.int(), query_x, query_y.int()))


def logits(params: Sequence[Any], x: Any, precision: lax.Precision) -> Any:
    *blocks, weight, bias = params
    for kernel, scale, shift in zip(blocks[::3], blocks[1::3], blocks[2::3], strict=True):
        x = lax.conv_general_dilated(
            x, kernel, (2, 2), [(1, 1), (1, 1)], dimension_numbers=("NCHW", "OIHW", "NCHW"), precision=precision
        )
        mean, var = x.mean((0, 2, 3), keepdims=True), x.var((0, 2, 3), keepdims=True)
        x = (x - mean) * lax.rsqrt(var + 1e-5)
        x = jax.nn.relu(x * scale[:, None, None] + shift[:, None, None])
    return jnp.dot(x.mean((2, 3)), weight.T, precision=precision) + bias


def meta_loss(lr: float, steps: int, precision: lax.Precision, task_map: TaskMap) -> Callable[..., Any]:
    """The gradient of the mean query loss, as a function of parameters and tasks."""

    def loss(params: Any, x: Any, y: Any) -> Any:
        scores = jax.nn.log_softmax(logits(params, x, precision))
        return -jnp.take_along_axis(scores, y[:, None], 1).mean()

    def query_loss(theta: Any, task: Any) -> Any:
        support_x, support_y, query_x, query_y = task
        phi = theta
        for _ in range(steps):
            grads = jax.grad(loss)(phi, support_x, support_y)
            phi = [value - lr * grad for value, grad in zip(phi, grads, strict=True)]
        return loss(phi, query_x, query_y)

    if task_map == "vmap":
        return jax.grad(lambda theta, tasks: jax.vmap(query_loss, (None, 0))(theta, tasks).mean())

    def one_after_the_other(theta: Any, tasks: Any) -> Any:
        gradients = lax.map(lambda task: jax.grad(query_loss)(theta, task), tasks)
        return [gradient.mean(0) for gradient in gradients]

    return one_after_the_other


def adam_step(gradient: Callable[..., Any]) -> Callable[..., Any]:
    """The outer update of `torch.optim.Adam`."""

    def step(state: Any, tasks: Any) -> Any:
        theta, first, second, count = state
        grads, count = gradient(theta, tasks), count + 1
        first = [BETAS[0] * m + (1 - BETAS[0]) * g for m, g in zip(first, grads, strict=True)]
        second = [BETAS[1] * v + (1 - BETAS[1]) * g * g for v, g in zip(second, grads, strict=True)]
        scales = 1 - BETAS[0] ** count, 1 - BETAS[1] ** count
        theta = [
            p - LR * (m / scales[0]) / (jnp.sqrt(v / scales[1]) + EPS)
            for p, m, v in zip(theta, first, second, strict=True)
        ]
        return theta, first, second, count

    return step
