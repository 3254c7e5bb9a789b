"""The compiled loops against the same loops in Python, and against NumPy where there is a vector form."""

import numpy as np
import pytest

from bilevel_envs.envs.four_rooms import FourRooms
from bilevel_envs.worlds.tabular.kernels import critics, drawing, systems
from bilevel_envs.worlds.tabular.starts import Starts


def test_outcomes_follow_the_cumulative_sums():
    thirds = np.array([0.0, 1 / 3, 1 / 3, 1 / 3, 0.0])
    # the thirds do not add up to 1 in floating point; outcomes of probability 0 must never be drawn
    drawn = [drawing.outcome(thirds, u) for u in (0.0, 0.3, 0.34, 0.67, np.nextafter(1.0, 0.0))]
    assert drawn == [1, 1, 2, 3, 3]


def test_streams_give_the_numbers_of_numpys_pcg64_to_the_last_bit():
    seeds = (0, 1, 12345, 2**64 - 1)
    generators = [np.random.Generator(np.random.PCG64(seed)) for seed in seeds]
    states = [generator.bit_generator.state["state"] for generator in generators]
    halves = [[*divmod(state["state"], 2**64), *divmod(state["inc"], 2**64)] for state in states]
    stream = np.array(halves, np.uint64)
    for index, generator in enumerate(generators):
        found = [drawing.next_uniform(stream, index) for _ in range(2_000)]
        np.testing.assert_array_equal(found, generator.random(2_000))


def test_possible_starts_are_drawn_like_starts_of_the_whole_distribution():
    rng = np.random.default_rng(0)
    initial = np.where(
        rng.random((3, 50)) < 0.3, rng.random((3, 50)), 0.0
    )  # each run with other states, and others many
    initial /= initial.sum(-1, keepdims=True)
    starts, uniform = Starts.of(initial), np.append(rng.random(999), np.nextafter(1.0, 0.0))
    for run in range(3):
        found = starts.states[run, [drawing.drawn(starts.cdf[run], u) for u in uniform]]
        np.testing.assert_array_equal(found, [drawing.outcome(initial[run], u) for u in uniform])


def test_a_start_is_possible_even_where_probabilities_are_rounded():
    starts = Starts.of(np.array([[0.0, 1 / 3, 0.0, 1 / 3, 1 / 3 - 1e-9, 0.0]]))
    last = np.nextafter(1.0, 0.0)
    drawn = [int(starts.states[0, drawing.drawn(starts.cdf[0], u)]) for u in (0.0, 1 / 3, 0.7, last)]
    assert drawn == [1, 3, 4, 4]  # a number on the edge belongs to the next state
    with pytest.raises(ValueError, match="positive probability"):
        Starts.of(np.zeros((1, 3)))


def test_means_by_key_are_those_made_by_hand():
    x, key = np.array([[1.0, 2.0, 4.0, 8.0]]), np.array([[0, 2, 2, 0]])
    valid = np.array([[True, True, True, False]])
    assert critics.mean_by_key(x, key, valid, 4).tolist() == [[1.0, 0.0, 3.0, 0.0]]


def test_decaying_sum_is_a_geometric_one():
    x = np.random.default_rng(0).normal(size=(3, 20))
    w = critics.decaying_sum(x, 0.9, np.zeros(x.shape, bool))
    assert w[:, -1] == pytest.approx(x @ 0.9 ** np.arange(19, -1, -1), abs=1e-13)


@pytest.mark.parametrize("whole_episodes", [False, True])
def test_a_walk_moves_along_the_rows_of_its_tables(whole_episodes):
    rng = np.random.default_rng(1)
    uniform = rng.random((2, 3, 30, 4))
    policy, move = rng.dirichlet(np.ones(3), (1, 5)), rng.dirichlet(np.ones(2), (2, 5, 3))
    successor = rng.integers(5, size=(2, 5, 3, 2))
    starts, ends = (np.array([[1, 2]]), np.array([[0.5, 1.0]])), rng.random((1, 5, 3)) < 0.1
    anywhere = np.full((2, 4), -1)

    def columns() -> tuple:
        return tuple(np.zeros((2, 4, 30), kind) for kind in [np.int64] * 4 + [bool] * 3)

    fast, plain = columns(), columns()
    for walk, out in ((drawing.walk, fast), (drawing.walk.py_func, plain)):
        walk(uniform, policy, successor, move, starts, ends, anywhere, anywhere, 7, whole_episodes, out)
    for one, other in zip(fast, plain, strict=True):
        np.testing.assert_array_equal(one, other)
    state, action, following, step, terminated, truncated, valid = fast
    run = np.arange(2)[:, None, None]
    assert (successor[run, state, action] == following[..., None]).any(-1)[valid].all()
    over = terminated | truncated
    goes_on = valid[..., 1:] & ~over[..., :-1]
    np.testing.assert_array_equal(state[..., 1:][goes_on], following[..., :-1][goes_on])
    np.testing.assert_array_equal(step[..., 1:][goes_on], step[..., :-1][goes_on] + 1)
    assert set(np.unique(state[valid & (step == 0)])) <= {1, 2}
    assert (step[truncated] == 6).all()
    assert not (terminated & truncated).any()
    if whole_episodes:
        assert (over.sum(-1) == 1).all()
        assert (valid.sum(-1) == over.argmax(-1) + 1).all()
    else:
        assert valid.all()


def test_padding_of_the_successors_is_kept_out_of_the_band():
    # four rooms: most moves have fewer successors than the widest one, padded with states that lie far away
    moves = FourRooms()._planned.structure.stepping
    policy, where = np.full((104, 4), 0.25), (moves.band.position, moves.band.width)
    one, other = (f(policy, moves.successor[0], moves.going_on[0], 0.9, *where) for f in _both(systems.factorised))
    np.testing.assert_allclose(one, other, rtol=0, atol=1e-15)


@pytest.mark.slow
def test_soft_policy_iteration_is_the_same_loop_in_python():
    rng = np.random.default_rng(0)
    move, successor = rng.dirichlet(np.ones(2), (1, 4, 2)), rng.integers(4, size=(1, 4, 2, 2))
    arguments = (rng.normal(size=(2, 4, 2)), successor, move, 0.9, 0.3, np.arange(4), 3, np.zeros((2, 4)), 1e-10)
    for one, other in zip(*(f(*arguments, 50) for f in _both(systems.soft_policy_iteration)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-12)


def _both(kernel):
    return kernel, kernel.py_func
