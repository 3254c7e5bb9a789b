"""Leaders of a user's own finite game: the mean of estimates is the hypergradient, and runs climb."""

import numpy as np
import pytest

from bilevel_envs import BilevelWrapper, FiniteGame, Preferences, TabularEnv
from bilevel_envs.parameterizations import Free
from leaders import BCHG, NaivePGD, exact
from tests.helpers import z_scores

SAMPLES = 400


def favours(continues=None):
    """Both may give (0) or keep (1); giving costs 1 and brings the other 3. The state is what the follower did last."""
    transition = np.zeros((2, 2, 2, 2))
    transition[:, :, 0, 0] = transition[:, :, 1, 1] = 1.0
    gives = np.array([1.0, 0.0])
    r_leader = np.broadcast_to(3 * gives - gives[:, None], (2, 2, 2))
    r_follower = np.broadcast_to(3 * gives[:, None] - gives, (2, 2, 2))
    preferences = Preferences(gamma_leader=0.9, gamma_follower=0.8, beta=0.5)
    return FiniteGame(transition, [1.0, 0.0], r_leader, r_follower, continues, preferences)


def with_an_end():
    """Giving while the leader keeps, after a favour kept back, ends the game."""
    continues = np.ones((2, 2, 2))
    continues[1, 1, 0] = 0.0
    return favours(continues)


@pytest.mark.parametrize("game", [favours, with_an_end])
@pytest.mark.parametrize("sampler", ["fused", "steps"])
def test_the_mean_of_estimates_is_the_hypergradient(game, sampler):
    env = BilevelWrapper(TabularEnv(game()))
    policy = Free(np.array([[[0.7, 0.3], [0.4, 0.6]]]))
    leader = BCHG(env, critic="exact", policy=policy, sampler=sampler, seed=0)
    direct, guiding = exact.hypergradient_parts(env, leader.theta)
    assert np.linalg.norm(guiding) >= np.linalg.norm(direct)
    samples = leader.gradient_samples(SAMPLES)[..., 0]  # rows are opposite: each row's mean is removed
    direct, guiding = direct[:, 0], guiding[:, 0]
    assert np.abs(z_scores(samples, direct + guiding)).max() < 4
    assert np.abs(z_scores(samples, direct)).max() > 8
    assert np.abs(z_scores(samples, direct - guiding)).max() > 8


def test_a_run_climbs_to_returned_favours_where_a_naive_one_ends_in_kept_ones():
    env = BilevelWrapper(TabularEnv(favours()))
    led, naive = (cls(env, seed=0, batch_size=200).learn(60) for cls in (BCHG, NaivePGD))
    values = led.history["leader_value"][:, 0]
    assert values[0] < 5 < 15 < values[-1]
    assert naive.history["leader_value"][-1, 0] < 5
    assert led.theta[0, 0] > 0.5 > led.theta[1, 0]  # gives after a favour, keeps after none
    assert naive.theta[0, 0] < 0.1


def test_a_saved_leader_comes_back_to_its_own_game_alone(tmp_path):
    leader = BCHG(BilevelWrapper(TabularEnv(favours())), seed=0, batch_size=100).learn(3)
    leader.save(tmp_path / "leader.zip")
    again = BCHG.load(tmp_path / "leader.zip", env=BilevelWrapper(TabularEnv(favours())))
    np.testing.assert_array_equal(again.theta, leader.theta)
    with pytest.raises(ValueError, match="continues"):
        BCHG.load(tmp_path / "leader.zip", env=BilevelWrapper(TabularEnv(with_an_end())))
