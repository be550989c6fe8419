"""Environments as pure functions of tensors: no Lightning, no generators, no state of their own."""

from lightning_meta.worlds.actions import Actions, Continuous, Discrete
from lightning_meta.worlds.bandits import Bandits
from lightning_meta.worlds.base import World
from lightning_meta.worlds.cart_pole import CartPole
from lightning_meta.worlds.dirichlet_bandits import DirichletBandits
from lightning_meta.worlds.grid import Grid
from lightning_meta.worlds.gym_world import GymWorld
from lightning_meta.worlds.half_cheetah import HalfCheetahDirection, HalfCheetahVelocity
from lightning_meta.worlds.meta_world import MetaWorld
from lightning_meta.worlds.navigation import Navigation
from lightning_meta.worlds.tabular_mdp import TabularMDP
from lightning_meta.worlds.two_step import TwoStep

__all__ = [
    "Actions",
    "Bandits",
    "CartPole",
    "Continuous",
    "DirichletBandits",
    "Discrete",
    "Grid",
    "GymWorld",
    "HalfCheetahDirection",
    "HalfCheetahVelocity",
    "MetaWorld",
    "Navigation",
    "TabularMDP",
    "TwoStep",
    "World",
]
