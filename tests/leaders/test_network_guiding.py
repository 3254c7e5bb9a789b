"""∇Q_F learnt by a network: against autodiff through the follower's solver, closed forms and exact hypergradients."""

from functools import cache, partial
from itertools import pairwise

import gymnasium as gym
import numpy as np
import pytest
import torch

from bilevel_envs import BestResponse, BilevelWrapper, ConfigurableRewards, Noise, Preferences, Rollout, TabularEnv
from bilevel_envs.core.follower import Capabilities
from bilevel_envs.followers import Riccati, SB3Follower
from bilevel_envs.networks.policies import NetworkGaussian
from bilevel_envs.networks.temporal_differences import Fit
from bilevel_envs.worlds.linear_quadratic.env import LinearEnv
from leaders import BCHG, exact
from leaders.critics import NetworkCritic
from leaders.critics.reaction import covariance
from tests.helpers import Pendulums, building, training_estimates, unrolled_values
from tests.lake import GOAL, HOLES, PREFERENCES, SPACE, Lake, led_lake, logged

THETA = np.full(3, 0.5)
OVER = (*HOLES, GOAL)
ON = [state for state in range(16) if state not in OVER]
SHORT = Fit(steps=5)
EYE, ACTIONS = torch.eye(16).double(), torch.arange(4)


@cache
def solved_lake():
    """g, Q_L and, by autodiff through the follower's solver, ∇Q_F of the lake's table: [16, 4], and [16, 4, 3]."""
    theta = torch.from_numpy(THETA)[None].requires_grad_()
    model = TabularEnv(Lake()).model(theta)
    v_leader, v_follower = unrolled_values(model, PREFERENCES, rounds=15)
    kernel = model.moves.dense()[0] * model.continues[0][..., None]
    q_leader = (model.r_leader[0] + 0.9 * kernel @ v_leader).detach()
    q_follower = model.r_follower[0] + 0.9 * kernel @ v_follower
    slopes = [torch.autograd.grad(q, theta, retain_graph=True)[0][0] for q in q_follower.flatten()]
    g = torch.softmax(q_follower.detach() / PREFERENCES.beta, -1)
    return g, q_leader, torch.stack(slopes).view(16, 4, 3)


class KnownQ:
    """Q_L of the lake's table, behind one-hot states."""

    learns, gives_action_values = False, True

    def __init__(self):
        self.g, self.table, _ = solved_lake()

    def fit(self, batch, best, model, noise):
        pass

    def values(self, batch, policy):
        v = (self.g * self.table).sum(-1)
        q = self.table[batch.state.argmax(-1), batch.action]
        return q, v[batch.state.argmax(-1)], v[batch.next_state.argmax(-1)]

    def action_values(self, state, action, policy):
        return self.table[state.argmax(-1)].gather(-1, action)[..., None]

    def copies(self, count):
        return self

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


def every_move() -> Rollout:
    """All slips of all actions in all states of the lake, as often as they are likely in each state, without noise."""
    often = (60 * solved_lake()[0]).round().clamp(min=1)
    moves, steps = TabularEnv(Lake()).model(torch.from_numpy(THETA)[None]).moves.dense()[0], []
    for state, action in np.ndindex(16, 4):
        if state in OVER:
            continue
        for after in range(16):
            for _ in range(round(3 * float(moves[state, action, after])) * int(often[state, action])):
                steps.append((state, action, after, logged(None, action, float(after == GOAL), after, None)))
    state, action, after, components = map(torch.tensor, zip(*steps, strict=True))
    shape = (1, len(steps), 1)
    never = torch.zeros(shape, dtype=torch.bool)
    return Rollout(
        state=EYE[state].view(*shape, 16),
        action=action.view(shape),
        next_state=EYE[after].view(*shape, 16),
        r_leader=torch.zeros(shape, dtype=torch.float64),
        r_follower=torch.zeros(shape, dtype=torch.float64),
        terminated=torch.isin(after, torch.tensor(OVER)).view(shape),
        truncated=never,
        step=torch.arange(len(steps)).view(shape) % 7,
        valid=~never,
        components=components.double().view(*shape, 4),
    )


def taught(leader: BCHG, batch: Rollout, rounds: int):
    """The guiding term of a batch at θ after some rounds of fits to it, [3]."""
    theta = torch.from_numpy(THETA)[None].requires_grad_()
    model, best = leader.env.model(theta), leader.env.best_response(THETA[None])
    noise = Noise([0])
    judges = leader.judges(leader.critic, None, batch, best, model.detach(), noise)
    for _ in range(rounds):
        sample = leader.sample(theta, model, batch, best, judges, noise, "keep")
        term, steps = leader.guiding.further(sample)
    assert steps == 0
    assert (leader.guiding.trace(sample) == 0).all()
    return torch.autograd.grad(term.sum(), theta)[0][0], sample


@pytest.mark.slow
def test_the_reaction_is_the_gradient_through_the_followers_solver():
    g, q_leader, slopes = solved_lake()
    critic, batch = KnownQ(), every_move()
    critic.how = Fit(hidden=(64,), steps=400, minibatch=None, learning_rate=0.02)
    leader = BCHG(led_lake(), critic=critic, guiding="fitted")
    reaction = leader.critic.reactions[0]
    found, sample = taught(leader, batch, rounds=2)
    learnt = reaction.action_values(EYE[None, ON], ACTIONS.expand(1, len(ON), 4), sample.best.policy)[0]
    largest = slopes[ON].abs().amax((0, 1))
    assert ((learnt - slopes[ON]).abs().amax((0, 1)) < 0.05 * largest).all()
    # Σ_s weight Σ_b g (Q_L − V_L) ∇Q_F / β
    weight = sample.discounts[0, :, 0] / PREFERENCES.beta
    benefit = q_leader - (g * q_leader).sum(-1, keepdim=True)
    at = batch.state[0, :, 0].argmax(-1)
    wanted = (weight[:, None] * ((g * benefit)[..., None] * slopes).sum(1)[at]).sum(0)
    torch.testing.assert_close(found, wanted, rtol=0, atol=0.05 * float(wanted.norm()))


class Function:
    """A function of (s, b) in the place of a network."""

    def __init__(self, f, nodes=None):
        self.f, self.nodes = f, nodes

    def action_values(self, state, action, policy):
        return self.f(state[:, :, None].expand(*action.shape[:3], -1), action)

    def at_once(self, state):
        return 3  # states at a time, of 8


@pytest.mark.parametrize("draws", [None, 20_000])
def test_the_covariance_over_vector_actions_is_that_of_the_gaussian(draws):
    env = BilevelWrapper(LinearEnv(Pendulums()), Riccati())
    policy = env.best_response(np.array([[0.3, -0.2]])).policy
    network = NetworkCritic(0.8, Fit(draws=draws))
    network._noise = Noise([3])
    state = torch.from_numpy(Noise([1]).normal(2, 4, 2))
    weight = torch.from_numpy(Noise([2]).uniform(2, 4))
    q = Function(lambda s, b: 2 * b + b**2 + s[..., :1])
    reaction = Function(lambda s, b: torch.cat([3 * b, b**2, s[..., :1]], -1), network.nodes)
    found = covariance(q, reaction, state, policy, weight)[0]
    mean, variance = (part[..., 0] for part in policy.moments(state))
    variance = variance[..., 0]
    # Cov(2b + b², b) = 2v + 2mv; Cov(2b + b², b²) = 4mv + 4m²v + 2v²; none with a function of s
    first = 3 * (weight * (2 * variance + 2 * mean * variance)).sum()
    second = (weight * (4 * mean * variance + 4 * mean**2 * variance + 2 * variance**2)).sum()
    wanted = torch.stack([first, second, torch.zeros(()).double()])
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-8 if draws is None else 0.1 * float(second))


@pytest.mark.slow
def test_a_critic_and_the_reaction_that_it_meets_never_learn_from_the_same_step():
    leader = BCHG(led_lake(), critic=NetworkCritic(0.9, SHORT, actions=4), seed=0, batch_size=100)
    seen = {}
    for name in ("judges", "reactions"):
        for index, network in enumerate(getattr(leader.critic, name)):
            fit = network.fit_to
            network.fit_to = lambda brought, batch, policy, noise, key=(name, index), fit=fit: (
                seen.setdefault(key, []).append(batch.valid[0, :, 0]),
                fit(brought, batch, policy, noise),
            )
    leader.learn(7)
    assert {len(rounds) for rounds in seen.values()} == {7}
    for index in range(2):
        for judged, reacted in zip(seen["judges", index], seen["reactions", index], strict=True):
            assert not (judged & reacted).any()
            assert (judged | reacted).all()
    for rounds in seen.values():
        assert [len(known) for known in rounds] == [100, 200, 300, 400, 500, 500, 500]  # four batches are kept
        for before, after in pairwise(rounds):  # a step stays with its half
            kept = before[-400:]
            torch.testing.assert_close(after[: len(kept)], kept)
        assert 0.2 < rounds[-1].double().mean() < 0.8


def test_remembered_steps_are_paid_at_the_present_theta():
    leader = BCHG(led_lake(), critic=NetworkCritic(0.9, SHORT, actions=4), seed=0, batch_size=100, learning_rate=1.0)
    leader.learn(1)
    theta = leader.theta
    leader.learn(1)
    steps, _ = leader.critic.past
    assert np.abs(leader.theta - theta).max() > 0.05
    c = steps.components[0, :, 0]
    after = steps.next_state[0, :, 0].argmax(-1)
    torch.testing.assert_close(c[:, 0], (after == GOAL).double())
    # r_L of the lake, with θ of the second iteration in all of both batches
    wanted = (1 - theta[2]) * c[:, 0] + 0.5 * c[:, 2] + 0.3 * theta[0] * c[:, 1]
    torch.testing.assert_close(steps.r_leader[0, :, 0], wanted)
    assert len(c) == 200


@pytest.mark.parametrize("runs", [2])
def test_runs_do_not_mix(runs):
    def led(**how):
        return BCHG(led_lake(), critic=NetworkCritic(0.9, SHORT, actions=4), batch_size=100, **how).learn(2)

    together, alone = led(runs=runs, seed=[4, 5]), [led(seed=seed) for seed in (4, 5)]
    np.testing.assert_allclose(together.theta, [one.theta for one in alone], rtol=1e-9)
    assert (together.theta[0] != together.theta[1]).all()


@pytest.mark.slow
def test_a_fitted_leader_goes_on_bit_for_bit(tmp_path):
    def new():
        return {"critic": NetworkCritic(0.9, SHORT, actions=4), "seed": 0, "batch_size": 100}

    straight, first = (BCHG(led_lake(), **new()) for _ in range(2))
    straight.learn(3)
    first.learn(2).save(tmp_path / "leader.zip")
    second = BCHG.load(tmp_path / "leader.zip", led_lake(), critic=new()["critic"]).learn(1)
    np.testing.assert_array_equal(second.theta, straight.theta)
    np.testing.assert_array_equal(second.history.state(), straight.history.state())
    for one, other in zip(second.critic.reactions, straight.critic.reactions, strict=True):
        for layer, same in zip(one.network.layers, other.network.layers, strict=True):
            torch.testing.assert_close(layer, same, rtol=0, atol=0)


def test_samples_leave_what_was_learnt_alone():
    leader = BCHG(led_lake(), critic=NetworkCritic(0.9, SHORT, actions=4), seed=0, batch_size=100, runs=2).learn(1)
    before = [layer.clone() for layer in leader.critic.reactions[0].network.layers]
    found = leader.gradient_samples(2, episodes=4)
    assert found.shape == (2, 2, 3)
    assert np.isfinite(found).all()
    np.testing.assert_array_equal(found, leader.gradient_samples(2, episodes=4))
    for layer, same in zip(before, leader.critic.reactions[0].network.layers, strict=True):
        torch.testing.assert_close(layer, same, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("make", "guiding"),
    [
        (lambda: BCHG(led_lake()), "fitted"),
        (lambda: BCHG(led_lake(), guiding="sampled"), "sampled"),
        (lambda: BCHG(led_lake(), score_weight="value"), "sampled"),
        (lambda: BCHG(led_lake(), critic="state_values"), "sampled"),
        (lambda: BCHG(building(), critic="td"), "sampled"),
        (lambda: BCHG(building(), critic="td", guiding="fitted"), "fitted"),
    ],
)
def test_guiding_is_fitted_by_default_where_theta_is_small_and_no_model_is_known(make, guiding):
    assert make().estimator_config.guiding == guiding


@pytest.mark.parametrize("guiding", ["fitted", "sampled"])
@pytest.mark.parametrize("own", [lambda theta, c: c[..., 0], lambda theta, c: torch.round(theta[..., 0]) * c[..., 0]])
def test_where_theta_does_not_move_the_follower_the_direct_term_is_left(guiding, own):
    free = SB3Follower("SoftDQN", 20, learning_starts=10, seed=0)
    env = ConfigurableRewards(
        "FrozenLake-v1", SPACE, own, lambda theta, c: -theta.sum(-1) * c[..., 3], PREFERENCES, logged
    )
    leader = BCHG(BilevelWrapper(env, free), batch_size=100, guiding=guiding, seed=0)
    (estimate,) = training_estimates(leader, 1)
    assert (estimate < 0).all()  # each entry of θ costs the leader as much at every step
    assert np.ptp(estimate) == pytest.approx(0, abs=1e-9)


def test_reactions_are_discounted_as_the_follower_discounts():
    env = vector_actions(Preferences(0.9, 0.8, 0.1))
    assert [one.gamma for one in BCHG(env).critic.reactions] == [0.8, 0.8]


def test_a_large_theta_is_sampled_by_default(monkeypatch):
    monkeypatch.setattr("leaders.worlds.declared.FITTED_UP_TO", 2)
    assert BCHG(led_lake()).estimator_config.guiding == "sampled"


def test_a_critic_without_q_of_any_action_is_refused():
    class Nothing(KnownQ):
        gives_action_values = False

    with pytest.raises(ValueError, match="has no Q_L of any"):
        BCHG(led_lake(), critic=Nothing(), guiding="fitted")


@pytest.mark.slow
@pytest.mark.parametrize("critic", ["known", "td"])
def test_the_mean_estimate_is_the_exact_hypergradient_and_varies_less_than_the_sampled_one(critic):
    """With `critic="td"` and fitted guiding as the plain default has them."""
    truth = exact.hypergradient(BilevelWrapper(TabularEnv(Lake())), THETA)
    found, count = {}, 14
    for guiding in ("fitted", "sampled") if critic == "known" else ("fitted",):
        how = {"critic": KnownQ(), "guiding": guiding} if critic == "known" else {}
        leader = BCHG(led_lake(), seed=0, learning_rate=1e-9, batch_size=1_000, **how).learn(5)
        assert (leader.estimator_config.critic == "td") == (critic == "td")
        found[guiding] = leader.gradient_samples(count, episodes=60)
    mean = found["fitted"].mean(0)
    error = found["fitted"].std(0, ddof=1) / count**0.5
    bias = 0.01 if critic == "known" else 0.04  # of networks; the guiding term alone is 0.054, −0.198, −0.010
    assert (np.abs(mean - truth) < 4 * error + bias).all(), (mean, truth, error)
    assert truth @ mean / np.linalg.norm(truth) / np.linalg.norm(mean) > 0.99
    assert abs(mean[1] - truth[1]) < 0.35 * abs(truth[1])  # the follower's reaction alone
    variance = {guiding: samples.var(0, ddof=1).sum() for guiding, samples in found.items()}
    assert variance["fitted"] < 0.5 * variance.get("sampled", np.inf), variance


class Drawn(gym.Env):
    """States are drawn anew at every step, whatever the follower does."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float64)
    action_space = gym.spaces.Box(-10.0, 10.0, (1,), np.float64)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.np_random.normal(size=1), {}

    def step(self, action):
        return self.np_random.normal(size=1), 0.0, False, False, {}


class Follows:
    """The soft optimum for r_F = −(b − θ s)²: b ~ N(θ s, β/2)."""

    beta = None
    capabilities = Capabilities(gives_values=True, learns=True)

    def respond(self, task, theta, model, init=None, learn=True):
        spread = float(np.log((PREFERENCES.beta / 2) ** 0.5 / 10))

        def drawn(seen, run):
            return torch.cat([float(theta[run, 0]) * seen / 10, torch.full_like(seen, spread)], -1)

        networks = tuple(partial(drawn, run=run) for run in range(len(theta)))
        policy = NetworkGaussian(networks, torch.tensor([-10.0]), torch.tensor([10.0]), squashed=False)
        nothing = torch.zeros(len(theta), dtype=torch.float64)

        def value(state, action=None):  # has no weight: θ is not in the moves
            return torch.zeros(state.shape[:-1], dtype=torch.float64)

        return BestResponse(policy, value, value, residual=nothing, optimal=True)


def vector_actions(preferences=PREFERENCES):
    """The leader wants b = s: J_L = −[(θ − 1)² E s² + β/2] / (1 − γ)."""
    return BilevelWrapper(
        ConfigurableRewards(
            gym.wrappers.TimeLimit(Drawn(), 50),
            gym.spaces.Box(0.0, 1.0, (1,), np.float64),
            lambda theta, c: -((c[..., 1] - theta[..., 0] * c[..., 0]) ** 2),
            lambda theta, c: -((c[..., 1] - c[..., 0]) ** 2),
            preferences,
            lambda observation, action, reward, after, info: [observation[0], action[0]],
        ),
        Follows(),
    )


@pytest.mark.slow
def test_vector_actions_are_drawn_and_the_mean_estimate_is_the_closed_form():
    leader = BCHG(vector_actions(), seed=0, batch_size=500, learning_rate=1e-300, optimizer="sgd", max_grad_norm=1e9)
    assert leader.estimator_config.guiding == "fitted"
    samples = training_estimates(leader.learn(2), 8).ravel() / 0.25  # dθ/draw at ½
    counted = (1 - 0.9**50) / (1 - 0.9)  # of an episode of 50 steps
    wanted = -2 * (0.5 - 1) * counted
    error = samples.std(ddof=1) / 8**0.5
    assert abs(samples.mean() - wanted) < 4 * error + 0.1 * wanted, (samples.mean(), error, wanted)


@pytest.mark.slow
def test_an_actor_with_vector_actions_is_led():
    follower = SB3Follower("SAC", 50, first_steps=150, learning_starts=100, policy_kwargs={"net_arch": [16]})
    env = vector_actions()
    leader = BCHG(BilevelWrapper(env.unwrapped, follower), seed=0, batch_size=100)
    assert np.isfinite(leader.learn(2).theta).all()
