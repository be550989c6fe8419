"""BOIL: body only update in the inner loop. The features adapt to a task, the head keeps its meta-learned weights.

Oh, Yoo, Kim, Yun: "BOIL: Towards Representation Change for Few-shot Learning" (2021), arXiv:2008.08882.

Deviations: those of MAML.
"""

from lightning_meta.algorithms.initialize.maml import MAML
from lightning_meta.core import Params


class BOIL(MAML):
    """MAML whose inner loop moves the backbone alone.

    Same arguments as `MAML`.
    """

    def theta(self) -> Params:
        return {name: value for name, value in super().theta().items() if name.startswith("0.")}
