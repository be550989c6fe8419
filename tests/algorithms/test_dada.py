from lightning_meta.algorithms import DADA
from tests.algorithms.bilevel_cases import network
BILEVEL = {"dada": lambda **kw: DADA(network(), 4, **kw)}
