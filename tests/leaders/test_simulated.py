"""Leaders of games that can only be played, with followers that learn."""

import gymnasium as gym
import numpy as np
import pytest
import torch

import bilevel_envs  # noqa: F401
from bilevel_envs import BilevelWrapper, LeaderEnv
from bilevel_envs.core.follower import BestResponse
from bilevel_envs.core.noise import Noise
from bilevel_envs.followers import ObservedFollower, SB3Follower
from bilevel_envs.networks.policies import NetworkGaussian
from bilevel_envs.networks.temporal_differences import Fit
from bilevel_envs.worlds.linear_quadratic.model import Quadratic
from leaders import BCHG, HPGD, NaivePGD, SoBiRL
from leaders.critics import NetworkCritic
from leaders.critics.cross_fit import Judges

PENDULUM, CART = "BiLevel/GuidedPendulum-v0", "BiLevel/GuidedCartPole-v0"
SMALL = {"learning_starts": 50, "buffer_size": 2_000, "policy_kwargs": {"net_arch": [16]}}


def quick(env):
    """A critic as the default has it, fitted by fewer steps."""
    return NetworkCritic(env.preferences.gamma_leader, Fit(steps=20), of="both")


def played(name=PENDULUM, follower=None, **arguments):
    return BilevelWrapper(gym.make(name, **arguments), follower or SB3Follower("SAC", 60, **SMALL))


@pytest.mark.slow
@pytest.mark.parametrize("make", [BCHG, NaivePGD])
@pytest.mark.parametrize("name", [PENDULUM, CART, "BiLevel/BilevelLQR-v0"])
def test_a_game_is_led_from_trajectories_alone(make, name):
    env = played(
        name, SB3Follower("SAC", 60, action_range=2.0, **SMALL), **({"policy": "mlp"} if "LQR" in name else {})
    )
    leader = make(env, runs=2, batch_size=400, critic=quick(env)).learn(2)
    assert np.isfinite(leader.history["grad_norm"]).all()
    assert (leader.history["grad_norm"] > 0).all()
    assert np.isnan(leader.history["leader_value"]).all()
    assert np.isfinite(leader.history["leader_return"]).all()
    assert (leader.history["follower_steps"][-1] == 120).all()
    assert leader.theta.shape == (2, *env.theta_space.shape)


@pytest.mark.slow
@pytest.mark.parametrize(("algorithm", "arguments"), [("SoftDQN", SMALL), ("PPO", {"n_steps": 64})])
def test_followers_with_discrete_actions_are_led(algorithm, arguments):
    follower = SB3Follower(algorithm, 64, **arguments)
    env = played(CART, follower if algorithm == "SoftDQN" else ObservedFollower(follower, 400, steps=20), discrete=5)
    leader = BCHG(env, batch_size=400, critic=quick(env)).learn(2)
    assert np.isfinite(leader.history["grad_norm"]).all()
    assert leader.gradient_samples(2, episodes=2).shape == (2, *env.theta_space.shape)


@pytest.mark.slow
def test_a_run_goes_on_bit_for_bit(tmp_path):
    straight = BCHG(played(), batch_size=400, critic=quick(played())).learn(3)
    first = BCHG(played(), batch_size=400, critic=quick(played())).learn(2)
    first.save(tmp_path / "leader.zip")
    second = BCHG.load(tmp_path / "leader.zip", played(), critic=quick(played())).learn(1)
    np.testing.assert_array_equal(straight.history.state(), second.history.state())
    np.testing.assert_array_equal(straight.theta, second.theta)


def test_the_leaders_side_is_played_against_a_follower_that_learns():
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


class Known:
    """A critic whose values are told: smooth functions of state and action."""

    def fit(self, batch, best, model, noise):
        pass

    def values(self, batch, policy):
        def v(state):
            return torch.sin(state).sum(-1)

        return v(batch.state) + 0.3 * batch.action[..., 0] * batch.state[..., 0], v(batch.state), v(batch.next_state)

    def copies(self, count):
        return self

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


def test_the_played_estimate_is_the_one_made_from_matrices():
    # a network with mean K s = (K s)⁺ − (−K s)⁺, and the linear leader K itself, on the same trajectories
    gain = np.array([-0.3, 0.2])
    first, second, third, hidden = np.zeros((2, 64)), np.zeros((64, 64)), np.zeros((64, 1)), np.zeros(64)
    first[:, 0], first[:, 1] = gain, -gain
    second[0, 0] = second[1, 1] = 1.0
    third[:2, 0] = 1.0, -1.0
    weights = np.concatenate([first.reshape(-1), hidden, second.reshape(-1), hidden, third.reshape(-1), [0.0]])
    gradients = []
    for theta, how, extra in (
        (gain[None, None], {}, {"gradient": "score"}),
        (weights[None], {"policy": "mlp"}, {}),
    ):
        env = BilevelWrapper(gym.make("BiLevel/BilevelLQR-v0", deviation=0.5, **how), Fixed())
        leader = BCHG(env, critic=Known(), control_variate="constant", batch_size=200, **extra)
        if not gradients:
            best = env.best_response(theta)
            batch = env.rollout(theta, best, Noise([0]), rows=4, horizon=50)
        leaf = torch.tensor(theta).requires_grad_()
        judges = Judges([Known()], torch.zeros_like(batch.step), None, 0.9)
        total, _ = leader.surrogate(leader.sample(leaf, env.model(leaf), batch, best, judges, Noise([1]), "keep"))
        gradients.append(torch.autograd.grad(total.sum(), leaf)[0][0])
    along, steps = gradients[0][0], gradients[1][:128].view(2, 64)
    assert float(along.norm()) > 1
    torch.testing.assert_close(steps[:, 0] - steps[:, 1], along, rtol=1e-8, atol=1e-8)


@pytest.mark.slow
def test_networks_of_both_values_agree_with_the_exact_values():
    env = BilevelWrapper(gym.make("BiLevel/RandomMDP-v0"))
    theta = env.unwrapped.theta
    best, model = env.best_response(theta), env.model(theta).detach()
    batch = env.rollout(theta, best, Noise([0]), rows=40, horizon=100)
    critic = NetworkCritic(0.9, Fit(steps=1_500), of="both")
    critic.fit(batch, best, None, Noise([0]))
    q, v, v_next = critic.values(batch, best.policy)
    truth = model.resolvent(best.policy.probs, 0.9, (best.policy.probs * model.r_leader).sum(-1))
    q_true = (model.r_leader + 0.9 * model.expected_next(truth))[0][batch.state[0], batch.action[0]]
    v_true = truth[0][batch.state[0]]
    assert float((v[0] - v_true).square().mean().sqrt()) < 0.3 * float(v_true.std())
    assert np.corrcoef((q[0] - v[0]).flatten(), (q_true - v_true).flatten())[0, 1] > 0.95
    assert torch.equal(v_next[..., :-1], v[..., 1:])
    copy = NetworkCritic(0.9, Fit(steps=1_500), of="both")
    copy.load_state_dict(critic.state_dict())
    torch.testing.assert_close(copy.values(batch, best.policy)[0], q)
    twice = critic.copies(2)
    assert twice.pairs.layers[0].shape[0] == 2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: HPGD(played()), "`env` must have a known model for HPGD"),
        (lambda: SoBiRL(played()), "`env` must be a table for SoBiRL"),
        (lambda: BCHG(played(), critic="exact"), "`critic` must be one of 'td', 'state_values'"),
        (lambda: BCHG(played(), gradient="pathwise"), '`gradient` must be "score" where the model is not known'),
        (lambda: BCHG(played(), tail="drop"), '`tail` must be "keep" where the model is not known'),
        (lambda: BCHG(played(), shared=True), "`shared` must be False where states are vectors"),
        (lambda: BCHG(played(), preset="paper"), "`preset` must be None for bchg in GuidedPendulum"),
        (
            lambda: BCHG(played("BiLevel/BilevelLQR-v0", policy="mlp"), preset="paper"),
            "`preset` must be None for bchg in BilevelLQR",
        ),
        (lambda: BCHG(played(), critic=NetworkCritic(0.99, of="state")), "`critic` must read actions"),
    ],
)
def test_settings_that_need_a_model_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
