from lightning_meta.algorithms import RandAugment
from tests.algorithms.bilevel_cases import network
BILEVEL = {
    "rand-augment": lambda **kw: RandAugment(network(), 4, **kw),
}
