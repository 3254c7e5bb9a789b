"""Leader trainers: each estimates how the leader's return changes with θ, the follower's reaction included."""

from leaders import exact
from leaders.algorithms import BCHG, LEADERS, BiAC, ExactGradient, NaivePGD, SoBiRL
from leaders.history import History
from leaders.hpgd import HPGD
from leaders.search import CMAES, RandomSearch, ZerothOrder
from leaders.train import Leader

__all__ = [
    "BCHG",
    "CMAES",
    "HPGD",
    "LEADERS",
    "BiAC",
    "ExactGradient",
    "History",
    "Leader",
    "NaivePGD",
    "RandomSearch",
    "SoBiRL",
    "ZerothOrder",
    "exact",
]
