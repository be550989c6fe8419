"""ANIL for reinforcement learning: only the last layer of a policy adapts to a task.

Raghu, Raghu, Bengio, Vinyals: "Rapid Learning or Feature Reuse? Towards Understanding the Effectiveness of MAML"
(2020), arXiv:1909.09157, section 4.2.

Deviations: those of MAML for reinforcement learning.
"""

from lightning_meta.algorithms.reinforcement.maml_rl import MAMLRL
from lightning_meta.core import Params

LAST = "network.1."


class ANILRL(MAMLRL):
    """MAML whose inner loop moves the last layer of the policy alone; its deviations are those of the meta-learned one.

    Same arguments as `MAMLRL`.
    """

    def theta(self) -> Params:
        return {name: value for name, value in super().theta().items() if name.startswith(LAST)}
