from lightning_meta.algorithms import Hyperparameters
from tests.algorithms.bilevel_cases import network
BILEVEL = {
    "hyperparameters": lambda **kw: Hyperparameters(network(), 4, **kw),
    "hyperparameters-network": lambda **kw: Hyperparameters(network(), 4, per="network", **kw),
}
