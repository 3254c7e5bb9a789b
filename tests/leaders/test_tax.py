"""Leaders in the tax world: estimates against the exact hypergradient, and what they reach."""

import gymnasium as gym
import numpy as np
import pytest
from matplotlib.figure import Figure

from bilevel_envs import BilevelWrapper
from leaders import BCHG, ExactGradient, NaivePGD, exact
from leaders.experiments.reproduce.tax import draw_left_out, draw_value, landscape
from leaders.experiments.video import follower_frames
from tests.helpers import z_scores

FIRST = np.full(4, 0.3)


@pytest.mark.slow
def test_sampled_gradients_agree_with_the_exact_one():
    env = BilevelWrapper(gym.make("BiLevel/TaxDesign-small-v0"))
    leader = BCHG(env, critic="exact")
    direct, guiding = exact.hypergradient_parts(env, FIRST)
    assert np.linalg.norm(guiding) >= np.linalg.norm(direct)
    samples = np.concatenate([leader.gradient_samples(100, episodes=20, seed=seed) for seed in range(4)])
    assert np.abs(z_scores(samples, direct + guiding)).max() < 4
    assert np.abs(z_scores(samples, direct)).max() > 8
    assert np.abs(z_scores(samples, direct - guiding)).max() > 8


@pytest.mark.slow
def test_naive_gradients_are_the_direct_term():
    env = BilevelWrapper(gym.make("BiLevel/TaxDesign-small-v0"))
    direct, guiding = exact.hypergradient_parts(env, FIRST)
    samples = NaivePGD(env, critic="exact").gradient_samples(100, episodes=20)
    assert np.abs(z_scores(samples, direct)).max() < 4
    assert np.abs(z_scores(samples, direct + guiding)).max() > 8


def test_what_released_hpgd_leaves_out_moves_its_rest_beyond_the_optimum():
    along = landscape(gym.make("BiLevel/TaxDesign-v0"), np.array([0.65, 0.75]))
    assert (along.direct > 0).all()  # policy held fixed, a higher income tax still looks better …
    assert along.direct[1] + along.guiding[1] < -50  # … where F already falls off the cliff
    assert along.value[1] < along.value[0] - 2


def test_the_figures_of_the_landscape_are_drawn():
    along = landscape(gym.make("BiLevel/TaxDesign-small-v0"), np.array([0.2, 0.4]))
    axes = Figure().subplots(1, 2)
    draw_value(axes[0], along)
    draw_left_out(axes[1], along)
    assert [len(one.lines) for one in axes] == [1, 4]


@pytest.mark.slow
def test_bchg_comes_within_two_percent_of_the_best_known():
    env = BilevelWrapper(gym.make("BiLevel/TaxDesign-v0"))
    leader = BCHG(env, seed=0).learn(100)
    assert exact.objective(env, leader.theta) > 0.98 * env.best_known


@pytest.mark.slow
def test_exact_ascent_comes_within_two_percent_of_the_best_known():
    env = BilevelWrapper(gym.make("BiLevel/TaxDesign-v0"))
    assert exact.objective(env, ExactGradient(env).learn(50).theta) > 0.98 * env.best_known


def test_advised_rows_go_with_the_advised_batch_only():
    env = BilevelWrapper(gym.make("BiLevel/TaxDesign-small-v0"))
    advised, own = BCHG(env), BCHG(env, batch_size=400)
    assert (advised.rows, advised.horizon) == (2_000, 50)
    assert (own.rows, own.horizon) == (2, 200)  # as few rows as the time limit allows, as everywhere


def test_a_world_that_is_planned_on_a_grid_is_not_filmed():
    env = BilevelWrapper(gym.make("BiLevel/TaxDesign-small-v0"))
    theta = env.problem.default_theta
    with pytest.raises(ValueError, match=r"TaxDesignSmall cannot be filmed: .*`bilevel curves`"):
        follower_frames(env, theta, theta)
