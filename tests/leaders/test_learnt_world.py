"""A learnt world: the follower's equations, what completes it, and the exact values that follow."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from bilevel_envs.core.noise import Noise
from bilevel_envs.followers import SoftValueIteration
from bilevel_envs.worlds.tabular.policy import BoltzmannPolicy
from leaders import MBHG, exact
from leaders.critics.empirical_model import EmpiricalModel
from leaders.learnt.equations import Answers, corrected
from leaders.learnt.part import Part
from leaders.learnt.plan import Planner, Schedule
from leaders.learnt.world import Knowledge, LearntWorld, Supposed, knowledge
from tests.helpers import random_mdp, toll_bridge, wrapped_env

GAMMA = 0.9


def answers_of(env, thetas):
    """What a soft-optimal follower answers at some θ [M, ...]."""
    model = env.model(thetas).detach()
    best = SoftValueIteration(tol=1e-12).best_response(model, env.preferences)
    return Answers(*(table.numpy() for table in (best.q.values, best.v.values, model.r_follower)))


def fixed_p(seed=0, states=6, actions=3, answers=20):
    """A random p and the follower's tables for random rewards in it: Q = r + γ p V, whatever V is."""
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.ones(states), (states, actions))
    v = rng.normal(size=(answers, states))
    reward = rng.normal(size=(answers, states, actions))
    return p, Answers(reward + GAMMA * np.einsum("sbt,mt->msb", p, v), v, reward)


def every_pair(states, actions):
    return np.argwhere(np.ones((states, actions), bool))


def all_states(pairs, states):
    successor = np.tile(np.arange(states), (len(pairs), 1))
    return successor, np.ones_like(successor, bool)


def test_equations_give_the_probabilities_whatever_the_frequencies_were():
    p, answers = fixed_p()
    pairs = every_pair(6, 3)
    wrong = np.random.default_rng(1).dirichlet(np.ones(6), len(pairs))
    found, holds = corrected(wrong, *all_states(pairs, 6), pairs, answers, GAMMA)
    assert holds.all()
    np.testing.assert_allclose(found, p.reshape(-1, 6), atol=1e-9)


def test_frequencies_stay_where_the_equations_say_nothing():
    """V_F is the same in the last two states: only the sum of their probabilities is determined."""
    p, answers = fixed_p()
    v = answers.v.copy()
    v[:, 5] = v[:, 4]
    answers = Answers(answers.reward + GAMMA * np.einsum("sbt,mt->msb", p, v), v, answers.reward)
    pairs = every_pair(6, 3)
    seen = p.reshape(-1, 6).copy()
    seen[:, 0], seen[:, 1] = seen[:, 1].copy(), seen[:, 0].copy()  # wrong where they can be put right
    found, holds = corrected(seen, *all_states(pairs, 6), pairs, answers, GAMMA)
    assert holds.all()
    np.testing.assert_allclose(found, p.reshape(-1, 6), atol=1e-9)


def test_a_missing_successor_is_noticed_and_the_frequencies_stay():
    _, answers = fixed_p()
    pairs = every_pair(6, 3)
    successor, possible = all_states(pairs, 6)
    possible[0, 2] = False
    seen = np.random.default_rng(1).dirichlet(np.ones(6), len(pairs)) * possible
    seen /= seen.sum(-1, keepdims=True)
    found, holds = corrected(seen, successor, possible, pairs, answers, GAMMA)
    assert not holds[0]
    assert holds[1:].all()
    np.testing.assert_array_equal(found[0], seen[0])


def known_world(env, probability=None, known=None):
    """The learnt world in which so much is known, and the true model's tables."""
    model = env.model(env.problem.default_theta).detach()
    shape = model.r_leader.shape[1:]
    known = np.ones(shape, bool) if known is None else known
    ends = (model.continues[0].numpy() == 0) & known
    moves = env.model(torch.tensor(env.problem.default_theta)[None].double().requires_grad_()).theta_moves_transitions
    p = model.moves.dense()[0].numpy() if probability is None else probability
    start = model.initial[0].numpy()
    if moves:  # only which transitions and first states were seen
        p, start = (p > 0).astype(float), (start > 0).astype(float)
    return Knowledge.of_table(known, ends, p * known[..., None], start, known), moves


def world_of(env, facts, moves, alike=None, worth=0.0, part=None):
    alike = np.zeros(len(facts.known), bool) if alike is None else alike
    supposed = Supposed(alike, worth)
    how = {"theta_moves": moves, "start_moves": moves, "unknown": supposed, "part": part}
    return LearntWorld(env.model, facts, env.preferences, **how)


@pytest.mark.parametrize("make", [toll_bridge, random_mdp, lambda: wrapped_env("FourRooms")])
def test_a_world_that_is_known_has_the_exact_values_and_hypergradients(make):
    env = make()
    facts, moves = known_world(env)
    world = world_of(env, facts, moves)
    rng = np.random.default_rng(0)
    theta = np.array(env.problem.default_theta) * rng.uniform(0.5, 1, env.theta_space.shape)
    theta = torch.tensor(theta)[None].requires_grad_()
    model = world.model(theta, torch.zeros(1, *facts.known.shape, dtype=torch.float64))
    best = exact.best_response(model.detach(), env.preferences)
    value = exact.value(model.detach(), best.policy, env.preferences.gamma_leader)
    (gradient,) = torch.autograd.grad(sum(exact.surrogates(model, best, env.preferences)).sum(), theta)
    at = theta.detach().numpy()[0]
    assert float(value[0]) == pytest.approx(exact.objective(env, at), abs=1e-10)
    np.testing.assert_allclose(gradient[0].numpy(), exact.hypergradient(env, at), atol=1e-9)


@pytest.mark.parametrize("completion", ["alike", "elsewhere"])
def test_the_follower_does_in_a_half_known_world_what_it_said(completion):
    """The correction makes up for all that is wrong or unknown: at the θ asked about g is the true one."""
    env = wrapped_env("FourRooms")
    rng = np.random.default_rng(0)
    model = env.model(env.problem.default_theta).detach()
    known = rng.random(model.r_leader.shape[1:]) < 0.6
    wrong = model.moves.dense()[0].numpy() * rng.uniform(0.2, 1, model.moves.dense().shape[1:])
    wrong /= wrong.sum(-1, keepdims=True)
    facts, moves = known_world(env, wrong, known)
    alike = known.any(-1) if completion == "alike" else None
    world = world_of(env, facts, moves, alike, worth=1.0)
    theta = torch.tensor(-0.2 * rng.dirichlet(np.ones(105))[None, :-1])
    best = env.best_response(theta)
    correction = world.correction(theta, best.q.values, best.v.values)
    learnt = SoftValueIteration().best_response(world.model(theta, correction).detach(), env.preferences)
    np.testing.assert_allclose(learnt.policy.probs[0, :-1], best.policy.probs[0], atol=1e-6)
    np.testing.assert_allclose(learnt.v.values[0, :-1], best.v.values[0], atol=1e-8)


def visited(env, steps, seed=0):
    """What steps of a follower at the default θ show, the world's first state at first."""
    theta = torch.tensor(env.problem.default_theta)[None].double()
    model, best = env.model(theta).detach(), env.best_response(theta)
    batch = env.rollout(theta, best, Noise([seed]), rows=1, horizon=steps)
    moves = env.model(theta.requires_grad_()).theta_moves_transitions
    counts = EmpiricalModel(moves, everywhere=True)
    counts.add(batch, model.states, model.actions)
    starts = np.bincount(batch.state[batch.starts].numpy(), minlength=model.states).astype(float)
    return knowledge(counts, 0, starts, False, None, env.preferences.gamma_follower), moves


@pytest.mark.parametrize("completion", ["alike", "elsewhere"])
@pytest.mark.parametrize("make", [lambda: wrapped_env("FourRooms"), lambda: wrapped_env("TaxDesign-small")])
def test_what_was_not_visited_may_be_lumped(make, completion):
    """V_F, g, J_L and its gradient are those of the world that has all pairs, also where θ is not what was asked."""
    env = make()
    facts, moves = visited(env, 60)
    alike = facts.known.any(-1) if completion == "alike" else None
    part = Part.seen(facts.known, facts.reached())
    assert part.action.numel() < facts.known.size / 2
    asked = torch.tensor(env.problem.default_theta)[None].double()
    answer = env.best_response(asked)
    found = []
    for own in (None, part):
        world = world_of(env, facts, moves, alike, worth=3.0, part=own)
        theta = (0.8 * asked).requires_grad_()
        model = world.model(theta, world.correction(asked, answer.q.values, answer.v.values))
        best = SoftValueIteration(tol=1e-12).best_response(model.detach(), env.preferences)
        value = exact.value(model.detach(), best.policy, env.preferences.gamma_leader)
        (gradient,) = torch.autograd.grad(sum(exact.surrogates(model, best, env.preferences)).sum(), theta)
        found.append((world, best, value, gradient))
    (_, full, value, gradient), (lumped, best, value_too, gradient_too) = found
    assert lumped.known.sum() == facts.known.sum()
    torch.testing.assert_close(value_too, value, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(gradient_too, gradient, rtol=1e-7, atol=1e-9)
    assert float(gradient.abs().max()) > 1e-3
    torch.testing.assert_close(best.v.values[:, :-1], part.by_state(full.v.values[:, :-1]), rtol=1e-9, atol=1e-10)
    probs = full.policy.probs[0, :-1]
    torch.testing.assert_close(best.policy.probs[0, :-1], part.policy(probs), rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(part.policy(probs).sum(-1), torch.ones(len(part.state)).double())


def test_lumped_actions_share_their_row_by_hand():
    """Of five actions two were taken in state 1, one in state 3; state 2 follows, states 0 and 4 do not."""
    known = np.zeros((5, 5), bool)
    known[1, [0, 3]] = known[3, 4] = True
    part = Part.seen(known, np.arange(5) == 2)
    assert part.state.tolist() == [1, 2, 3]
    assert part.action[0, :2].tolist() == [0, 3]
    assert part.own.tolist() == [[True, True, False], [False] * 3, [True, False, False]]
    q = torch.zeros(1, 5, 5, dtype=torch.float64)
    q[0, 1] = torch.tensor([5.0, 1.0, 2.0, 6.0, 3.0])
    lump = 2 * np.log(np.exp(0.5) + np.exp(1.0) + np.exp(1.5))
    np.testing.assert_allclose(part.lumps(q, 2.0)[0, 0], [5.0, 6.0, lump])
    np.testing.assert_allclose(part.lumps(q, 2.0)[0, 2], [0.0, 2 * np.log(2), 2 * np.log(2)])  # four in two places
    g = torch.full((5, 5), 0.2, dtype=torch.float64)
    np.testing.assert_allclose(part.policy(g), [[0.2, 0.2, 0.6], [1 / 3] * 3, [0.2, 0.4, 0.4]])


def test_the_unknown_is_worth_what_the_completion_says():
    """Toll bridge with one action unknown at the start: by hand, from the model's own tables."""
    env = toll_bridge()
    model = env.model(env.problem.default_theta).detach()
    known = np.ones(model.r_leader.shape[1:], bool)
    first = int(model.initial[0].argmax())
    known[first, 0] = False
    facts, moves = known_world(env, known=known)
    theta = torch.tensor(env.problem.default_theta)[None].double()
    nothing = torch.zeros(1, *known.shape, dtype=torch.float64)
    gamma = env.preferences.gamma_leader
    away = world_of(env, facts, moves, worth=7.0).model(theta, nothing)
    assert away.r_leader[0, first, 0] == 0
    assert away.moves.dense()[0, first, 0, -1] == 1
    assert away.continues[0, first, 0] == 1
    g = torch.zeros_like(away.r_leader)
    g[..., 0] = 1.0  # always the unknown action
    assert float(exact.value(away, BoltzmannPolicy(g.log()), gamma)[0]) == pytest.approx(7.0 * gamma)
    alike = np.zeros(len(known), bool)
    alike[first] = True
    like = world_of(env, facts, moves, alike, worth=7.0).model(theta, nothing)
    np.testing.assert_allclose(like.moves.dense()[0, first, 0], like.moves.dense()[0, first, 1])
    assert like.r_leader[0, first, 0] == like.r_leader[0, first, 1]


def test_counts_become_frequencies_and_equations_put_them_right():
    env = wrapped_env("FourRooms")
    rng = np.random.default_rng(0)
    thetas = torch.tensor(-0.2 * rng.dirichlet(0.3 * np.ones(105), 150)[:, :-1])
    answers = answers_of(env, thetas)
    best = env.best_response(thetas[:1])
    batch = env.rollout(thetas[:1], best, Noise([0]), rows=20, horizon=100)
    counts = EmpiricalModel()
    counts.add(batch, 104, 4)
    starts = np.bincount(batch.state[batch.starts].numpy(), minlength=104)
    true = env.model(thetas[:1]).moves.dense()[0].numpy()
    plain = knowledge(counts, 0, starts, False, None, 0.99)
    better = knowledge(counts, 0, starts, False, answers, 0.99)
    assert not plain.proven.any()
    assert better.proven.mean() > 0.3
    np.testing.assert_allclose(better.table()[better.proven], true[better.proven], atol=2e-3)
    off = np.abs(plain.table() - true).sum(-1)[better.proven].mean()
    assert np.abs(better.table() - true).sum(-1)[better.proven].mean() < 0.01 * off
    ends = env.model(thetas[:1]).continues[0].numpy() == 0
    np.testing.assert_array_equal(plain.ends, ends & plain.known)


def test_where_theta_moves_p_it_is_known_at_visited_pairs_towards_all_that_their_state_led_to():
    """State 0 was left by action 0 once and by action 1 once: p of both pairs is the model's at both next states."""
    env = random_mdp()
    theta = torch.tensor(env.problem.default_theta)[None].double() + 0.3
    true = env.model(theta).detach()
    table = true.moves.dense()[0]
    first, second = (int(i) for i in ((table[0, 0] > 0) & (table[0, 1] > 0)).nonzero()[:2, 0])
    batch = env.rollout(theta, env.best_response(theta), Noise([0]), rows=1, horizon=2)
    batch = replace(
        batch,
        state=torch.tensor([[[0, 0]]]),
        action=torch.tensor([[[0, 1]]]),
        next_state=torch.tensor([[[first, second]]]),
        valid=torch.ones(1, 1, 2, dtype=torch.bool),
        terminated=torch.zeros(1, 1, 2, dtype=torch.bool),
    )
    counts = EmpiricalModel(theta_moves=True)
    counts.add(batch, true.states, true.actions)
    facts = knowledge(counts, 0, np.eye(true.states)[0], True, None, 0.9)
    learnt = world_of(env, facts, True).model(theta, torch.zeros(1, true.states, true.actions, dtype=torch.float64))
    p = learnt.moves.dense()[0]
    for action in (0, 1):
        torch.testing.assert_close(p[0, action, [first, second]], table[0, action, [first, second]])
        assert float(p[0, action, -1]) == pytest.approx(1 - float(table[0, action, [first, second]].sum()))


def test_where_theta_moves_p_a_visited_pair_is_known_to_lead_to_every_visited_state():
    """State 0 led to `first` alone, but `second` was visited after another state: p of the step there is known, too."""
    env = random_mdp()
    theta = torch.tensor(env.problem.default_theta)[None].double() + 0.3
    true = env.model(theta).detach()
    table = true.moves.dense()[0]
    first, second, never = (int(i) for i in (table[0, 0] > 0).nonzero()[:3, 0])
    leader = MBHG(env, seed=0, draws=0, vertices=False)
    (learner,) = leader.learners
    best = env.best_response(theta)
    batch = env.rollout(theta, best, Noise([0]), rows=1, horizon=3)
    batch = replace(
        batch,
        state=torch.tensor([[[0, first, second]]]),
        action=torch.tensor([[[0, 1, 1]]]),
        next_state=torch.tensor([[[first, second, first]]]),
        valid=torch.ones(1, 1, 3, dtype=torch.bool),
        terminated=torch.zeros(1, 1, 3, dtype=torch.bool),
    )
    learner.observe(batch, 0, best, theta)
    world = learner._world(learner._knowledge(), "optimistic")
    other = theta - 0.5
    learnt = world.model(other, torch.zeros(1, true.states, true.actions, dtype=torch.float64)).moves.dense()[0]
    expected = env.model(other).detach().moves.dense()[0, 0, 0]
    torch.testing.assert_close(learnt[0, 0, [first, second]], expected[[first, second]])
    visited = [0, first, second]
    assert float(learnt[0, 0, never]) == (float(expected[never]) if never in visited else 0.0)
    assert float(learnt[0, 0, -1]) == pytest.approx(1 - float(expected[visited].sum()))


def test_a_follower_that_cannot_be_asked_is_taken_to_expect_less_of_unknown_actions():
    """Among the known actions it is soft-optimal; an unknown one is worth V_F less 3 β, by hand e^-3 of the rest."""
    env = toll_bridge()
    model = env.model(env.problem.default_theta).detach()
    known = np.ones(model.r_leader.shape[1:], bool)
    first = int(model.initial[0].argmax())
    known[first, 0] = False
    facts, moves = known_world(env, known=known)
    world = LearntWorld(
        env.model,
        facts,
        env.preferences,
        theta_moves=moves,
        start_moves=moves,
        unknown=Supposed(np.zeros(len(known), bool), 0.0, reluctance=3.0),
    )
    theta = torch.tensor(env.problem.default_theta)[None].double()
    solver = SoftValueIteration()
    q, v = world.guessed(theta, solver)
    restricted = model.r_follower.clone()
    restricted[0, first, 0] = -100.0  # what the unknown action would have to cost never to be taken
    truth = solver.best_response(model.with_rewards(model.r_leader, restricted), env.preferences)
    np.testing.assert_allclose(v[0], truth.v.values[0], atol=1e-8)
    np.testing.assert_allclose(q[0][known], truth.q.values[0][known], atol=1e-8)
    beta = env.preferences.beta
    assert float(q[0, first, 0]) == pytest.approx(float(v[0, first]) - 3 * beta)
    learnt = solver.best_response(world.model(theta, world.correction(theta, q, v)).detach(), env.preferences)
    assert float(learnt.policy.probs[0, first, 0]) == pytest.approx(np.exp(-3) / (1 + np.exp(-3)), rel=1e-6)


def test_a_search_in_a_large_world_keeps_within_its_evaluations():
    schedule = Schedule(((24, 30), (6, 60), (2, 150)), 0.1, 15)
    assert schedule.within(10_000) == replace(schedule, rungs=[(24, 30), (6, 60), (2, 150)])
    for most in (700, 100, 30):
        rungs = schedule.within(most).rungs
        assert all(kept >= 1 and steps >= 1 for kept, steps in rungs)
        assert sum(kept * steps for kept, steps in rungs) <= most


def test_the_search_finds_the_optimum_of_a_world_that_is_known():
    """The toll bridge: θ = 2 in closed form, from candidates on both sides."""
    env = toll_bridge()
    facts, moves = known_world(env)
    world = world_of(env, facts, moves)

    def theta(raw):
        return 2 * raw.sigmoid()

    def ask(world, raw):
        best = env.best_response(theta(raw).detach())
        return best.q.values, best.v.values

    raw = torch.tensor([[-2.0], [0.0], [1.0]], dtype=torch.float64)
    found, value = Planner(theta, ask).best(world, raw, ask(world, raw), Schedule(((3, 40), (1, 100)), 0.2, 10))
    assert float(theta(found)[0]) > 1.9
    assert value == pytest.approx(exact.objective(env, theta(found).numpy()), abs=1e-8)
    assert value > 0.999 * 0.899502
