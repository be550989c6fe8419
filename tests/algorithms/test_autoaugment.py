from lightning_meta.algorithms import AutoAugment
from tests.algorithms.bilevel_cases import network
NEEDS = {"AutoAugment": dict(truncation=2, unroll_steps=2, evaluate="retrained")}
BILEVEL = {"autoaugment": lambda **kw: AutoAugment(network(), 4, **kw)}
