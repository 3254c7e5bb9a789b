"""Pictures of worlds that users bring."""

import gymnasium as gym
import numpy as np
import pytest
import torch

from bilevel_envs import BilevelWrapper, ConfigurableMDP, Preferences, TabularEnv, TabularModel
from bilevel_envs.parameterizations import Box
from leaders import ExactGradient, plots


class Strip(ConfigurableMDP):
    """Three cells in a row with a map, and nothing else that a picture might use.

    Args:
      entries: of θ, one per cell or fewer.
      low: of θ; θ reaches up to low + 1.
    """

    preferences = Preferences(0.9, 0.9, 0.1)

    def __init__(self, entries, low):
        self.low, self.entries = low, entries

    @property
    def theta_space(self):
        return gym.spaces.Box(self.low, self.low + 1.0, (self.entries,), np.float64)

    @property
    def default_theta(self):
        return np.full(self.entries, self.low + 0.5)

    def model(self, theta):
        p = torch.zeros(1, 3, 2, 3, dtype=torch.float64)
        for cell in range(3):
            p[0, cell, 0, max(cell - 1, 0)] = p[0, cell, 1, min(cell + 1, 2)] = 1.0
        paid = theta.expand(-1, 3)[..., None].expand(-1, 3, 2)
        start = torch.eye(3, dtype=torch.float64)[:1]
        return TabularModel(p, start, torch.eye(3, 2, dtype=torch.float64)[None], paid)

    def parameterization(self, runs, noise):
        return Box(np.zeros((runs, self.entries)), self.low, self.low + 1.0)

    def grid(self, values):
        return np.asarray(values, float).reshape(1, 3)


@pytest.mark.parametrize(
    ("entries", "low", "titles"),
    [
        (3, -1.0, ["penalty per cell (spent: 1.5", "follower"]),
        (3, 0.0, ["θ per cell", "follower"]),
        (1, 0.0, ["follower"]),
    ],
)
def test_a_map_shows_theta_where_it_has_an_entry_per_cell(entries, low, titles):
    leader = ExactGradient(BilevelWrapper(TabularEnv(Strip(entries, low))), seed=0, learning_rate=1e-9).learn(1)
    figure = plots.incentives_figure(leader)
    shown = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert len(shown) == len(titles)
    assert all(title.startswith(start) for title, start in zip(shown, titles, strict=True))
    first = figure.axes[0].images[0].get_array()
    if entries == 3:
        np.testing.assert_allclose(np.ravel(first), np.abs(np.full(3, low + 0.5)), atol=1e-6)
