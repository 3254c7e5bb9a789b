"""Leader critics: ways of estimating Q_L."""

from leaders.critics.empirical import Empirical
from leaders.critics.exact import ExactCritic
from leaders.critics.fitted_linear import FittedLinear
from leaders.critics.least_squares import LeastSquares
from leaders.critics.monte_carlo import MonteCarlo
from leaders.critics.network import NetworkCritic
from leaders.critics.sarsa import ExpectedSarsa, Sarsa
from leaders.critics.stage_game import StageGame
from leaders.critics.state_values import QuadraticState, StateTable

__all__ = [
    "Empirical",
    "ExactCritic",
    "ExpectedSarsa",
    "FittedLinear",
    "LeastSquares",
    "MonteCarlo",
    "NetworkCritic",
    "QuadraticState",
    "Sarsa",
    "StageGame",
    "StateTable",
]
