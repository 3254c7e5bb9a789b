"""Networks fitted to temporal differences, and what is built on them: the critic, HPGD's baseline, the paper's form."""

from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch

from bilevel_envs import BilevelWrapper, Rollout
from bilevel_envs.core.noise import Noise
from bilevel_envs.followers import Riccati
from bilevel_envs.networks.policies import NetworkCategorical
from bilevel_envs.networks.temporal_differences import PUBLISHED_FIT, Fit, TemporalDifference
from bilevel_envs.worlds.linear_quadratic.env import LinearEnv
from bilevel_envs.worlds.linear_quadratic.model import Quadratic
from bilevel_envs.worlds.linear_quadratic.polynomials import lstd
from leaders import BCHG, HPGD, NaivePGD, exact
from leaders.critics import ExactCritic, NetworkCritic
from leaders.critics.baseline import QuadraticBaseline
from leaders.critics.cross_fit import fitted_to_all
from leaders.functional.per_step import clipped, per_step_gradient
from leaders.functional.weights import discount_weights
from tests.helpers import Pendulums, building

SHORT = replace(PUBLISHED_FIT, steps=5)


@pytest.fixture(scope="module")
def half_open():
    """The building at θ = 1/2 in two runs, a batch of ten episodes each."""
    env = building()
    theta = np.full((2, 8), 0.5)
    best, model = env.best_response(theta), env.model(theta)
    return env, best, model, env.rollout(theta, best, Noise([0, 1]), rows=10, horizon=100)


@pytest.mark.slow
def test_a_linear_network_comes_to_the_least_squares_solution():
    rng = torch.Generator().manual_seed(0)
    x, later = (torch.randn(2, 60, 3, generator=rng, dtype=torch.float64) for _ in range(2))
    reward = torch.randn(2, 60, 2, generator=rng, dtype=torch.float64)
    used = torch.rand(2, 60, generator=rng) > 0.2
    how = Fit(hidden=(), steps=3_000, minibatch=None, learning_rate=1e-2, refresh=None, scaled=True)
    network = TemporalDifference(0.5, how)
    network.fit(x, reward, used, lambda f: f(later) * used[..., None], Noise([0, 1]))
    # with a bias a linear network has the features (x, 1)
    one = torch.ones(2, 60, 1, dtype=torch.float64)
    phi, phi_later = (torch.cat([part, one], -1) * used[..., None] for part in (x, later))
    expected = torch.cat([x, one], -1) @ lstd(phi, phi_later, reward, 0.5)
    torch.testing.assert_close(network(x), expected, rtol=0, atol=1e-3)


def by_a_plain_loop(first, batches, gamma, how):
    """The published fit of one run's network, in as many words: (x, r [K, D], x', mask) of each iteration."""
    for x, reward, following, used in batches:
        layers = [torch.nn.Linear(*weight.shape) for weight in first[0::2]]
        for layer, weight, bias in zip(layers, first[0::2], first[1::2], strict=True):
            layer.double()
            layer.weight.data, layer.bias.data = weight.T.clone(), bias[0].clone()  # restarted in every iteration
        network = torch.nn.Sequential(*[m for layer in layers[:-1] for m in (layer, torch.nn.ReLU())], layers[-1])
        optimiser = torch.optim.Adam(network.parameters(), lr=1e-4)
        scale = reward[used].abs().amax(0) if how.normalised else torch.ones(reward.shape[1]).double()
        for _ in range(how.steps):
            with torch.no_grad():
                target = reward / scale + gamma * network(following)
            loss = ((network(x) - target) ** 2).mean(1)[used].mean()
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimiser.step()
    return lambda at: network(at).detach() * scale


@pytest.mark.slow
@pytest.mark.parametrize("normalised", [False, True])
def test_the_published_fit_of_the_critic_is_a_plain_loop(half_open, normalised):
    env, best, _, batch = half_open
    how = replace(PUBLISHED_FIT, steps=6, normalised=normalised)
    other = env.rollout(np.full((2, 8), 0.5), best, Noise([7, 8]), rows=10, horizon=100)
    critic = NetworkCritic(0.9, how)
    for one in (other, batch):
        critic.fit(one, best, None, Noise([0, 1]))
    for run in range(2):
        batches = []
        for one in (other, batch):
            x = torch.cat([one.state[run], one.action[run]], -1)
            following, used = x.roll(-1, 1), torch.ones(10, 100, dtype=torch.bool)
            used[:, -1] = False  # done steps are left out: neither bootstrapped nor terminal
            batches.append((x.flatten(0, 1), one.r_leader[run].reshape(-1, 1), following.flatten(0, 1), used.flatten()))
        expected = by_a_plain_loop([layer[run] for layer in critic.network.first], batches, 0.9, how)
        q, _, _ = critic.values(batch, best.policy)
        torch.testing.assert_close(q[run].flatten(), expected(batches[-1][0])[:, 0], rtol=1e-9, atol=1e-12)


def test_the_published_fit_of_the_baseline_is_a_plain_loop(half_open):
    _, _, _, batch = half_open
    added = torch.randn(2, 10, 100, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    added = added * torch.tensor([1.0, 10.0, 1e4]).double()
    baseline = HPGD(building(), "td", preset="paper", critic="lstd", runs=2).critic.baseline
    assert baseline.how == replace(PUBLISHED_FIT, normalised=True)
    baseline.how = baseline.network.how = replace(baseline.how, steps=6)
    baseline.fit(batch, added, batch.valid, Noise([0, 1]))
    for run in range(2):
        used = torch.ones(10, 100, dtype=torch.bool)
        used[:, -1] = False
        rows = (batch.state[run].flatten(0, 1), added[run].flatten(0, 1), batch.next_state[run].flatten(0, 1))
        first = [layer[run] for layer in baseline.network.first]
        expected = by_a_plain_loop(first, [(*rows, used.flatten())], 0.9, baseline.how)
        torch.testing.assert_close(baseline(batch.state)[run].flatten(0, 1), expected(rows[0]), rtol=1e-9, atol=1e-9)


def test_an_entry_that_was_rare_at_first_does_not_blow_up():
    rng = np.random.default_rng(0)
    level = torch.from_numpy(rng.uniform(0, 0.71, (1, 400, 1)))
    knots = torch.linspace(0, 1, 11, dtype=torch.float64)
    first, second = ((1 - 10 * (x - knots).abs()).clamp(min=0) for x in (level, level + 0.2))
    assert 0 < first[..., 8].max() < 0.1  # of a hat that is 1 in the second batch
    network = TemporalDifference(0.0, Fit(steps=200))
    used = torch.ones(1, 400, dtype=torch.bool)
    for x, at in ((first, level), (second, level + 0.2)):
        network.fit(x, 5 + at, used, lambda f: torch.zeros_like(level), Noise([0]))
        assert float((x / network.input_scale).abs().max()) <= 3
    torch.testing.assert_close(network(second), 5 + level + 0.2, rtol=0, atol=0.1)


def test_what_has_never_been_paid_is_worth_nothing():
    rng = np.random.default_rng(0)
    x, used = torch.from_numpy(rng.normal(size=(2, 50, 3))), torch.ones(2, 50, dtype=torch.bool)
    used[:, 40:] = False
    reward = torch.ones(2, 50, 3, dtype=torch.float64)
    reward[0, :, 1] = 0
    reward[1, :40, 2] = 0  # what is not used does not count
    network = TemporalDifference(0.9, Fit(steps=5))

    def fit():
        network.fit(x, reward, used, lambda f: f(x) * used[..., None], Noise([0, 1]))
        return (network(x) != 0).any(1).tolist()

    assert fit() == [[True, False, True], [True, True, False]]
    reward[0, 7, 1] = 1  # once, and from then on
    assert fit() == [[True, True, True], [True, True, False]]
    assert network.copies(2)(x.repeat(2, 1, 1)).ne(0).any(1).tolist() == [[True, True, True], [True, True, False]] * 2
    reward[0, :, 1] = 0
    assert fit() == [[True, True, True], [True, True, False]]


@pytest.mark.slow
def test_what_an_action_matters_is_learnt_beside_a_large_value():
    """Rewards 100 + 0.2 b of actions 0 and 1, states that nothing moves: Q(s, 1) − Q(s, 0) = 0.2 beside V = 1,001."""
    rng = np.random.default_rng(0)
    state, after = (torch.from_numpy(rng.normal(size=(1, 1, 400, 1))) for _ in range(2))
    action = torch.from_numpy(rng.integers(2, size=(1, 1, 400)))
    reward = 100 + 0.2 * action.double()
    never = torch.zeros(1, 1, 400, dtype=torch.bool)
    batch = Rollout(state, action, after, reward, reward, never, never, torch.zeros_like(action), ~never)
    policy = NetworkCategorical((lambda seen: torch.full((len(seen), 2), float(np.log(0.5)), dtype=torch.float64),))
    critic = NetworkCritic(0.9, Fit(), "both", actions=2)
    for round_ in range(10):
        critic.fit_to(reward[..., None], batch, policy, Noise([round_]))
    both = torch.tensor([0, 1]).expand(1, 400, 2)
    q = critic.action_values(state[0], both, policy)[..., 0]
    gain = (q[..., 1] - q[..., 0]).mean()
    assert abs(float(gain) - 0.2) < 0.1
    assert float((q[..., 1] - q[..., 0]).std()) < 0.1
    assert abs(float(q.mean()) - 1_001) < 20
    here = q.gather(-1, action[0, 0][None, :, None])[..., 0]
    found, v, _ = critic.values(batch, policy)
    torch.testing.assert_close((found - v)[0], here - q.mean(-1)[0])  # both actions are as likely: E[Q − V | s] = 0


def test_targets_stand_still_between_refreshes():
    x = torch.linspace(-1, 1, 20).double().view(1, 20, 1)
    asked = []

    def following(f):
        asked.append(f(x).clone())
        return asked[-1]

    how = Fit(steps=10, minibatch=None, refresh=4)
    TemporalDifference(0.9, how).fit(x, x, torch.ones(1, 20, dtype=torch.bool), following, Noise([0]))
    assert len(asked) == 3  # at steps 0, 4 and 8
    assert not torch.equal(asked[0], asked[1])


def test_a_network_goes_on_where_it_ended_unless_it_restarts(half_open):
    _, best, _, batch = half_open
    for restart in (False, True):
        critic = NetworkCritic(0.9, Fit(steps=3, minibatch=None, restart=restart))
        critic.fit(batch, best, None, Noise([0, 1]))
        once = critic.network.layers[0].detach().clone()
        critic.fit(batch, best, None, Noise([0, 1]))
        assert torch.equal(once, critic.network.layers[0]) == restart


def test_copies_stand_beside_their_runs(half_open):
    _, best, _, batch = half_open
    critic = NetworkCritic(0.9, Fit(steps=3))
    critic.fit(batch, best, None, Noise([0, 1]))
    copies = critic.copies(3).network
    for copy in range(3):
        for run in range(2):
            for mine, its in zip(critic.network.layers, copies.layers, strict=True):
                assert torch.equal(mine[run], its[2 * copy + run])
            assert torch.equal(critic.network.output_scale[run], copies.output_scale[2 * copy + run])


@pytest.mark.slow
def test_a_runs_network_is_the_same_alone_and_beside_others():
    together = BCHG(building(), critic=NetworkCritic(0.9, Fit(steps=10)), runs=3, seed=5).learn(3)
    alone = BCHG(building(), critic=NetworkCritic(0.9, Fit(steps=10)), runs=1, seed=7).learn(3)
    np.testing.assert_allclose(together.theta[2], alone.theta[0], rtol=1e-8)
    np.testing.assert_allclose(together.history["grad_norm"][:, 2], alone.history["grad_norm"][:, 0], rtol=1e-6)


def test_a_state_dict_is_a_snapshot(half_open):
    _, best, _, batch = half_open
    critic = NetworkCritic(0.9, Fit(steps=3))
    critic.fit(batch, best, None, Noise([0, 1]))
    state, before = critic.state_dict(), critic.values(batch, best.policy)[0]
    critic.fit(batch, best, None, Noise([0, 1]))
    critic.load_state_dict(state)
    torch.testing.assert_close(critic.values(batch, best.policy)[0], before, rtol=0, atol=0)
    other = NetworkCritic(0.9, Fit(steps=3, learning_rate=1e-9))
    other.load_state_dict(state)
    assert other.network._adam.param_groups[0]["lr"] == 1e-9
    with pytest.raises(ValueError, match=r"`hidden` must be that of the saved network, \(64, 64\), got \(8,\)"):
        NetworkCritic(0.9, Fit(hidden=(8,))).load_state_dict(state)


def test_loading_with_another_kind_of_critic_is_refused(tmp_path):
    BCHG(building(), batch_size=500).learn(1).save(tmp_path / "leader.zip")
    with pytest.raises(ValueError, match="`critic` and `baseline` must be of the kind"):
        BCHG.load(tmp_path / "leader.zip", building(), critic="td")
    with pytest.raises(ValueError, match="`preset` cannot be changed on loading"):
        BCHG.load(tmp_path / "leader.zip", building(), preset="paper")


def test_published_networks_start_orthogonal_and_each_run_has_its_own():
    network = TemporalDifference(0.9, replace(PUBLISHED_FIT, steps=1, learning_rate=1e-12))
    x = torch.zeros(2, 8, 6, dtype=torch.float64)
    network.fit(x, x[..., :1], torch.ones(2, 8, dtype=torch.bool), lambda f: 0 * f(x), Noise([0, 1]))
    first, second, last = network.first[0::2]
    torch.testing.assert_close(first @ first.mT, 2 * torch.eye(6).double().expand(2, -1, -1), rtol=0, atol=1e-5)
    torch.testing.assert_close(second.mT @ second, 2 * torch.eye(64).double().expand(2, -1, -1), rtol=0, atol=1e-5)
    torch.testing.assert_close(last.norm(dim=1), torch.full((2, 1), 0.01).double(), rtol=0, atol=1e-6)
    assert not torch.allclose(first[0], first[1])
    alone = TemporalDifference(0.9, network.how)
    alone.fit(x[1:], x[1:, :, :1], torch.ones(1, 8, dtype=torch.bool), lambda f: 0 * f(x[1:]), Noise([1]))
    torch.testing.assert_close(alone.first[0][0], first[1], rtol=0, atol=0)


@pytest.mark.parametrize("draws", [None, 4_000])
def test_expectations_over_actions_agree_with_the_closed_form(half_open, draws):
    _, best, model, batch = half_open
    exact_critic = ExactCritic(0.9)
    exact_critic.fit(batch, best, model, Noise([0]))
    critic = NetworkCritic(0.9, Fit(draws=draws))
    critic._noise = Noise([0, 1])
    quadratic = exact_critic.quadratic()
    critic.network = lambda x: quadratic(x)[..., None]
    critic.network.outputs = 1
    few = batch.steps(0, 5)
    few = replace(few, **{name: part[:, :2] for name, part in vars(few).items() if isinstance(part, torch.Tensor)})
    _, v, _ = critic.values(few, best.policy)
    # quadrature is exact for quadratics; 4,000 draws are off by a standard deviation over √4000
    _, expected, _ = exact_critic.values(few, best.policy)
    torch.testing.assert_close(v, expected, rtol=1e-10 if draws is None else 0.02, atol=0)


@pytest.mark.slow
def test_expectations_over_many_actions_are_drawn():
    env = building(zones=8)
    leader = BCHG(env, critic="td", batch_size=200).learn(2)
    assert leader.critic.nodes(torch.zeros(1, 3, 8).double(), leader.progress.best.policy)[0].shape[2] == 64


@pytest.mark.slow
def test_the_network_learns_the_leaders_values_in_the_building(half_open):
    env, best, model, batch = half_open
    critic, truth = NetworkCritic(0.9, Fit(steps=300)), ExactCritic(0.9)
    for seed in range(14):
        more = env.rollout(np.full((2, 8), 0.5), best, Noise([2 * seed + 10, 2 * seed + 11]), rows=10, horizon=100)
        critic.fit(more, best, None, Noise([seed, seed]))
    truth.fit(batch, best, model, Noise([0]))
    (q, v, _), (q_true, v_true, _) = (c.values(batch, best.policy) for c in (critic, truth))
    assert float((v - v_true).norm() / v_true.norm()) < 0.35
    for run in range(2):
        benefit, benefit_true = (x[run].flatten() for x in (q - v, q_true - v_true))
        assert float(torch.nn.functional.cosine_similarity(benefit, benefit_true, dim=0)) > 0.4


@pytest.mark.slow
def test_the_network_learns_the_leaders_values_in_tables():
    env = BilevelWrapper(gym.make("BiLevel/RandomMDP-v0", seed=0))
    theta = env.problem.default_theta[None]
    best, model = env.best_response(theta), env.model(theta)
    critic, truth = NetworkCritic(env.preferences.gamma_leader), ExactCritic(env.preferences.gamma_leader)
    for seed in range(20):
        batch = env.rollout(theta, best, Noise([seed]), rows=20, horizon=50)
        critic.fit(batch, best, None, Noise([seed]))
    truth.fit(batch, best, model, Noise([0]))
    (q, v, _), (q_true, v_true, _) = (c.values(batch, best.policy) for c in (critic, truth))
    for found, true in ((v, v_true), (q - v, q_true - v_true)):
        assert float((found - true).norm() / true.norm()) < 0.25


def test_per_step_scores_agree_with_their_closed_form(half_open):
    """∂ log p / ∂α_i = −δ_i s_i (s'_i − μ_i) / σ², and for the vent between zones i and j
    (s_j − s_i) [A0_ij (s'_i − μ_i) − A0_ji (s'_j − μ_j)] / σ²."""
    env, _, _, batch = half_open
    theta = torch.full((2, 8), 0.5, dtype=torch.float64, requires_grad=True)
    model = env.model(theta)
    score = per_step_gradient(model.terms(batch).log_arrival, theta)
    off = (batch.next_state - model.detach().mean_next(batch.state, batch.action)) / 4e-4
    s = batch.state
    insulation = -torch.tensor([4, 3, 6, 5]).double() / 100 * s * off
    forth, back = torch.tensor([[5, 4, 6, 5], [3, 4, 3, 5]]).double() / 100  # A0_ij, A0_ji
    after, off_after = s.roll(-1, -1), off.roll(-1, -1)
    vents = (after - s) * (forth * off - back * off_after)
    torch.testing.assert_close(score, torch.cat([insulation, vents], -1), rtol=1e-8, atol=1e-8)


def test_clipping_is_by_block_and_in_raw_parameters():
    gradients, slope = (
        torch.tensor([[[[3.0, 4.0, 0.1, 0.0]]]]).double(),
        torch.tensor([[0.5, 0.5, 0.25, 0.25]]).double(),
    )
    out = clipped(gradients, slope, {"one": slice(0, 2), "two": slice(2, 4)}, 1.0)
    # raw (1.5, 2) has norm 2.5 and is divided by it; (0.025, 0) is left
    expected = torch.tensor([[[[1.2, 1.6, 0.1, 0.0]]]]).double()
    torch.testing.assert_close(out, expected)


@pytest.mark.slow
def test_the_quadratic_baseline_is_the_followers_gradient():
    env = building()
    leader = HPGD(env, "td", runs=1)
    torch.nn.init.zeros_(leader.policy.raw)
    theta = torch.full((1, 8), 0.5, dtype=torch.float64, requires_grad=True)
    best, model = env.best_response(theta.detach()), env.model(theta)
    batch = env.rollout(theta.detach(), best, Noise([0]), rows=1_000, horizon=100)
    critic = leader._make_critic()
    judges = fitted_to_all(critic, batch, best, model.detach(), Noise([0]), gamma=0.9)
    leader.guiding.further(leader.sample(theta, model, batch, best, judges, Noise([0]), "keep"))
    # only few states: the closed form is one backward pass per state
    few = batch.steps(0, 4)
    few = replace(few, **{name: part[:, :3] for name, part in vars(few).items() if isinstance(part, torch.Tensor)})
    true = per_step_gradient(Riccati().reaction(model, env.preferences).v(few.state), theta)
    off = critic.baseline(few.state) - true
    assert float(off.norm() / true.norm()) < 0.05


class _TrueBaseline:
    """∇V_F in closed form."""

    def __init__(self, env):
        self.env = env

    def fit(self, batch, added, used, noise):
        pass

    def __call__(self, state):
        theta = torch.tensor(self.env.problem.default_theta)[None].requires_grad_()
        v = Riccati().reaction(self.env.model(theta), self.env.preferences).v
        entries = torch.cat([v.matrix.flatten(), v.constant])
        columns = torch.stack([torch.autograd.grad(entry, theta, retain_graph=True)[0][0] for entry in entries]).T
        n = v.matrix.shape[-1]
        return torch.stack([Quadratic(column[:-1].view(1, n, n), column[-1:])(state) for column in columns], -1)

    def copies(self, count):
        return self

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


@pytest.mark.slow
def test_hpgd_with_a_true_baseline_is_unbiased_where_states_are_vectors():
    env = BilevelWrapper(LinearEnv(Pendulums()), Riccati())
    leader = HPGD(env, "td", critic="exact", baseline=_TrueBaseline(env), batch_size=1_000)
    samples = leader.gradient_samples(400, episodes=400)
    direct, guiding = exact.hypergradient_parts(env, leader.theta)
    error = samples.std(0, ddof=1) / 400**0.5
    assert (np.abs(samples.mean(0) - direct - guiding) < 4 * error).all()
    for wrong in (direct, direct - guiding):
        assert (np.abs(samples.mean(0) - wrong) > 8 * error).any()


# The published form, step by step ---------------------------------------------------------------------------------


def by_loops(kind, batch, values, v_follower_next, score, slope, reward_gradient, baseline, gamma, beta):
    """Raw gradient of one run, as the specification of the published code words it: loops over episodes and steps."""
    q, v, v_next = values
    steps = 100
    episodes = [(row, first) for row in range(batch.state.shape[1]) for first in range(0, batch.state.shape[2], steps)]
    total = np.zeros(8)
    for row, first in episodes:
        onward = np.zeros((steps + 1, 8))  # G_t; the last step, whose successor is not stored, adds nothing
        for t in reversed(range(steps)):
            here = first + t
            added = gamma * v_follower_next[row, here] * score[row, here] * slope if t < steps - 1 else 0.0
            onward[t] = added + gamma * onward[t + 1]
        for t in range(steps):
            here = first + t
            direct = reward_gradient * slope
            if t > 0:
                before = score[row, here - 1] * slope
                for block in (slice(0, 4), slice(4, 8)):
                    norm = np.linalg.norm(before[block])
                    before[block] = before[block] * min(1.0, 1.0 / norm)
                direct = direct + v_next[row, here - 1] * before
            guide = np.zeros(8)
            if kind == "bchg":
                guide = (q[row, here] - v[row, here]) / beta * onward[t]
            elif kind == "hpgd":
                guide = q[row, here] / beta * (onward[t] - baseline[row, here] * slope)
            total += gamma**t * (direct + guide)
    return total / len(episodes)


def realised(reward):
    """What follows each step within its episode of 100."""
    returns = np.zeros_like(reward)
    for row, first in np.ndindex(reward.shape[0], reward.shape[1] // 100):
        for t in range(100):
            rest = reward[row, 100 * first + t : 100 * (first + 1)]
            returns[row, 100 * first + t] = (0.9 ** np.arange(len(rest)) * rest).sum()
    return returns


@pytest.mark.parametrize("kind", ["bchg", "naive-pgd", "hpgd-mc", "hpgd-td"])
def test_the_published_form_is_what_its_specification_says(kind):
    env = building()
    made = {
        "bchg": lambda: BCHG(env, preset="paper", critic="lstd", batch_size=2_000),
        "naive-pgd": lambda: NaivePGD(env, preset="paper", critic="lstd", batch_size=2_000),
        "hpgd-mc": lambda: HPGD(env, "mc", preset="paper", critic="lstd", baseline="lstd", batch_size=2_000),
        "hpgd-td": lambda: HPGD(env, "td", preset="paper", critic="lstd", baseline="lstd", batch_size=2_000),
    }
    leader = made[kind]()
    assert leader.rows == 10
    theta = leader._theta()
    best, model = env.best_response(theta.detach()), env.model(theta)
    batch = env.rollout(theta.detach(), best, Noise([0]), rows=10, horizon=200)
    judges = leader.judges(leader.critic, leader.seen, batch, best, model.detach(), Noise([0]))
    surrogate, _ = leader.surrogate(leader.sample(theta, model, batch, best, judges, Noise([0]), "keep"))
    (gradient,) = torch.autograd.grad(surrogate.sum(), leader.policy.raw, retain_graph=True)

    values = [x[0].numpy() for x in leader.critic.values(batch, best.policy)]
    if kind == "hpgd-mc":
        values[0] = realised(batch.r_leader[0].numpy())
    score = per_step_gradient(model.terms(batch).log_arrival, theta)[0].numpy()
    fixed = theta[0].detach().numpy()
    baseline = leader.critic.baseline(batch.state)[0].numpy() if "hpgd" in kind else None
    expected = by_loops(
        kind.split("-")[0],
        batch,
        values,
        best.v(batch.next_state)[0].numpy(),
        score,
        fixed * (1 - fixed),
        -0.2 * fixed,
        baseline,
        gamma=0.9,
        beta=0.1,
    )
    np.testing.assert_allclose(gradient[0].numpy(), expected, rtol=1e-8, atol=1e-8 * np.abs(expected).max())


def test_the_paper_presets_have_the_published_settings():
    env = building()
    rates = {"bchg": 0.1, "naive": 0.1, "mc": 0.001, "td": 0.01}
    leaders = {
        "bchg": BCHG(env, preset="paper"),
        "naive": NaivePGD(env, preset="paper"),
        "mc": HPGD(env, "mc", preset="paper"),
        "td": HPGD(env, "td", preset="paper"),
    }
    for name, leader in leaders.items():
        assert leader.config.learning_rate == rates[name]
        assert (leader.rows, leader.horizon, leader.config.optimizer) == (10, 1_000, "sgd")
        critic = leader.critic.critic if name in ("mc", "td") else leader.critic
        expected = replace(PUBLISHED_FIT, normalised=name in ("naive", "mc"))
        assert critic.how == expected
        assert expected == Fit(
            hidden=(64, 64),
            steps=5_000,
            minibatch=None,
            learning_rate=1e-4,
            max_grad_norm=1.0,
            refresh=None,
            restart=True,
            on_sample=True,
            draws=256,
            output=0.01,
            scaled=False,
            normalised=name in ("naive", "mc"),
        )
        assert (critic.of, critic.how.normalised) == (("action", False) if name in ("bchg", "td") else ("state", True))


def test_blocks_of_theta_are_clipped_apart():
    leader = NaivePGD(building(), preset="paper", critic="lstd", batch_size=2_000)
    before = leader.policy.raw.detach().clone()
    leader.learn(1)
    moved = (leader.policy.raw.detach() - before)[0]
    # gradients are several units long: each block is clipped to 1 and takes a step of 0.1
    np.testing.assert_allclose([moved[:4].norm(), moved[4:].norm()], 0.1, rtol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bchg", "mc", "td"])
def test_networks_save_and_load_bit_for_bit(kind, tmp_path):
    def new():
        how = Fit(steps=20)
        if kind == "bchg":
            return BCHG, {"critic": NetworkCritic(0.9, how), "gradient": "score"}
        return HPGD, {"variant": kind, "critic": "td", "baseline": "td"}

    cls, arguments = new()
    one = cls(building(), batch_size=500, **arguments).learn(1)
    one.save(tmp_path / "leader.zip")
    again = {"critic": new()[1]["critic"]} if kind == "bchg" else {}
    other = cls.load(tmp_path / "leader.zip", building(), **again).learn(1)
    one.learn(1)
    np.testing.assert_array_equal(one.theta, other.theta)
    np.testing.assert_array_equal(one.history.state(), other.history.state())


@pytest.mark.slow
def test_leaders_with_the_published_networks_run():
    for cls, arguments in (
        (BCHG, {"critic": NetworkCritic(0.9, SHORT)}),
        (NaivePGD, {"critic": NetworkCritic(0.9, SHORT, of="state")}),
    ):
        leader = cls(building(), preset="paper", batch_size=1_000, **arguments).learn(2)
        assert np.isfinite(leader.theta).all()


def test_bad_settings_are_refused_by_name():
    env = building()
    with pytest.raises(ValueError, match="`steps` must be"):
        Fit(steps=0)
    for arguments, kind, message in (
        ({"steps": None}, TypeError, "`steps` must be a whole number, got None"),
        ({"hidden": 64}, TypeError, "`hidden` must be a tuple of widths, got 64"),
        ({"restart": "x"}, ValueError, "`restart` must be one of True, False, got 'x'"),
    ):
        with pytest.raises(kind, match=message):
            Fit(**arguments)
    with pytest.raises(ValueError, match='`critic` must read actions, of="action" or "both", for BCHG'):
        BCHG(env, critic=NetworkCritic(0.9, of="state"))
    with pytest.raises(TypeError, match="`critic` must be one of"):
        BCHG(env, critic=np.zeros(3))
    with pytest.raises(TypeError, match="`env` must be a BilevelWrapper"):
        HPGD(gym.make("BiLevel/BuildingThermalControl-v0"), "td")
    with pytest.raises(ValueError, match='`score_weight` weighs ∇log p, which only `gradient="score"` uses'):
        BCHG(env, score_weight="value")
    with pytest.raises(ValueError, match="`of` must be one of 'action', 'state', 'both'"):
        NetworkCritic(0.9, of="states")
    with pytest.raises(ValueError, match="`variant` must be one of 'mc', 'td', got 'sa'"):
        HPGD(env, "sa")
    with pytest.raises(ValueError, match="`baseline` must be one of 'lstd', 'td', got 'mlp'"):
        HPGD(env, baseline="mlp")
    with pytest.raises(TypeError, match='`baseline` must be "lstd", "td" or an object with fit'):
        HPGD(env, baseline=QuadraticBaseline)
    with pytest.raises(ValueError, match='`gradient` must be "score" with a critic that gives no ∇V_L, here .td.'):
        BCHG(env, critic="td", gradient="pathwise")
    with pytest.raises(ValueError, match="`shared` must be False where states are vectors"):
        BCHG(env, shared=True)
    rooms = BilevelWrapper(gym.make("BiLevel/FourRooms-v0"))
    with pytest.raises(ValueError, match="`baseline` must be None where states are countable"):
        HPGD(rooms, baseline="lstd")
    with pytest.raises(ValueError, match='`score_weight` must be "td_error" or "value" for tables'):
        BCHG(rooms, score_weight="clipped")


def test_discount_weights_of_whole_episodes_is_the_discount_over_their_number(half_open):
    _, _, _, batch = half_open
    counts = discount_weights(batch, 0.9, "keep")
    np.testing.assert_allclose(counts[0, 0, :3], [0.1, 0.09, 0.081])
