from lightning_meta.algorithms import PBA
from tests.algorithms.bilevel_cases import network
NEEDS = {"PBA": dict(meta_batch_size=4)}
BILEVEL = {"pba": lambda **kw: PBA(network(), 4, interval=2, **kw)}
