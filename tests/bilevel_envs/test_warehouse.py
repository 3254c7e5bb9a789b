"""The warehouse: its floor, its numbers, what it refuses, large floors, pictures."""

import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from PIL import Image

from bilevel_envs.envs.warehouse import Warehouse
from bilevel_envs.envs.warehouse_floors import COLOURS, Floor, generated
from bilevel_envs.rendering.drawing import AGENT
from bilevel_envs.rendering.floor_plan import floor_image
from leaders import ExactGradient, exact
from tests.helpers import central_differences, wrapped, wrapped_env

LINES = (".......", ".##Z##.", "P.ZZZ.D", ".##Z##.", ".......")
SHELVES = {(1, 1), (1, 2), (1, 4), (1, 5), (3, 1), (3, 2), (3, 4), (3, 5)}
PEOPLE = {(1, 3), (2, 3), (3, 3), (2, 2), (2, 4)}
UP, RIGHT, DOWN, LEFT = range(4)


@pytest.fixture(scope="module")
def env():
    return wrapped_env("Warehouse")


def state_at(problem, row, column, carrying):
    """The number of a state."""
    cell = int(np.flatnonzero((problem.plan.cells == (row, column)).all(1))[0])
    return cell + carrying * problem.cells


def limits(problem, zone, rest):
    """One x for the people's zone and one for the other cells."""
    return np.where(problem.plan.zone, zone, rest).astype(float)


def test_the_default_floor_is_the_published_one():
    plan = Warehouse().plan
    assert plan.letters.shape == (5, 7)
    assert {(row, column) for row, column in np.argwhere(plan.letters == "#").tolist()} == SHELVES
    assert {tuple(cell) for cell in plan.cells[plan.zone].tolist()} == PEOPLE
    assert plan.cells[plan.pick].tolist() == [[2, 0]]
    assert plan.cells[plan.drop].tolist() == [[2, 6]]


# Computed by a program of its own (dense tables, 2,000 soft Bellman sweeps, one linear solve).
@pytest.mark.parametrize(("zone", "rest", "value"), [(0, 0, -0.884935), (3, 3, -0.464011), (-3, 3, 0.653624)])
def test_the_leader_has_its_known_values(env, zone, rest, value):
    assert exact.objective(env, limits(env.problem, zone, rest)) == pytest.approx(value, abs=1e-6)


def test_the_limits_are_paid_for_once():
    theta = np.random.default_rng(0).uniform(-2, 2, 27)
    priced, free = (exact.objective(wrapped(Warehouse(limit_cost=cost)), theta) for cost in (0.02, 0.0))
    paid = -0.02 * ((1 / (1 + np.exp(-theta)) - 0.5) ** 2).sum()
    assert priced - free == pytest.approx(paid, abs=1e-12)


def test_picks_share_the_cost_of_the_limits():
    one, two = ({"floor": ["P..D", *([".##P"] * (picks - 1))]} for picks in (1, 2))
    for kwargs, paid in ((one, 0.02 * 4 * 0.25), (two, 0.02 * 6 * 0.25 / 2)):
        problem = Warehouse(**kwargs)
        theta = torch.full((1, problem.cells), 6.0, dtype=torch.float64)
        rent = problem.model(theta).r_leader[0, 1, UP]
        assert float(rent) == pytest.approx(-0.05 * paid, rel=0.02)  # sigmoid(6) is nearly 1


def test_the_hypergradient_is_the_slope_and_speeds_the_zone_up_at_first(env):
    gradient = exact.hypergradient(env, np.zeros(27))
    slope = central_differences(lambda x: exact.objective(env, x), np.zeros(27), 1e-3)
    np.testing.assert_allclose(gradient, slope, atol=1e-7)
    at = {tuple(cell): number for cell, number in zip(env.problem.plan.cells.tolist(), gradient, strict=True)}
    assert min(at[2, 2], at[2, 3], at[2, 4]) > 0.1  # the best known θ has these cells slow
    assert exact.objective(env, 0.3 * gradient) > exact.objective(env, np.zeros(27))


@pytest.mark.slow
def test_ascent_from_zero_ends_below_the_best_known_value(env):
    leader = ExactGradient(env, policy=env.problem.parameterization(1, _Still()), learning_rate=0.1).learn(500)
    assert 0.70 < leader.history["leader_value"][-1, 0] < 0.73
    assert float(env.best_known) > 0.749


class _Still:
    """Noise without any."""

    runs = 1

    def normal(self, *shape):
        return np.zeros((1, *shape))


def test_the_robot_moves_takes_and_drops_as_described():
    problem = Warehouse()
    theta = torch.zeros(1, 27, dtype=torch.float64)
    theta[0, state_at(problem, 2, 5, 0)] = 1.0
    model = problem.model(theta)
    p, leaving = model.moves.dense()[0], 0.2 + 0.8 / (1 + np.exp(-1.0))
    loaded, empty = state_at(problem, 2, 5, 1), state_at(problem, 2, 6, 0)
    assert float(p[loaded, RIGHT, empty]) == pytest.approx(leaving, abs=1e-12)
    assert float(p[loaded, RIGHT, loaded]) == pytest.approx(1 - leaving, abs=1e-12)
    assert float(model.r_follower[0, loaded, RIGHT]) == pytest.approx(leaving, abs=1e-12)
    assert float(model.r_follower[0].sum()) == pytest.approx(leaving + 2 * 0.6, abs=1e-12)  # D from three sides
    assert float(p[state_at(problem, 1, 0, 0), DOWN, state_at(problem, 2, 0, 1)]) == pytest.approx(0.6, abs=1e-12)
    assert float(p[state_at(problem, 0, 1, 1), UP, state_at(problem, 0, 1, 1)]) == 1.0  # a wall
    assert float(p[state_at(problem, 0, 1, 1), DOWN, state_at(problem, 0, 1, 1)]) == 1.0  # a shelf
    assert model.initial[0].nonzero().tolist() == [[state_at(problem, 2, 0, 1)]]
    in_zone = {cell: float(model.r_leader[0, state_at(problem, *cell, 0), UP]) for cell in [(2, 3), (2, 1)]}
    rent = 0.05 * 0.02 * (1 / (1 + np.exp(-1.0)) - 0.5) ** 2
    assert in_zone == pytest.approx({(2, 3): -0.2 - rent, (2, 1): -rent}, abs=1e-12)


def test_tolls_are_the_followers_loss_and_cost_the_leader_something():
    problem = Warehouse(tolls=True)
    assert problem.theta_space.shape == (27 * 5,)
    theta = np.zeros(135)
    cell = state_at(problem, 0, 3, 0)
    theta[27 + 4 * cell + LEFT] = 0.5
    model = problem.model(torch.from_numpy(theta)[None])
    difference = model.r_follower - problem.model(torch.zeros(1, 135, dtype=torch.float64)).r_follower
    assert difference[0].nonzero().tolist() == [[cell, LEFT], [cell + 27, LEFT]]
    assert float(difference.sum()) == -1.0
    np.testing.assert_allclose(float(model.r_leader[0, cell, UP]), -0.05 * 0.1 * 0.25, atol=1e-15)
    world, at = wrapped(problem), np.random.default_rng(1).uniform(-0.1, 0.1, 135)
    some = [10, 13, 27 + 4 * state_at(problem, 2, 1, 0) + RIGHT, 27 + 4 * state_at(problem, 2, 0, 0) + UP]

    def along(x):
        moved = at.copy()
        moved[some] = x
        return exact.objective(world, moved)

    slope = central_differences(along, at[some], 1e-4)
    np.testing.assert_allclose(exact.hypergradient(world, at)[some], slope, atol=1e-7)
    assert np.abs(slope).min() > 1e-3


def forms():
    """The default floor in every form, by name."""
    letters = np.array([list(line) for line in LINES])
    picture = np.array([[COLOURS[letter] for letter in line] for line in LINES], np.uint8)
    marks = {"picks": [(2, 0)], "drops": [(2, 6)], "zone": sorted(PEOPLE)}
    return {
        "lines": {"floor": list(LINES)},
        "text": {"floor": "\n" + "\n".join(f"  {line}" for line in LINES) + "\n"},
        "letters": {"floor": letters},
        "shelves": {"floor": letters == "#", **marks},
        "picture": {"floor": picture},
        "off colours": {"floor": np.where(picture > 127, picture - 20, picture + 20).astype(np.uint8)},
        "size": {"rows": 5, "columns": 7},
    }


@pytest.mark.parametrize("name", forms())
def test_a_floor_may_come_in_many_forms(name):
    np.testing.assert_array_equal(Warehouse(**forms()[name]).plan.letters, Warehouse().plan.letters)


def test_a_floor_may_be_a_file(tmp_path):
    Image.fromarray(forms()["picture"]["floor"]).save(tmp_path / "floor.png")
    for path in (tmp_path / "floor.png", str(tmp_path / "floor.png")):
        np.testing.assert_array_equal(Warehouse(floor=path).plan.letters, Warehouse().plan.letters)


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"floor": ["..D", "..."]}, ValueError, r"at least one pick station; mark one by 'P', or pass `picks="),
        ({"floor": ["..P", "..."]}, ValueError, "at least one drop station; mark one by 'D'"),
        ({"floor": ["P.D#.", "...#."]}, ValueError, r"2 of 8 cells, the first at \(0, 4\), cannot be reached .*open"),
        ({"floor": ["P.D", ".."]}, ValueError, r"lines of one length, got lengths \[3, 2\]"),
        ({"floor": ["P.D", ".x."]}, ValueError, r"at \(1, 1\) it is 'x'"),
        ({"floor": "absent.png"}, ValueError, "absent.png is no file"),
        ({"floor": 7}, TypeError, "`floor` must be 'small', 'large', 'huge', lines of text, .* got int"),
        ({"floor": np.zeros((2, 2))}, TypeError, r"got float64 of shape \[2, 2\]"),
        ({"floor": np.full((2, 2, 3), 128, np.uint8)}, ValueError, r"at \(0, 0\) it is \(128, 128, 128\)"),
        ({"floor": "small", "rows": 9}, ValueError, "`rows` and `columns` are those of a generated floor"),
        ({"rows": 2}, ValueError, "`rows` must be at least 3"),
        ({"columns": 6}, ValueError, "`columns` must be at least 7"),
        ({"rows": 0}, ValueError, "`rows` must be at least 3"),
        ({"picks": [(1, 1)]}, ValueError, r"'P' cannot be at \(1, 1\), which is a shelf"),
        ({"drops": [(0, 7)]}, ValueError, r"'D' cannot be at \(0, 7\)"),
        ({"zone": [0, 1]}, ValueError, r"`zone` must be \(row, column\) of each cell"),
        ({"tolls": 1}, ValueError, "`tolls` must be one of True, False"),
        ({"limit_cost": -1}, ValueError, "`limit_cost` must be at least 0"),
        ({"beta": 0}, ValueError, "`beta` must be above 0"),
    ],
)
def test_bad_arguments_are_refused(kwargs, error, message):
    with pytest.raises(error, match=message):
        Warehouse(**kwargs)


def test_theta_outside_its_box_is_refused():
    with pytest.raises(ValueError, match=r"at \(0,\) it is 7, outside \[-6, 6\]"):
        gym.make("BiLevel/Warehouse-v0", theta=np.full(27, 7.0))


@pytest.mark.parametrize("size", [(3, 7), (4, 8), (6, 9), (9, 13), (12, 30), (33, 40)])
def test_generated_floors_hold_together(size):
    plan = Floor.of(generated(*size))  # refuses what does not
    assert plan.pick.any()
    assert plan.drop.any()
    assert plan.letters.shape == size


def test_vectors_tell_where_the_robot_is():
    env = gym.make("BiLevel/Warehouse-v0", observation="vector")
    check_env(env.unwrapped)
    assert env.reset(seed=0)[0].tolist() == [2, 0, 1]


def test_a_vector_environment_repeats_scalar_ones():
    kwargs = {"rows": 9, "columns": 13, "tolls": True, "max_episode_steps": 40}
    envs = gym.make_vec("BiLevel/Warehouse-v0", num_envs=3, **kwargs)
    scalars = [gym.make("BiLevel/Warehouse-v0", **kwargs) for _ in range(3)]
    theta = np.random.default_rng(0).uniform(-0.4, 0.4, scalars[0].unwrapped.theta_space.shape)
    state, _ = envs.reset(seed=4, options={"theta": theta})
    starts = [env.reset(seed=4 + i, options={"theta": theta})[0] for i, env in enumerate(scalars)]
    assert state.tolist() == starts
    assert len(set(starts)) > 1  # several picks
    envs.action_space.seed(0)
    for _ in range(39):
        action = envs.action_space.sample()
        state, reward, *_, info = envs.step(action)
        steps = [env.step(b) for env, b in zip(scalars, action, strict=True)]
        assert state.tolist() == [step[0] for step in steps]
        assert reward.tolist() == [step[1] for step in steps]
        assert info["leader_reward"].tolist() == [step[4]["leader_reward"] for step in steps]


def test_the_best_known_value_belongs_to_the_default_floor():
    assert Warehouse(floor=LINES).best_known(Warehouse().preferences) == Warehouse().best_known(Warehouse().preferences)
    for kwargs in ({"rows": 9}, {"tolls": True}, {"zone_cost": 0.1}, {"beta": 0.05}, {"picks": [(0, 0)]}):
        assert gym.make("BiLevel/Warehouse-v0", **kwargs).unwrapped.best_known is None


# Large floors --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_floor_of_ten_thousand_states_is_solved():
    env = wrapped_env("Warehouse", floor="small")
    problem = env.problem
    assert env.unwrapped.states == pytest.approx(1e4, rel=0.01)
    theta, step = limits(problem, -1.0, 1.0), 1e-4
    direction = np.random.default_rng(0).normal(size=theta.shape)
    ahead, behind = (exact.objective(env, theta + sign * step * direction) for sign in (1, -1))
    slope = exact.hypergradient(env, theta) @ direction
    assert slope == pytest.approx((ahead - behind) / (2 * step), rel=1e-4)


BUILD = """
import resource, time
import gymnasium as gym
import bilevel_envs
gym.make("BiLevel/Warehouse-v0").reset(seed=0)
before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
env = gym.make("BiLevel/Warehouse-v0", floor="large").unwrapped
model = env.model(env.theta)
print(model.states, time.process_time() - start, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.slow
def test_a_floor_of_a_hundred_thousand_states_is_built_fast_and_small():
    out = subprocess.run([sys.executable, "-c", BUILD], capture_output=True, text=True, check=True).stdout
    states, seconds, megabytes = map(float, out.split())
    assert states == pytest.approx(1e5, rel=0.01)
    assert seconds < 15  # dense tables of this size would not fit into memory
    assert megabytes < 300


# Pictures ------------------------------------------------------------------------------------------------------


def colour_at(picture, row, column):
    """The colour at a place given in cells of 64 pixels."""
    return picture[int(row * 64), int(column * 64)].astype(int)


def test_slow_cells_are_red_and_fast_ones_blue():
    problem = Warehouse()
    picture = problem.draw(None, limits(problem, -6.0, 6.0))
    red, _, blue = colour_at(picture, 0.5, 3.5)
    assert blue > red + 50
    red, _, blue = np.median(picture[65:127, 3 * 64 + 4 : 4 * 64 - 4].reshape(-1, 3), 0)
    assert red > blue + 50


def test_arrows_keep_to_the_right_of_the_way_that_robots_take():
    letters = np.array([list("P..D")])
    for carrying in (0, 1):
        for move, places in ((RIGHT, [(0.67, 1.8)]), (LEFT, [(0.33, 1.2)])):
            flow = np.zeros((2, 1, 4, 4))
            flow[carrying, 0, 1, move] = 1.0
            picture = floor_image(letters, np.full((1, 4), 0.6), flow=flow)
            for row, column in places:
                is_orange = np.abs(colour_at(picture, row, column) - AGENT).max() < 20
                assert is_orange == bool(carrying)
                assert colour_at(picture, row, column)[2] < 150  # an arrow in any case
                assert colour_at(picture, 1 - row, column)[2] > 200  # none on the left


def test_visits_are_drawn_where_robots_leave():
    problem, visits = Warehouse(), np.zeros((54, 4))
    visits[state_at(problem, 0, 2, 1), LEFT] = 1.0
    visits[state_at(problem, 0, 2, 1), UP] = 1.0  # into a wall: no move
    picture = problem.draw_visits(visits, np.zeros(27))
    assert np.abs(colour_at(picture, 0.33, 2.2) - AGENT).max() < 20
    orange = (np.abs(picture[: 5 * 64].astype(int) - AGENT).max(-1) < 20).nonzero()
    assert orange[0].max() < 64
    assert 64 < orange[1].min() < orange[1].max() < 64 * 3


@pytest.mark.parametrize("size", [(5, 7), (9, 19), (77, 97)])
def test_pictures_are_bounded_in_size(size):
    problem = Warehouse(rows=size[0], columns=size[1])
    picture = problem.draw(0, problem.default_theta)
    assert picture.dtype == np.uint8
    assert max(picture.shape) <= 700
    assert picture.shape[0] % 2 == picture.shape[1] % 2 == 0
