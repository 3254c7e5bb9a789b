"""Leaders that see sampled returns only."""

import numpy as np
import pytest

from bilevel_envs.followers import SB3Follower, SoftValueIteration
from bilevel_envs.parameterizations import Free
from leaders import CMAES, RandomSearch, ZerothOrder, exact
from tests.helpers import toll_bridge, z_scores

ALL = [ZerothOrder, CMAES, RandomSearch]


@pytest.mark.slow
@pytest.mark.parametrize("one_sided", [False, True])
def test_the_zeroth_order_estimate_averages_to_the_gradient(make, one_sided):
    # its mean is the gradient of J smoothed by σ; at σ = 0.01 the smoothing is far below the noise
    env = make("RandomMDP", seed=1, gamma_leader=0.6, gamma_follower=0.6)
    start = np.repeat([[0.5, -0.3, 0.8, 0.1, -0.6]], 400, axis=0)
    leader = ZerothOrder(env, runs=400, policy=Free(start), sigma=0.01, one_sided=one_sided, optimizer="sgd")
    theta = leader._theta()
    model = env.model(theta)
    best = env.best_response(theta.detach())
    leader._ascent.zero_grad()
    leader._estimate(theta, model, best).surrogate.sum().backward()
    samples = leader.policy.raw.grad.numpy()
    truth = exact.hypergradient(env, start[0])
    assert np.linalg.norm(truth) > 1
    assert np.abs(z_scores(samples, truth)).max() < 4
    assert np.abs(z_scores(samples, -truth)).max() > 8


def test_both_ends_of_a_direction_see_the_same_random_numbers(make):
    # with a step too small to change a choice, both ends of a direction live the same episodes: no difference at all
    leader = ZerothOrder(make("FourRooms"), runs=2, sigma=1e-12)
    theta = leader._theta()
    estimate = leader._estimate(theta, leader.env.model(theta), leader.env.best_response(leader.theta))
    estimate.surrogate.sum().backward()
    # r_L moves by about σ with θ; other random numbers would bring differences of order 1, divided by σ = 1e-12
    assert leader.policy.raw.grad.abs().max() < 1e3
    assert (estimate.env_steps > 8 * 4 * 12).all()  # whole episodes of at least the shortest path and its last step


def test_a_regulariser_is_refused_where_it_would_not_count(make):
    class Ridge(Free):
        def regulariser(self):
            return -(self.raw**2).sum(-1)

    for leader in (CMAES, RandomSearch):
        with pytest.raises(ValueError, match=f"`policy` must have no regulariser: {leader.__name__}"):
            leader(make("RandomMDP"), policy=Ridge(np.zeros((1, 5))))
    ZerothOrder(make("RandomMDP"), policy=Ridge(np.zeros((1, 5)))).learn(1)


@pytest.mark.slow
@pytest.mark.parametrize(("leader", "gain"), [(ZerothOrder, 0.5), (CMAES, 1.0), (RandomSearch, 0.5)])
def test_search_leaders_raise_the_leaders_value(make, leader, gain):
    arguments = {"scale": 1.0} if leader is RandomSearch else {}
    trained = leader(make("RandomMDP", seed=2), runs=3, **arguments).learn(25)
    value = trained.history["leader_value"]
    assert (value[-1] > value[0] + gain).all()


@pytest.mark.parametrize("leader", ALL)
def test_histories_count_the_steps_and_solves_of_every_trial(make, leader):
    trained = leader(make("RandomMDP"), runs=2, episodes=3).learn(2)
    trials = {ZerothOrder: 8, CMAES: 4 + int(3 * np.log(5)), RandomSearch: 1}[leader]
    assert trained.history["follower_solves"][:, 0].tolist() == [trials, 2 * trials]
    # nothing ends in a random MDP: every trial is three rows of H steps, 0.9^H ≤ 1e-5
    assert trained.history["env_steps"][:, 1].tolist() == [trials * 3 * 110, 2 * trials * 3 * 110]


@pytest.mark.parametrize("leader", ALL)
def test_a_follower_that_learns_is_asked_in_trials_alone(leader):
    class Counted(SB3Follower):
        asked = 0

        def respond(self, *arguments, **keywords):
            self.asked += 1
            return super().respond(*arguments, **keywords)

    follower = Counted("SoftDQN", 5, learning_starts=5, policy_kwargs={"net_arch": [4]})
    env = toll_bridge(follower)
    trained = leader(env, episodes=1)
    start = trained.theta
    trained.learn(1)
    asked = follower.asked
    actual = exact.value(env.model(start), env.best_response(start, learn=False).policy, env.preferences.gamma_leader)
    np.testing.assert_allclose(trained.history["leader_value_actual"][0], actual, rtol=1e-6)
    optimal = exact.objective(toll_bridge(SoftValueIteration()), start)
    np.testing.assert_allclose(trained.history["leader_value"][0], optimal, rtol=1e-6)
    trained.learn(1)
    trials = {ZerothOrder: 8, RandomSearch: 1}.get(leader) or trained.searches[0].population
    assert trained.history["follower_solves"][:, 0].tolist() == [trials, 2 * trials]
    assert asked == trials
    assert follower.asked == 2 * trials + 1  # with the test's own
    assert trained.history["follower_steps"][-1, 0] == follower.spent


@pytest.mark.slow
@pytest.mark.parametrize("leader", ALL)
def test_saving_and_loading_goes_on_bit_for_bit(make, tmp_path, leader):
    straight = leader(make("FourRooms"), runs=2, seed=1, episodes=1).learn(5)
    leader(make("FourRooms"), runs=2, seed=1, episodes=1).learn(3).save(tmp_path / "leader.zip")
    second = leader.load(tmp_path / "leader.zip", env=make("FourRooms")).learn(2)
    np.testing.assert_array_equal(straight.theta, second.theta)
    np.testing.assert_array_equal(straight.history.state(), second.history.state())


@pytest.mark.slow
@pytest.mark.parametrize("leader", ALL)
def test_saving_and_loading_goes_on_bit_for_bit_with_an_agent(tmp_path, leader):
    def env():
        return toll_bridge(SB3Follower("SoftDQN", 20, learning_starts=5, policy_kwargs={"net_arch": [4]}))

    straight = leader(env(), episodes=1).learn(4)
    leader(env(), episodes=1).learn(2).save(tmp_path / "leader.zip")
    second = leader.load(tmp_path / "leader.zip", env=env()).learn(2)
    np.testing.assert_array_equal(straight.history.state(), second.history.state())


def test_bad_settings_are_refused(make):
    with pytest.raises(ValueError, match="`sigma` must be above 0"):
        ZerothOrder(make("FourRooms"), sigma=0.0)
    with pytest.raises(ValueError, match="`population` must be at least 2"):
        CMAES(make("FourRooms"), population=1)
    with pytest.raises(ValueError, match="`episodes` must be at least 1"):
        RandomSearch(make("FourRooms"), episodes=0)
