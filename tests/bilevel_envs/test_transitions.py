"""Lists of successors: the same world as a dense table, in its own memory."""

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array

from bilevel_envs import Noise, Preferences, TabularModel, Transitions
from bilevel_envs.followers import SoftValueIteration
from bilevel_envs.worlds.tabular.rollout import table_rollout
from leaders.critics.empirical import Empirical
from leaders.critics.empirical_model import EmpiricalModel
from leaders.exact import tables as exact_tables

PREFERENCES = Preferences(0.95, 0.9, 0.1)


def random_lists(states, actions=3, width=4, seed=0, shared=False):
    """Successors [S, B|1, K], some of them twice in a list, and logits of their probabilities."""
    rng = np.random.default_rng(seed)
    successor = rng.integers(0, states, (states, 1 if shared else actions, width))
    return successor, torch.from_numpy(rng.standard_normal((states, actions, width)))


def model_of(transition, seed=1, theta=None):
    """Random rewards, ends and first states; with θ [R] rewards depend on it."""
    rng = np.random.default_rng(seed)
    states, actions = (
        transition.shape[1:3] if isinstance(transition, torch.Tensor) else transition.probability.shape[1:3]
    )
    r_leader, r_follower = (torch.from_numpy(rng.standard_normal((1, states, actions))) for _ in range(2))
    if theta is not None:
        r_follower = r_follower + theta.view(-1, 1, 1) * r_leader
    continues = torch.from_numpy((rng.random((1, states, actions)) > 0.05).astype(float))
    initial = torch.from_numpy(rng.dirichlet(np.ones(states))[None])
    return TabularModel(transition, initial, r_leader, r_follower, continues)


def of_theta(theta, states, *, dense, shared=False):
    """A world whose probabilities and rewards depend on θ [R]."""
    successor, logits = random_lists(states, shared=shared)
    slope = torch.from_numpy(np.random.default_rng(2).standard_normal(logits.shape))
    lists = Transitions.from_lists(successor, (logits + theta.view(-1, 1, 1, 1) * slope).softmax(-1))
    return model_of(lists.dense() if dense else lists, theta=theta)


def solved(theta, states, **form):
    """J_L and dJ_L/dθ of each run."""
    leaf = torch.tensor(theta, dtype=torch.float64, requires_grad=True)
    model = of_theta(leaf, states, **form)
    best = SoftValueIteration(tol=1e-12).best_response(model, PREFERENCES)
    value = exact_tables.value(model.detach(), best.policy, PREFERENCES.gamma_leader)
    total = torch.stack(exact_tables.surrogates(model, best, PREFERENCES)).sum()
    return value.numpy(), torch.autograd.grad(total, leaf)[0].numpy()


@pytest.mark.parametrize("states", [40, 700])
@pytest.mark.parametrize("shared", [False, True])
def test_values_and_hypergradients_are_those_of_the_dense_table(states, shared):
    theta = [0.3, -0.2]
    value, gradient = solved(theta, states, dense=False, shared=shared)
    dense_value, dense_gradient = solved(theta, states, dense=True, shared=shared)
    np.testing.assert_allclose(value, dense_value, rtol=1e-9)
    np.testing.assert_allclose(gradient, dense_gradient, rtol=1e-7)


@pytest.mark.parametrize("states", [40, 700])
def test_the_hypergradient_is_that_of_central_differences(states):
    step = 1e-5
    _, gradient = solved([0.3, -0.2], states, dense=False)
    above, _ = solved([0.3 + step, -0.2 + step], states, dense=False)
    below, _ = solved([0.3 - step, -0.2 - step], states, dense=False)
    np.testing.assert_allclose(gradient, (above - below) / (2 * step), rtol=1e-5)


@pytest.mark.parametrize("states", [40, 700])
def test_probabilities_of_steps_and_expectations_are_those_of_the_dense_table(states):
    theta = torch.tensor([0.3, -0.2], dtype=torch.float64, requires_grad=True)
    lists, dense = (of_theta(theta, states, dense=form) for form in (False, True))
    rng = np.random.default_rng(3)
    state, following = (torch.from_numpy(rng.integers(0, states, (2, 50, 6))) for _ in range(2))
    action = torch.from_numpy(rng.integers(0, 3, (2, 50, 6)))
    mine, its = (model.moves.of(state, action, following) for model in (lists, dense))
    torch.testing.assert_close(mine, its)
    weight = torch.from_numpy(rng.standard_normal(mine.shape))
    torch.testing.assert_close(*(torch.autograd.grad((weight * p).sum(), theta)[0] for p in (mine, its)))
    v, w = torch.from_numpy(rng.standard_normal((2, states))), torch.from_numpy(rng.standard_normal((2, states, 3)))
    torch.testing.assert_close(lists.expected_next(v), dense.expected_next(v))
    torch.testing.assert_close(lists.sent(w), dense.sent(w))


@pytest.mark.parametrize("shared", [False, True])
def test_probabilities_between_listed_states_are_entries_of_the_dense_table(shared):
    theta = torch.tensor([0.3, -0.2], dtype=torch.float64, requires_grad=True)
    lists, dense = (of_theta(theta, 40, dense=form, shared=shared) for form in (False, True))
    rng = np.random.default_rng(3)
    state = torch.from_numpy(rng.permutation(40)[:7])
    action, following = (torch.from_numpy(rng.integers(0, high, (7, size))) for high, size in ((3, 2), (40, 30)))
    expected = dense.moves.dense()[:, state[:, None, None], action[..., None], following[:, None]]
    assert (expected > 0).any()
    weight = torch.from_numpy(rng.standard_normal(expected.shape))
    (slope,) = torch.autograd.grad((weight * expected).sum(), theta, retain_graph=True)
    for model in (lists, dense):
        found = model.moves.between(state, action, following)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(torch.autograd.grad((weight * found).sum(), theta, retain_graph=True)[0], slope)


def test_small_lists_draw_the_trajectories_of_the_dense_table():
    theta = torch.tensor([0.3], dtype=torch.float64)
    successor, logits = random_lists(40)
    successor = np.argsort(np.random.default_rng(0).random((40, 3, 40)), -1)[..., :4]  # no state twice
    lists = Transitions.from_lists(successor, (logits + theta).softmax(-1))
    drawn = []
    for transition in (lists, lists.dense()):
        model = model_of(transition)
        best = SoftValueIteration().best_response(model, PREFERENCES)
        drawn.append(table_rollout(model, best.policy, Noise([5]), rows=20, horizon=50))
    for name in ("state", "action", "next_state", "terminated", "r_leader"):
        torch.testing.assert_close(*(getattr(batch, name) for batch in drawn), rtol=0, atol=0)


def test_large_lists_are_drawn_from_as_their_probabilities_say():
    """Frequencies of the successors of the pairs visited, against p; a sum of squares is χ² in law."""
    successor, logits = random_lists(600, width=3)
    model = model_of(Transitions.from_lists(successor, logits.softmax(-1)))
    best = SoftValueIteration().best_response(model, PREFERENCES)
    batch = table_rollout(model, best.policy, Noise([0]), rows=400, horizon=2000)
    states = model.states
    pair = (batch.state * 3 + batch.action).flatten()[batch.valid.flatten()].numpy()
    counts = np.zeros((states * 3, states))
    np.add.at(counts, (pair, batch.next_state.flatten()[batch.valid.flatten()].numpy()), 1)
    visits, p = counts.sum(1, keepdims=True), model.moves.dense()[0].flatten(0, 1).numpy()
    assert (counts[p == 0] == 0).all()
    often = visits[:, 0] > 100
    expected = (visits * p)[often]
    squares = np.where(expected > 0, (counts[often] - expected) ** 2 / np.where(expected > 0, expected, 1.0), 0.0).sum()
    freedom = ((expected > 0).sum(1) - 1).sum()
    assert abs(squares - freedom) < 5 * (2 * freedom) ** 0.5


def test_lists_come_from_dense_tables_sparse_arrays_and_functions():
    successor, logits = random_lists(30)
    dense = Transitions.from_lists(successor, logits.softmax(-1)).dense()
    by_action = [csr_array(dense[0, :, action].numpy()) for action in range(3)]
    rows = csr_array(dense[0].flatten(0, 1).numpy())

    def function(states, action):
        return successor[states, action], logits[states, action].softmax(-1).numpy()

    made = (
        Transitions.from_dense(dense),
        Transitions.from_dense(dense[0].numpy()),
        Transitions.from_scipy(by_action),
        Transitions.from_scipy(rows, actions=3),
        Transitions.from_function(function, 30, 3),
    )
    for lists in made:
        assert lists.successor.dtype == np.int32
        torch.testing.assert_close(lists.dense(), dense)


def test_lists_from_a_dense_table_hold_what_is_possible_in_any_run():
    dense = torch.zeros(2, 3, 1, 3, dtype=torch.float64)
    dense[0, :, 0, 0] = 1.0
    dense[1, :, 0, 2] = 1.0
    lists = Transitions.from_dense(dense)
    assert lists.probability.shape == (2, 3, 1, 2)
    torch.testing.assert_close(lists.dense(), dense)


def test_free_places_are_marked_by_minus_one():
    lists = Transitions.from_lists([[[1, -1]], [[0, 1]]], [[[1.0, 0.0]], [[0.5, 0.5]]])
    torch.testing.assert_close(lists.dense()[0, :, 0], torch.tensor([[0.0, 1.0], [0.5, 0.5]], dtype=torch.float64))
    with pytest.raises(ValueError, match="`probability` must be 0 where `successor` is −1"):
        Transitions.from_lists([[[1, -1]], [[0, 1]]], [[[0.5, 0.5]], [[0.5, 0.5]]])


@pytest.mark.parametrize(
    ("successor", "probability", "message"),
    [
        ([[[0, 2]], [[0, 1]]], np.full((2, 1, 2), 0.5), "`successor` must hold states 0 … 1, got 0 … 2"),
        ([[[0, 1]]], np.full((2, 1, 2), 0.5), "`successor` must be whole numbers of shape"),
        ([[[0.0, 1.0]], [[0, 1]]], np.full((2, 1, 2), 0.5), "`successor` must be whole numbers"),
        ([[[0, 1]], [[0, 1]]], np.full((2, 2), 0.5), "`probability` must be .run, state, action, successor."),
    ],
)
def test_wrong_lists_are_refused(successor, probability, message):
    with pytest.raises(ValueError, match=message):
        Transitions.from_lists(successor, probability)


def test_what_is_no_distribution_is_refused_by_the_model():
    lists = Transitions.from_lists([[[0, 1]], [[0, 1]]], np.full((2, 1, 2), 0.4))
    with pytest.raises(ValueError, match=r"transition\.probability"):
        model_of(lists)


def test_probabilities_of_other_lists_are_refused():
    lists = Transitions.from_lists([[[0, 1]], [[0, 1]]], np.full((2, 1, 2), 0.5))
    with pytest.raises(ValueError, match="`probability` must fit lists of shape"):
        lists.with_probability(torch.full((1, 2, 1, 3), 1 / 3, dtype=torch.float64))


def test_a_function_that_answers_with_another_shape_is_refused():
    with pytest.raises(ValueError, match="`function` must return successors and probabilities"):
        Transitions.from_function(lambda states, action: (states, np.ones(len(states))), 5, 2)


def test_lists_keep_their_order_of_states_for_every_theta():
    successor, logits = random_lists(700)
    lists = Transitions.from_lists(successor, logits.softmax(-1))
    first, second = (model_of(lists.with_probability((f * logits).softmax(-1)[None])) for f in (1.0, 2.0))
    assert first.structure.pattern is second.structure.pattern


def test_a_move_that_another_theta_makes_possible_is_not_forgotten():
    """The order of states is that of the first θ, at which a successor had probability 0."""
    successor = np.stack([np.arange(600), np.roll(np.arange(600), -1)], -1)[:, None]
    stays = torch.zeros(1, 600, 2, 2, dtype=torch.float64)
    stays[..., 0] = 1.0
    lists = Transitions.from_lists(successor, stays)
    SoftValueIteration().best_response(model_of(lists), PREFERENCES)
    goes = lists.with_probability(stays.flip(-1))
    best, truth = (
        SoftValueIteration(tol=1e-12).best_response(model_of(form), PREFERENCES) for form in (goes, goes.dense())
    )
    torch.testing.assert_close(best.v.values, truth.v.values, rtol=1e-8, atol=1e-8)


def test_a_table_of_a_million_states_needs_memory_for_its_lists_alone():
    cells = np.arange(1_000_000)
    successor = np.stack([cells, np.minimum(cells + 1, 999_999)], -1)[:, None]
    probability = torch.full((1, 1_000_000, 1, 2), 0.5, dtype=torch.float64)
    reward = torch.zeros(1, 1_000_000, 1, dtype=torch.float64)
    initial = torch.zeros(1, 1_000_000, dtype=torch.float64)
    initial[0, 0] = 1.0
    model = TabularModel(Transitions(successor, probability), initial, reward, reward)
    assert model.entries == 6_000_000


@pytest.mark.slow
@pytest.mark.parametrize("solver", ["direct", "bicgstab", "gmres", "splu"])
def test_every_solver_finds_the_same_response(solver):
    model = of_theta(torch.tensor([0.3], dtype=torch.float64), 700, dense=False)
    truth = SoftValueIteration(tol=1e-12, solver="direct").best_response(model, PREFERENCES)
    best = SoftValueIteration(tol=1e-12, solver=solver).best_response(model, PREFERENCES)
    torch.testing.assert_close(best.v.values, truth.v.values, rtol=1e-9, atol=1e-9)
    assert best.optimal


def test_an_unknown_solver_is_refused():
    with pytest.raises(ValueError, match="`solver` must be one of 'auto', 'direct'"):
        SoftValueIteration(solver="lu")


@pytest.mark.parametrize("theta_moves", [False, True])
@pytest.mark.parametrize("rows", [5, 100])  # fewer and more places than are solved for by elimination
def test_counts_where_a_large_table_was_seen_say_what_counts_of_every_state_say(theta_moves, rows):
    model = of_theta(torch.tensor([0.3, -0.2], dtype=torch.float64), 2000, dense=False)
    best = SoftValueIteration().best_response(model, PREFERENCES)
    batch = table_rollout(model, best.policy, Noise([5, 6]), rows=rows, horizon=30)
    placed, whole = (Empirical(0.95, theta_moves) for _ in range(2))
    whole.seen = EmpiricalModel(theta_moves, everywhere=True)
    for critic in (placed, whole):
        critic.fit(batch, best, model, Noise([0, 1]))
    assert (len(placed.seen.places) > 500) == (rows == 100)
    assert len(placed.seen.places) < len(whole.seen.places) == 2000
    for mine, its in zip(placed.values(batch, best.policy), whole.values(batch, best.policy), strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(placed.knows(batch.state, batch.action), whole.knows(batch.state, batch.action))
    restored = Empirical(0.95, theta_moves)
    restored.load_state_dict(placed.state_dict())
    np.testing.assert_array_equal(restored.seen.visits, placed.seen.visits)
    np.testing.assert_array_equal(restored.seen.places.state, placed.seen.places.state)
