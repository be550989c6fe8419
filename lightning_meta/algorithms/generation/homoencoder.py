"""The variational homoencoder: the support set alone says what the class is, and the queries are its other images.

Hewitt, Nye, Gane, Jaakkola, Tenenbaum: "The Variational Homoencoder: Learning to Learn High Capacity Generative Models
from Few Examples" (2018), arXiv:1807.08919.

Any posterior of c bounds the likelihood of all X images of a class, also one that has read a few of them, D:

    log p(x_1 .. x_X) >= sum_x E_q(c|D) log p(x | c) - KL(q(c | D) || p(c))

Each term log p(x | c) has a bound by z, as in the Neural Statistician, of which this is a variant. There q(c | D) has
seen the image that it is to explain, and may remember it in c; here it is trained as it is used.

Deviations: those of `neural_statistician.py`. The paper's strongest networks have convolutional or autoregressive
decoders; and its terms count D's images too, where here they count the queries.
"""

from typing import Any

from torch import Tensor

from lightning_meta.algorithms.generation.neural_statistician import Codes, NeuralStatistician
from lightning_meta.core.gaussian import Gaussian
from lightning_meta.errors import require_at_least


class VariationalHomoencoder(NeuralStatistician):
    """The Neural Statistician with q(c | support) in training, too.

    Args:
        class_images: X, over which the divergence of c is spread: how many images a class has.
        **kwargs: of `NeuralStatistician`.
    """

    def __init__(self, class_images: int = 20, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        require_at_least(1, class_images=class_images)
        self.class_images = class_images

    def inferred(self, support: Codes, query: Codes) -> tuple[Gaussian, Tensor]:
        posterior = self.statistic(support)
        return posterior, posterior.mean.new_tensor(self.class_images)
