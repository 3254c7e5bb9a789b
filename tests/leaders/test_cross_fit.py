"""Judges: whom they were fitted to, what they say of what is not known, and what is kept."""

from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch

from bilevel_envs import BilevelWrapper
from bilevel_envs.core.noise import Noise
from bilevel_envs.parameterizations import Free
from bilevel_envs.worlds.tabular.banded import Band, band_of
from bilevel_envs.worlds.tabular.model import TabularModel
from bilevel_envs.worlds.tabular.policy import BoltzmannPolicy
from leaders import BCHG, HPGD
from leaders.critics import Empirical
from leaders.critics.cross_fit import Judges, cross_fitted, halves
from leaders.critics.empirical_model import EmpiricalModel
from tests.helpers import response, rollout

NOISE = Noise([0])
GAMMA = 0.9


def plain_model(states, actions):
    """Uniform moves and rewards of 0: what critics of these tests ask a model for is its size."""
    transition = torch.full((1, states, actions, states), 1 / states, dtype=torch.float64)
    nothing = torch.zeros(1, states, actions, dtype=torch.float64)
    return TabularModel(transition, transition[:, 0, 0], nothing, nothing)


class Recorder:
    """A critic with a table of its own that remembers what it was fitted to."""

    keeps = learns = True

    def __init__(self, table, before=()):
        self.table, self.fits, self.copied = table, list(before), []

    def fit(self, batch, best, model, noise):
        self.fits.append((batch.valid.clone(), best.policy.probs.clone()))

    def values(self, batch, policy):
        v = (policy.probs * self.table).sum(-1)
        run = torch.arange(len(batch.state))[:, None, None]
        return self.table[run, batch.state, batch.action], v[run, batch.state], v[run, batch.next_state]

    def copies(self, count):
        self.copied.append(Recorder(self.table, self.fits))
        return self.copied[-1]


# Whom a critic is fitted to -----------------------------------------------------------------------------------

# Two episodes: 0 –a→ 1 –a→ 0, then 0 –b→ 0 –b→ 1. Each half knows the moves of the other.
LOOPS = {"state": [[[0, 1], [0, 0]]], "action": [[[0, 0], [1, 1]]], "next_state": [[[1, 0], [0, 1]]]}
G = [[[0.25, 0.75], [0.4, 0.6]]]


def test_copies_are_fitted_to_the_other_half_and_the_critic_itself_to_all():
    batch, critic = rollout(**LOOPS), Recorder(torch.zeros(1, 2, 2, dtype=torch.float64))
    seen = Empirical(GAMMA)
    judges = cross_fitted(critic, batch, response(G), plain_model(2, 2), NOISE, gamma=GAMMA, seen=seen)
    assert judges.part.tolist() == [[[1, 1], [0, 0]]]
    assert judges.whole is critic
    (of_first, on_first), (of_second, on_second), (of_whole, on_whole) = (
        one.fits[0] for one in (*judges.critics, critic)
    )
    assert [len(one.fits) for one in (*judges.critics, critic)] == [1, 1, 1]
    assert of_first.tolist() == [[[True, True], [False, False]]]
    assert of_second.tolist() == [[[False, False], [True, True]]]
    assert of_whole.all()
    # Expectations are over what each of them knows: the first half saw a at 0 and 1; the second b at 0, which leads
    # back to 0; all of them a and b at 0, a at 1.
    assert on_first.tolist() == [[[1.0, 0.0], [1.0, 0.0]]]
    assert on_second.tolist() == [[[0.0, 1.0], [0.0, 0.0]]]
    assert on_whole.tolist() == [[[0.25, 0.75], [1.0, 0.0]]]


def test_without_tables_the_critic_that_is_kept_was_fitted_to_all_too():
    batch, critic = rollout(**LOOPS), Recorder(torch.zeros(1, 2, 2, dtype=torch.float64))
    judges = cross_fitted(critic, batch, response(G), None, NOISE, gamma=GAMMA)
    assert judges.whole is critic
    assert not judges.seen
    assert [fits[0].all().item() for fits in critic.fits] == [True]
    assert [one.fits[0][0].tolist() for one in judges.critics] == [
        [[[True, True], [False, False]]],
        [[[False, False], [True, True]]],
    ]
    assert all((policy == torch.tensor(G, dtype=torch.float64)).all() for _, policy in critic.fits)


@pytest.mark.parametrize("runs", [1, 2])
@pytest.mark.parametrize("kind", ["empirical", "expected_sarsa"])
def test_a_leader_keeps_what_its_whole_batches_taught(make, kind, runs):
    """The critic after three iterations is one that was fitted to the three batches in turn."""
    env = make("RandomMDP", states=4, actions=2, branching=2, transition_share=0.0, beta=5.0)
    theta = np.full((runs, 5), 0.2)
    how = {"critic": kind, "runs": runs, "rows": 4, "batch_size": 80, "optimizer": "sgd", "learning_rate": 1e-300}
    leader = HPGD(env, policy=Free(theta), **how)
    batches, roll = [], env.rollout
    env.rollout = lambda *args, **kwargs: batches.append(roll(*args, **kwargs)) or batches[-1]
    leader.learn(3)
    assert [batch.state.shape for batch in batches] == [(runs, 4, 20)] * 3
    if kind == "empirical":
        visits = np.zeros((runs, 4, 2, 4))
        for batch in batches:
            for run in range(runs):
                where = (batch.state[run].flatten(), batch.action[run].flatten(), batch.next_state[run].flatten())
                np.add.at(visits[run], where, 1.0)
        counts = leader.critic.seen
        for run, s, b in np.ndindex(runs, 4, 2):
            found = {int(to): n for to, n in zip(counts.successor[run, s, b], counts.visits[run, s, b], strict=True)}
            assert {to: n for to, n in found.items() if n} == {to: n for to, n in enumerate(visits[run, s, b]) if n}
        return
    g = env.best_response(theta).policy.probs.numpy()
    table = np.zeros((runs, 4, 2))
    for index, batch in enumerate(batches):
        visited = torch.zeros(runs, 8).scatter(1, (batch.state * 2 + batch.action).flatten(1), 1.0)
        assert index > 0 or visited.all()  # so that every pair is known, and expectations are under g itself
        for run, k, row in np.ndindex(runs, 20, 4):
            s, b, to = (int(x[run, row, 19 - k]) for x in (batch.state, batch.action, batch.next_state))
            target = float(batch.r_leader[run, row, 19 - k]) + GAMMA * g[run % len(g), to] @ table[run, to]
            table[run, s, b] += 0.5 * (target - table[run, s, b])
    np.testing.assert_allclose(leader.critic.table, table, rtol=1e-12, atol=1e-12)


# What is not known --------------------------------------------------------------------------------------------


def test_expectations_are_over_known_pairs_whatever_a_critic_thinks_of_others():
    batch = rollout(**LOOPS)
    table = torch.tensor([[[2.0, 1e9], [3.0, -1e9]]], dtype=torch.float64)
    seen, model = Empirical(GAMMA), plain_model(2, 2)
    seen.fit(replace(batch, valid=batch.action == 0), response(G), model, NOISE)  # knows a at 0 and 1, not b
    judges = Judges([Recorder(table)], torch.zeros(1, 2, 2).long(), None, GAMMA, [seen], learnt=True)
    q, v, v_next = judges.values(batch, response(G).policy)
    assert v.tolist() == [[[2.0, 3.0], [2.0, 2.0]]]
    assert v_next.tolist() == [[[3.0, 2.0], [2.0, 3.0]]]
    assert q.tolist() == [[[2.0, 3.0], [2.0, 2.0]]]  # b has no benefit
    told = replace(judges, learnt=False)  # a critic that did not learn knows every pair, whatever was seen
    assert told.values(batch, response(G).policy)[0].tolist() == [[[2.0, 3.0], [1e9, 1e9]]]


@pytest.mark.parametrize("gamma", [0.9, 0.0])
def test_successors_that_were_never_left_bring_no_temporal_difference_error(gamma):
    """Two half-known steps, by hand: γ V(s') = Q(s, b) − r, whatever the critic thinks of s'."""
    batch = rollout([[[0, 0]]], action=[[[0, 1]]], next_state=[[[0, 1]]], r_leader=[[[0.5, 1.25]]])
    seen = Empirical(gamma)
    seen.fit(replace(batch, valid=batch.action == 0), response(G), plain_model(2, 2), NOISE)  # 0 –a→ 0 only
    table = torch.tensor([[[4.0, 7.0], [50.0, 60.0]]], dtype=torch.float64)
    judges = Judges([Recorder(table)], torch.zeros(1, 1, 2).long(), None, gamma, [seen], learnt=True)
    q, v, v_next = judges.values(batch, response(G).policy)
    assert v.tolist() == [[[4.0, 4.0]]]
    assert q.tolist() == [[[4.0, 4.0]]]  # (0, b) is not known: V(0)
    assert v_next[0, 0].tolist() == [4.0, (4.0 - 1.25) / gamma if gamma else 0.0]  # 1 was never left


def test_values_are_those_of_the_last_fit_though_they_were_read_before():
    loops, model = rollout(**LOOPS), plain_model(2, 2)
    first, second = (replace(loops, valid=loops.action == action) for action in (0, 1))
    paid = model.with_rewards(model.r_leader + 1.0, model.r_follower)
    read, fresh = Empirical(GAMMA), Empirical(GAMMA)
    read.fit(first, response(G), model, NOISE)
    assert (read.tables[1] == 0).all()  # nothing was paid yet
    assert read.reachable.probs.tolist() == [[[1.0, 0.0], [1.0, 0.0]]]
    for critic in (read, fresh):
        critic.fit(second, response(G), paid, NOISE)
    fresh.fit(first, response(G), paid, NOISE)
    np.testing.assert_allclose(read.tables[1], 1 / (1 - GAMMA), rtol=1e-12)  # 1 at every step, without end
    np.testing.assert_array_equal(read.reachable.probs, fresh.reachable.probs)
    np.testing.assert_array_equal(read.moves.known, fresh.moves.known)


# What moves whose weights -------------------------------------------------------------------------------------

LEADERS_OF_HALVES = {
    "bc_hg": lambda env, **how: BCHG(env, control_variate="none", **how),
    "bc_hg_shared": lambda env, **how: BCHG(env, shared=True, control_variate="none", **how),
    "hpgd mc": lambda env, **how: HPGD(env, "mc", **how),
    "hpgd sa": lambda env, **how: HPGD(env, "sa", **how),
}


@pytest.mark.parametrize("critic", ["empirical", "expected_sarsa", "monte_carlo", "sarsa"])
@pytest.mark.parametrize("kind", LEADERS_OF_HALVES)
def test_weights_of_a_half_do_not_move_with_its_own_outcomes(make, kind, critic):
    """Where the steps of one half lead elsewhere and bring more, the weights of ∇Q_F of the other half alone move."""
    env = make("RandomMDP", states=5, actions=2, transition_share=0.0)
    theta = np.array([[0.3, -0.2, 0.5, 0.1, -0.4], [0.1, 0.2, 0.3, 0.4, 0.5]])
    best, model = env.best_response(theta), env.model(theta).detach()
    batch = env.rollout(theta, best, Noise([0, 1]), rows=8, horizon=12)
    half = halves(batch, keeps=True)

    def weights(of):
        leader = LEADERS_OF_HALVES[kind](env, critic=critic, runs=2, rows=8, batch_size=96)
        judges = leader.judges(leader.critic, leader.seen, of, best, model, Noise([2, 3]))
        found = leader.weights(leader.sample(torch.tensor(theta), model, of, best, judges, Noise([2, 3]), "continue"))
        return found.r_follower, found.r_leader

    before = weights(batch)
    for moved in (0, 1):
        other = replace(
            batch,
            r_leader=torch.where(half == moved, batch.r_leader + 3.0 * batch.state.double(), batch.r_leader),
            next_state=torch.where(half == moved, (batch.next_state + 1) % 5, batch.next_state),
        )
        after = weights(other)
        torch.testing.assert_close(before[1], after[1], rtol=0, atol=0)
        own, others = (before[0] - after[0]).abs()[half == moved], (before[0] - after[0]).abs()[half != moved]
        assert own.max() < 1e-12
        assert others.max() > 1e-3


def test_hpgd_weighs_a_half_by_the_other_half_where_states_are_vectors_too():
    """The same of c_k and of its trace; the fitted ∇V_F that centres them is not cross-fitted."""
    env = BilevelWrapper(gym.make("BiLevel/BuildingThermalControl-v0"))
    theta = np.full((1, *env.theta_space.shape), 0.5)
    best, model = env.best_response(theta), env.model(theta).detach()
    batch = env.rollout(theta, best, Noise([0]), rows=6, horizon=50)
    half = halves(batch, keeps=False)
    assert sorted(half.unique().tolist()) == [0, 1]

    def trace(of):
        leader = HPGD(env, "td", critic="lstd")
        judges = leader.judges(leader.critic, leader.seen, of, best, model, Noise([1]))
        sample = leader.sample(torch.tensor(theta), model, of, best, judges, Noise([1]), "keep")
        return leader.weights(sample).r_follower

    before = trace(batch)
    for moved in (0, 1):
        elsewhere = torch.where((half == moved)[..., None], 0.5 * batch.next_state, batch.next_state)
        after = trace(replace(batch, next_state=elsewhere))
        assert (before - after).abs()[half == moved].max() < 1e-12
        assert (before - after).abs()[half != moved].max() > 1e-6


# Counts of stacked runs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("critic", ["empirical", "expected_sarsa"])
def test_stacked_samples_know_what_their_own_run_has_seen(make, critic):
    """Copy j of run i at j·R + i: after three iterations a run's samples are those of that run alone."""
    env = make("RandomMDP", states=20, transition_share=0.0)
    together, alone = (
        BCHG(env, critic=critic, batch_size=20, rows=2, seed=5 + index, **runs).learn(3)
        for index, runs in enumerate(({"runs": 3}, {}))
    )
    assert np.ptp(together.history["coverage"][-1]) > 0.01  # the runs have seen different things
    np.testing.assert_allclose(
        together.gradient_samples(3, episodes=2)[:, 1], alone.gradient_samples(3, episodes=2), rtol=1e-7, atol=1e-12
    )


# Bands of what was seen ---------------------------------------------------------------------------------------

LINE, HUB = 100, 40


def walk(moves):
    """A batch of one-step episodes (s, b, s') in a single run."""
    state, action, following = (torch.tensor(column).view(1, -1, 1).tolist() for column in zip(*moves, strict=True))
    return rollout(state, action=action, next_state=following)


def on_the_line(width=1):
    """Action 0 goes `width` to the right, or stays at the end; action 1 goes home to the hub."""
    return [(s, 0, min(s + width, LINE - 1)) for s in range(LINE)] + [(s, 1, HUB) for s in range(LINE)]


def check_solves(world, moves):
    """Both resolvents against dense solves of the counts."""
    counts = np.zeros((LINE, 2, LINE))
    for move in moves:
        counts[move] += 1
    probs = np.random.default_rng(0).dirichlet(np.ones(2), LINE)
    solved = world.moves(plain_model(LINE, 2), BoltzmannPolicy(torch.from_numpy(probs)[None].log()))
    matrix = np.eye(LINE) - 0.95 * np.einsum("sb,sbt->st", probs, counts / counts.sum(-1, keepdims=True))
    y = np.random.default_rng(1).normal(size=(1, LINE))
    for transpose, dense in ((False, matrix), (True, matrix.T)):
        expected = np.linalg.solve(dense, y[0])
        np.testing.assert_allclose(solved.resolvent(0.95, y, transpose=transpose)[0], expected, rtol=1e-9, atol=1e-9)


def test_a_band_is_kept_as_long_as_what_is_seen_fits_and_made_anew_when_it_does_not():
    world, moves = EmpiricalModel(), on_the_line()
    world.add(walk(moves), LINE, 2)
    first = world.band
    assert (first.width, first.border) == (1, 1)
    assert 4 * (first.width + first.border) < LINE  # narrow enough for the banded solver
    assert first.position[HUB] == LINE - 1
    check_solves(world, moves)
    # the hub may lead anywhere, and the inner states to their neighbours: both fit
    more = [(HUB, 0, 7), (HUB, 0, 93), (8, 0, 7), (60, 0, 60)]
    world.add(walk(more), LINE, 2)
    assert world.band is first
    check_solves(world, moves + more)
    one_too_far = [(10, 0, 12)]
    world.add(walk(one_too_far), LINE, 2)
    assert world.band is not first
    assert world.band.width == 2
    check_solves(world, moves + more + one_too_far)


@pytest.mark.parametrize("fits", [True, False])
def test_a_saved_band_comes_back_if_it_fits(fits):
    world, moves = EmpiricalModel(), on_the_line()
    world.add(walk(moves), LINE, 2)
    again = band_of(np.maximum(world.successor, 0), (world.successor >= 0).astype(float))
    backwards = np.where(again.position == LINE - 1, LINE - 1, LINE - 2 - again.position)  # as good an order
    kept = Band(backwards if fits else np.random.default_rng(0).permutation(LINE), 1, 1)
    saved = world.state_dict()
    saved |= {"position": torch.from_numpy(kept.position), "band": (kept.width, kept.border)}
    other = EmpiricalModel()
    other.load_state_dict(saved)
    expected = kept if fits else again
    np.testing.assert_array_equal(other.band.position, expected.position)
    assert (other.band.width, other.band.border) == (expected.width, expected.border)
    check_solves(other, moves)


def test_counts_can_be_saved_before_anything_was_seen():
    world, other, moves = EmpiricalModel(), EmpiricalModel(), on_the_line()
    other.load_state_dict(world.state_dict())
    for one in (world, other):
        one.add(walk(moves), LINE, 2)
        check_solves(one, moves)
