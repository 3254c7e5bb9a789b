"""Leaders of games that can only be played, with followers that learn."""

import gymnasium as gym
import numpy as np
import pytest
import torch

import bilevel_envs  # noqa: F401
from bilevel_envs import BilevelWrapper, LeaderEnv
from bilevel_envs.follower import BestResponse
from bilevel_envs.followers import ObservedFollower, SB3Follower
from bilevel_envs.followers.network_policies import NetworkGaussian
from bilevel_envs.linear_quadratic import Quadratic
from leaders import BCHG, HPGD, NaivePGD, SoBiRL
from leaders.critics import NetworkCritic

PENDULUM, CART = "BiLevel/GuidedPendulum-v0", "BiLevel/GuidedCartPole-v0"
SMALL = {"learning_starts": 50, "buffer_size": 2_000, "policy_kwargs": {"net_arch": [16]}}


def played(name=PENDULUM, follower=None, **arguments):
    return BilevelWrapper(gym.make(name, **arguments), follower or SB3Follower("SAC", 60, **SMALL))


@pytest.mark.parametrize("make", [BCHG, NaivePGD])
@pytest.mark.parametrize("name", [PENDULUM, CART, "BiLevel/BilevelLQR-v0"])
def test_a_game_is_led_from_trajectories_alone(make, name):
    env = played(
        name, SB3Follower("SAC", 60, action_range=2.0, **SMALL), **({"policy": "mlp"} if "LQR" in name else {})
    )
    leader = make(env, runs=2, batch_size=400).learn(2)
    assert np.isfinite(leader.history["grad_norm"]).all()
    assert (leader.history["grad_norm"] > 0).all()
    assert np.isnan(leader.history["leader_value"]).all()
    assert np.isfinite(leader.history["leader_return"]).all()
    assert (leader.history["follower_steps"][-1] == 120).all()
    assert leader.theta.shape == (2, *env.theta_space.shape)


@pytest.mark.parametrize(("algorithm", "arguments"), [("SoftDQN", SMALL), ("PPO", {"n_steps": 64})])
def test_discrete_pushes(algorithm, arguments):
    follower = SB3Follower(algorithm, 64, **arguments)
    env = played(CART, follower if algorithm == "SoftDQN" else ObservedFollower(follower, 400, steps=20), discrete=5)
    leader = BCHG(env, batch_size=400).learn(2)
    assert np.isfinite(leader.history["grad_norm"]).all()
    assert leader.gradient_samples(2, episodes=2).shape == (2, *env.theta_space.shape)


def test_a_run_goes_on_bit_for_bit(tmp_path):
    straight = BCHG(played(), batch_size=400).learn(3)
    first = BCHG(played(), batch_size=400).learn(2)
    first.save(tmp_path / "leader.zip")
    second = BCHG.load(tmp_path / "leader.zip", played()).learn(1)
    np.testing.assert_array_equal(straight.history.state(), second.history.state())
    np.testing.assert_array_equal(straight.theta, second.theta)


def test_the_leaders_chair_with_a_follower_that_learns():
    env = LeaderEnv(gym.make(PENDULUM), SB3Follower("SAC", 60, **SMALL))
    env.reset(seed=0)
    _, reward, *_, info = env.step(np.array([0.3], np.float32))
    assert np.isfinite(reward)
    assert np.isfinite(info["follower_reward"])
    steps = env.follower.spent
    env.configure(env.theta)
    assert env.follower.spent == 2 * steps
    from bilevel_envs.markov_games import guided_pendulum_v0

    with pytest.raises(TypeError, match="`game` must be the game's Gymnasium environment"):
        LeaderEnv(guided_pendulum_v0.env(), SB3Follower("SAC", 60, **SMALL))


class Fixed:
    """Answers by a linear law that is told; its values are given, whatever they are worth."""

    beta = None

    def best_response(self, model, preferences, start=None):
        def network(x):
            return torch.stack([-0.5 * x[:, 0] - 0.2 * x[:, -1], torch.full((len(x),), -1.0)], -1)

        one = torch.ones(1, dtype=torch.float64)
        policy = NetworkGaussian((network,) * model.runs, -10 * one, 10 * one, squashed=False)
        v = Quadratic(-torch.eye(3, dtype=torch.float64)[None], torch.zeros(1, dtype=torch.float64))
        return BestResponse(policy, lambda s, b: v(s) + 0.1 * policy.log_prob(s, b), v, torch.zeros(1), optimal=False)


def test_the_played_estimate_is_the_one_made_from_matrices():
    # the linear leader and a network that is the same linear law: d log f / d gain must lead to the same surrogate
    plain = BilevelWrapper(gym.make("BiLevel/BilevelLQR-v0", deviation=0.5), Fixed())
    theta = np.array([[-0.3, 0.2]])
    model = plain.model(torch.tensor(theta).requires_grad_())
    from bilevel_envs.noise import Noise

    batch = plain.rollout(theta, Fixed().best_response(model, None), Noise([0]), rows=3, horizon=20)
    terms = model.terms(batch)
    played_world = gym.make("BiLevel/BilevelLQR-v0", deviation=0.5, policy="mlp").unwrapped
    state, following = batch.state[..., :2], batch.next_state
    scores = -((following[..., 2] - following[..., :2] @ torch.tensor(theta)[0]) ** 2) / (2 * 0.25)
    constant = -np.log(0.5) - np.log(2 * np.pi) / 2
    torch.testing.assert_close(terms.log_arrival.detach(), scores + constant)
    weights = torch.tensor(played_world.theta)[None]
    played_terms = played_world.model(weights.requires_grad_()).terms(batch)
    mean = (played_terms.log_arrival.detach() - constant) * -2 * 0.25
    assert (mean >= 0).all()  # squares of a' less the network's mean
    assert played_terms.log_arrival.requires_grad
    assert state.shape == (1, 3, 20, 2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: HPGD(played()), "`env` must have a model for HPGD"),
        (lambda: SoBiRL(played()), "`env` must have countable states for SoBiRL"),
        (lambda: BCHG(played(), critic="exact"), "`critic` must be one of 'td', 'state_values'"),
        (lambda: BCHG(played(), knowledge="terms"), '`knowledge` must be "simulate" where nobody knows the model'),
        (lambda: BCHG(played(), tail="drop"), '`tail` must be "keep" where nobody knows the model'),
        (lambda: BCHG(played(), shared=True), "`shared` must be False where states are vectors"),
        (lambda: BCHG(played(), preset="paper"), "`preset` must be None for bchg in GuidedPendulum"),
        (
            lambda: BCHG(played("BiLevel/BilevelLQR-v0", policy="mlp"), preset="paper"),
            "`preset` must be None for bchg in BilevelLQR",
        ),
        (lambda: BCHG(played(), critic=NetworkCritic(0.99, of="state")), "`critic` must read actions"),
    ],
)
def test_what_needs_a_model_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
