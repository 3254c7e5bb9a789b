"""The world as a leader has seen it, and critics that do not judge what they were fitted to."""

from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch

from bilevel_envs import TabularModel
from bilevel_envs.core.noise import Noise
from bilevel_envs.parameterizations import Free
from leaders import BCHG, exact
from leaders.critics import Empirical, ExactCritic, ExpectedSarsa, MonteCarlo, NetworkCritic, Sarsa, StateTable
from leaders.critics.cross_fit import Judges, cross_fitted, halves
from leaders.estimators.continuation import continuation
from leaders.functional.guiding import ESTIMATORS
from leaders.functional.weights import Weights
from tests.helpers import response, rollout, two_episodes

NOISE = Noise([0])
HALF = response([[[0.5, 0.5], [0.5, 0.5], [0.5, 0.5]]])


def world(continues=None):
    """Three states, two actions, moves of probability ½ each; rewards of pairs are 1, 2, 3, ..."""
    successor = [[[0, 1], [1, 2]], [[1, 2], [2, 0]], [[2, 0], [0, 1]]]
    transition = torch.zeros(1, 3, 2, 3, dtype=torch.float64)
    for s in range(3):
        for b in range(2):
            transition[0, s, b, successor[s][b]] = 0.5
    reward = torch.arange(1.0, 7.0, dtype=torch.float64).view(1, 3, 2)
    return TabularModel(transition, torch.eye(3, dtype=torch.float64)[:1], reward, -reward, continues), successor


def every_move(successor, times=1, terminated=()):
    """A batch that makes every possible move so many times, as episodes of one step."""
    moves = [(s, b, there) for s in range(3) for b in range(2) for there in successor[s][b]] * times
    state, action, following = (torch.tensor(column).view(1, -1, 1) for column in zip(*moves, strict=True))
    ends = torch.tensor([(s, b) in terminated for s, b, _ in moves]).view(1, -1, 1)
    batch = rollout(state.tolist(), action=action.tolist(), next_state=following.tolist())
    return replace(batch, terminated=ends, r_leader=1.0 + 2 * state.double() + action)


@pytest.mark.parametrize("times", [1, 3])
def test_a_world_that_was_seen_in_its_proportions_has_its_exact_values(times):
    model, successor = world()
    critic, truth = Empirical(0.9), ExactCritic(0.9)
    batch = every_move(successor, times)
    critic.fit(batch, HALF, model, NOISE)
    truth.fit(batch, HALF, model, NOISE)
    for ours, theirs in zip(critic.values(batch, HALF.policy), truth.values(batch, HALF.policy), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)


def test_the_critics_values_are_those_made_by_hand():
    # 0 → 1 (1), 1 → end (2); then 0 → 2 (4), where the batch ends: nothing is known of 2, so of (0, 1) neither
    model, _ = world()
    critic = Empirical(0.9)
    model = model.with_rewards(torch.tensor([[[1.0, 4.0], [0.0, 2.0], [9.0, 9.0]]]).double(), model.r_follower)
    critic.fit(two_episodes(), HALF, model, NOISE)
    q, v = critic.tables
    # V(1) = 2, V(0) = 1 + .9 · 2; (0, 1) and (1, 0) have the value of their state, and no benefit
    np.testing.assert_allclose(v[0], [2.8, 2.0, 0.0], rtol=1e-15)
    np.testing.assert_allclose(q[0], [[2.8, 2.8], [2.0, 2.0], [0.0, 0.0]], rtol=1e-15)
    assert critic.moves.known[0].tolist() == [[True, False], [False, True], [False, False]]


def test_steps_that_end_an_episode_are_counted():
    continues = torch.ones(1, 3, 2, dtype=torch.float64)
    continues[0, 1] = 0.0
    model, successor = world(continues)
    batch = every_move(successor, terminated={(1, 0), (1, 1)})
    critic, truth = Empirical(0.9), ExactCritic(0.9)
    critic.fit(batch, HALF, model, NOISE)
    truth.fit(batch, HALF, model, NOISE)
    np.testing.assert_allclose(critic.tables[0], truth.table, rtol=1e-12)


def test_present_probabilities_count_where_theta_moves_the_transitions():
    model, successor = world()
    batch = every_move(successor)
    biased = torch.where(model.moves.dense() > 0, model.moves.dense() * torch.tensor([1.6, 1.0, 0.4]), 0.0)
    moved = TabularModel(biased / biased.sum(-1, keepdim=True), model.initial, model.r_leader, model.r_follower)
    truth = ExactCritic(0.9)
    truth.fit(batch, HALF, moved, NOISE)
    knows, counts = Empirical(0.9, theta_moves=True), Empirical(0.9)
    for critic in (knows, counts):
        critic.fit(batch, HALF, moved, NOISE)
    np.testing.assert_allclose(knows.tables[0], truth.table, rtol=1e-12)
    assert np.abs(counts.tables[0] - truth.table.numpy()).max() > 0.5


def test_taking_a_batch_out_again_leaves_what_was_there_before():
    model, successor = world()
    first, second = every_move(successor), every_move(successor[::-1], 2)
    critic, alone = Empirical(0.9), Empirical(0.9)
    critic.fit(first, HALF, model, NOISE)
    critic.fit(second, HALF, model, NOISE)
    alone.fit(first, HALF, model, NOISE)
    np.testing.assert_allclose(critic.without(second).tables[0], alone.tables[0], rtol=1e-12)
    assert np.abs(critic.tables[0] - alone.tables[0]).max() > 0.01


def test_saved_counts_that_lead_nowhere_are_refused():
    model, successor = world()
    critic = Empirical(0.9)
    critic.fit(every_move(successor), HALF, model, NOISE)
    state = critic.state_dict()
    other = Empirical(0.9)
    other.load_state_dict(state)
    other.fit(every_move(successor), HALF, model, NOISE)
    np.testing.assert_array_equal(other.seen.visits, 2 * critic.seen.visits)
    for name, wrong, message in (
        ("successor", 3, r"must lead to states 0 … 2, got -?\d … 3"),
        ("successor", -1, "without gaps"),
        ("endings", 5.0, "0 ≤ endings ≤ visits"),
        ("visits", float("nan"), "must be finite"),
    ):
        damaged = critic.state_dict()
        damaged[name][0, 0, 0, 0] = wrong
        with pytest.raises(ValueError, match=message):
            other.load_state_dict(damaged)
    with pytest.raises(ValueError, match=r"must lead to states"):
        other.load_state_dict({**state, **{name: state[name][..., :0] for name in ("successor", "visits", "endings")}})
    with pytest.raises(ValueError, match=r"those of \[1, 3, 2\] runs, states and actions, not of \[1, 4, 2\]"):
        other.seen.add(every_move(successor), 4, 2)


def test_the_coverage_of_a_batch_is_that_made_by_hand():
    model, _ = world()
    critic = Empirical(0.9)
    critic.fit(two_episodes(), HALF, model, NOISE)
    share, visits = critic.seen.coverage()
    np.testing.assert_allclose(share, [3 / 6])  # (0, 0), (1, 1) and (0, 1)
    np.testing.assert_allclose(visits, [1.0])


# Continuation -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gamma", [0.9, 0.6])
def test_the_continuation_of_a_cut_is_the_hypergradient_of_the_world_started_there(make, gamma):
    """A whole leader's count that arrives in state 4, no trace: the exact hypergradient from there, all of θ."""
    env = make("RandomMDP", seed=2, gamma_follower=gamma)
    theta = torch.tensor([[0.3, -0.2, 0.5, 0.1, -0.4]], dtype=torch.float64, requires_grad=True)
    model, best = env.model(theta), env.best_response(theta.detach())
    seen = Empirical(0.9, theta_moves=True)
    state, action, following = (model.moves.dense()[0] > 0).nonzero(as_tuple=True)
    moves = rollout(
        state.view(1, -1, 1).tolist(), action.view(1, -1, 1).tolist(), next_state=following.view(1, -1, 1).tolist()
    )
    seen.fit(moves, best, model.detach(), NOISE)
    cut = rollout([[[0]]], next_state=[[[4]]])
    counts, nothing = torch.full((1, 1, 1), 1 / 0.9, dtype=torch.float64), torch.zeros(1, 1, 1, dtype=torch.float64)
    judges = Judges([seen], torch.zeros(1, 1, 1, dtype=torch.long), seen, 0.9, [seen])
    weights = Weights(counts, nothing, None, None)
    total = continuation(judges, model, cut, best, counts, weights, env.preferences, rule=ESTIMATORS["bc_hg"])
    (ours,) = torch.autograd.grad(total.sum(), theta, retain_graph=True)
    there = replace(model.detach(), initial=torch.eye(10, dtype=torch.float64)[4:5], structure=None)
    begun = replace(model, initial=there.initial, structure=None)
    direct, guiding = exact.surrogates(begun, best, env.preferences)
    (truth,) = torch.autograd.grad((direct + guiding).sum(), theta)
    torch.testing.assert_close(ours, truth, rtol=1e-9, atol=1e-12)


def test_a_trace_that_is_cut_goes_on_as_the_follower_s_own_return():
    """A trace of 1/γ_F that arrives in a state, no leader's count: ∇V_F of that state, here by differences in r_F."""
    from bilevel_envs import Preferences
    from bilevel_envs.followers import SoftValueIteration

    preferences = Preferences(0.9, 0.8, 0.5)
    model, successor = world()
    size = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    scaled = model.with_rewards(model.r_leader, size * model.r_follower)
    solver = SoftValueIteration(tol=1e-13)
    best = solver.best_response(scaled.detach(), preferences)
    seen = Empirical(0.9)
    seen.fit(every_move(successor), best, scaled.detach(), NOISE)
    judges = Judges([seen], torch.zeros(1, 1, 1, dtype=torch.long), seen, 0.9, [seen])
    nothing, trace = torch.zeros(1, 1, 1).double(), torch.full((1, 1, 1), 1 / 0.8, dtype=torch.float64)
    cut = rollout([[[0]]], next_state=[[[2]]])
    how = (judges, scaled, cut, best, nothing, Weights(nothing, trace, None, None), preferences)
    (ours,) = torch.autograd.grad(continuation(*how, rule=ESTIMATORS["bc_hg"]).sum(), size)
    assert continuation(*how, rule=ESTIMATORS["naive_pgd"]).abs().max() == 0
    step = 1e-5
    above, below = (
        solver.best_response(model.with_rewards(model.r_leader, (1 + d) * model.r_follower), preferences).v.values[0, 2]
        for d in (step, -step)
    )
    assert float(ours) == pytest.approx(float(above - below) / (2 * step), rel=1e-7)


# Cross-fitting ------------------------------------------------------------------------------------------------


def test_episodes_take_turns_and_a_single_one_is_judged_by_what_was_before():
    several = rollout([[[0, 1, 0, 1]], [[0, 1, 2, 0]]], terminated=[[[0, 1, 0, 1]], [[0, 0, 1, 0]]])
    assert halves(several, keeps=True).tolist() == [[[1, 1, 0, 0]], [[1, 1, 1, 0]]]
    single = rollout([[[0, 1, 2, 0]]])
    assert halves(single, keeps=True).tolist() == [[[1, 1, 1, 1]]]
    assert halves(single, keeps=False).tolist() == [[[0, 0, 1, 1]]]
    beside = rollout([[[0, 1, 2, 0]], [[0, 1, 2, 0]]], terminated=[[[0, 0, 0, 0]], [[0, 1, 0, 1]]])
    assert halves(beside, keeps=False).tolist() == [[[0, 0, 1, 1]], [[1, 1, 0, 0]]]  # each run by itself


CRITICS = {
    "empirical": lambda: Empirical(0.9),
    "expected_sarsa": lambda: ExpectedSarsa(0.9, 0.5),
    "sarsa": lambda: Sarsa(0.9),
    "monte_carlo": lambda: MonteCarlo(0.9),
    "state_values": lambda: StateTable(0.9, 0.5),
    "td": lambda: NetworkCritic(0.9),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", CRITICS)
def test_no_critic_judges_transitions_that_it_was_fitted_to(make, kind):
    """Where one half of the episodes brings something else, only the values of the other half change."""
    env = make("RandomMDP")
    best, model = env.best_response(np.zeros(5)), env.model(np.zeros(5)).detach()
    batch = env.rollout(np.zeros(5), best, Noise([0]), rows=8, horizon=30)
    half = halves(batch, keeps=True)
    other = replace(
        batch,
        r_leader=torch.where(half == 0, batch.r_leader + 3.0, batch.r_leader),
        next_state=torch.where(half == 0, (batch.next_state + 1) % 10, batch.next_state),
    )

    def values(of):
        critic = CRITICS[kind]()
        seen = critic if kind == "empirical" else Empirical(0.9)
        judges = cross_fitted(critic, of, best, model, Noise([1]), gamma=0.9, seen=seen)
        return judges.values(of, best.policy)[:2]

    for before, after in zip(values(batch), values(other), strict=True):
        torch.testing.assert_close(before[half == 0], after[half == 0], rtol=1e-12, atol=1e-12)
        assert (before[half == 1] - after[half == 1]).abs().max() > 1e-3


def test_pairs_that_were_never_visited_have_no_benefit_whatever_the_critic(make):
    env = make("RandomMDP")
    best, model = env.best_response(np.zeros(5)), env.model(np.zeros(5)).detach()
    batch = env.rollout(np.zeros(5), best, Noise([3]), rows=4, horizon=4)
    shifted = replace(batch, r_leader=batch.r_leader + 100.0)  # so that a value of 0 would stand out
    for kind in ("expected_sarsa", "monte_carlo"):
        judges = cross_fitted(CRITICS[kind](), shifted, best, model, Noise([1]), gamma=0.9, seen=Empirical(0.9))
        q, v, _ = judges.values(shifted, best.policy)
        known = judges.by_part(
            [torch.from_numpy(seen.moves.known)[0, batch.state, batch.action] for seen in judges.seen]
        )
        assert 0 < (~known).sum() < known.numel()
        assert ((q - v)[~known] == 0).all()


def test_a_leader_says_once_that_it_has_seen_too_little(make, caplog):
    env = make("RandomMDP", states=400, branching=20)
    leader = BCHG(env, batch_size=20).learn(12)
    (message,) = caplog.messages
    assert "after 10 iterations" in message
    assert "too little has been seen for estimates to be trusted" in message
    assert "Raise `batch_size`" in message
    coverage, visits = (leader.history[name][:, 0] for name in ("coverage", "visits_per_pair"))
    assert (np.diff(coverage) >= 0).all()
    assert 0 < coverage[-1] < 0.2
    np.testing.assert_allclose(coverage * visits * 1200, 20.0 * np.arange(1, 13))


def test_a_leader_says_if_its_rows_never_reach_what_counts(caplog):
    """A corridor of 60 states, γ = 0.99: rows of 20 steps see a fifth of what counts, whatever they are repeated."""
    from bilevel_envs import BilevelWrapper, ConfigurableMDP, Preferences, TabularEnv

    class Corridor(ConfigurableMDP):
        theta_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float64)
        default_theta = np.zeros(1)
        preferences = Preferences(0.99, 0.99, 0.5)

        def model(self, theta):
            transition = torch.eye(60, dtype=torch.float64).roll(1, 1)[None, :, None].expand(1, 60, 2, 60)
            reward = theta[:, :, None] * torch.tensor([0.0, 1.0], dtype=torch.float64) + torch.zeros(1, 60, 2)
            return TabularModel(transition, torch.eye(60, dtype=torch.float64)[:1], reward, reward)

    env = BilevelWrapper(TabularEnv(Corridor()))
    BCHG(env, policy=Free(np.zeros((1, 1))), batch_size=20, rows=1).learn(12)
    (message,) = caplog.messages
    assert f"{100 * 0.99**20:.0f} % of an episode, behind cuts in states that were never left" in message


def test_a_leader_that_has_seen_enough_says_nothing(make, caplog):
    leader = BCHG(make("TollBridge")).learn(20)
    assert not caplog.messages
    assert leader.history["coverage"][-1, 0] > 0.5
