"""Weights that a network writes for another one, from what a task is like."""

from torch import Tensor, nn

from lightning_meta.core.inner_optimizer import Params, module_key


class GeneratedParams(nn.Module):
    """Named parameters of a network plus what an embedding says of each: a hypernetwork, linear, through a bottleneck.

    It starts as the network that is given: all that it writes is 0 at first.

    Args:
        theta: the parameters that may change, by name.
        embedding: numbers of an embedding.
        rank: of the bottleneck, to which an embedding is mapped first; the generated values span no more dimensions.
    """

    def __init__(self, theta: Params, embedding: int, rank: int) -> None:
        super().__init__()
        self.code = nn.Linear(embedding, rank, bias=False)
        heads = {module_key(name): nn.Linear(rank, p.numel(), bias=False) for name, p in theta.items()}
        for head in heads.values():
            nn.init.zeros_(head.weight)
        self.heads = nn.ModuleDict(heads)

    def forward(self, theta: Params, embedding_E: Tensor) -> Params:
        """The parameters for an embedding `(E,)`."""
        code_R = self.code(embedding_E)
        return {name: p + self.heads[module_key(name)](code_R).view(p.shape) for name, p in theta.items()}
