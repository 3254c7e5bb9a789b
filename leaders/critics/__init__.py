"""Leader critics: ways of estimating Q_L."""

from leaders.critics.exact import ExactCritic
from leaders.critics.monte_carlo import MonteCarlo
from leaders.critics.sarsa import ExpectedSarsa, Sarsa

__all__ = ["ExactCritic", "ExpectedSarsa", "MonteCarlo", "Sarsa"]
