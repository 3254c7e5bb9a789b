"""Multi-start of the exact gradient, and the best known values that it stands behind."""

from itertools import product

import gymnasium as gym
import numpy as np
import pytest
import torch

from bilevel_envs import BilevelWrapper, FiniteGame, Noise, Preferences, TabularEnv, TabularModel
from bilevel_envs.envs.toll_bridge import TollBridge
from bilevel_envs.parameterizations import Box, Budget, Free, Softmax, SoftmaxNetwork
from leaders import ExactGradient, exact

SHORT = {"draws": 8, "schedule": ((8, 20), (2, 40))}
# Solutions of these take a twentieth of a second and more: fewer of them, in longer steps.
DEAR = {"draws": 32, "schedule": ((16, 20), (4, 40)), "learning_rate": (0.5, 0.1)}
DEARER = {"draws": 8, "schedule": ((4, 15), (1, 30)), "learning_rate": (0.5, 0.1)}
RECORDED = [
    ("BiLevel/TollBridge-v0", {}, {}),
    *[("BiLevel/FourRooms-v0", {"beta": beta}, {}) for beta in (1e-3, 3e-3, 5e-3)],
    ("BiLevel/BuildingThermalControl-v0", {}, {}),
    *[("BiLevel/ToyMarkovGame-v0", {"variant": variant}, {}) for variant in ("R1", "R2")],
    ("BiLevel/BilevelLQR-v0", {}, {"draws": 64, "schedule": ((16, 40), (2, 80)), "learning_rate": (0.5, 0.1)}),
    ("BiLevel/TaxDesign-small-v0", {}, DEAR),
    ("BiLevel/TaxDesign-v0", {}, DEARER),
]
NAMES = [" ".join([name.split("/")[1], *map(str, kwargs.values())]) for name, kwargs, _ in RECORDED]

LEFT, RIGHT = 0.2, 0.8  # where the two hills stand
HEIGHTS = (0.3, 0.5)


class TwoHills(TollBridge):
    """J_L = γ_L times two bumps of θ, 0.3 high at 0.2 and 0.5 high at 0.8; the follower's choice does not matter."""

    theta_space = gym.spaces.Box(0.0, 1.0, (1,), np.float64)
    default_theta = np.array([0.1])

    def model(self, theta):
        transition = torch.zeros(1, 3, 2, 3).double()
        transition[:, 0, :, 1] = transition[:, 1:, :, 2] = 1.0
        low, high = (
            h * (-(((theta[:, 0] - at) / 0.1) ** 2)).exp() for h, at in zip(HEIGHTS, (LEFT, RIGHT), strict=True)
        )
        r_leader = torch.zeros(len(theta), 3, 2).double()
        r_leader[:, 1] = (low + high)[:, None]
        continues = torch.ones(1, 3, 2).double()
        continues[:, 1:] = 0.0
        nothing = torch.zeros(1, 3, 2).double()
        return TabularModel(transition, torch.eye(3).double()[:1], r_leader, nothing, continues)

    def parameterization(self, runs, noise):
        return Box(np.full((runs, 1), -2.0), 0.0, 1.0)

    def best_known(self, preferences):
        return None


class ScalarHills(TwoHills):
    """The same with θ a number."""

    theta_space = gym.spaces.Box(0.0, 1.0, (), np.float64)
    default_theta = np.array(0.1)

    def model(self, theta):
        return super().model(theta[:, None])

    def parameterization(self, runs, noise):
        return Box(np.full(runs, -2.0), 0.0, 1.0)


class OneNumber(torch.nn.Module):
    """A module without a runs axis."""

    def __init__(self, start, runs=1):
        super().__init__()
        self.raw, self.runs = torch.nn.Parameter(start.double()), runs

    def forward(self):
        return self.raw.sigmoid().expand(self.runs, 1)


@pytest.fixture
def hills():
    return TabularEnv(TwoHills())


def test_ascent_from_the_default_ends_on_the_lower_of_two_hills_and_multi_start_on_the_higher(hills):
    # the bumps are 6 widths apart: exp(−36) of the one is left at the other
    alone = ExactGradient(BilevelWrapper(hills), learning_rate=0.05).learn(200).theta
    assert exact.objective(hills, alone) == pytest.approx(0.9 * 0.3, abs=1e-4)
    found = exact.multi_start(hills, **SHORT)
    assert found.value == pytest.approx(0.9 * 0.5, abs=1e-6)
    assert found.theta == pytest.approx([RIGHT], abs=1e-3)
    assert exact.objective(hills, found.theta) == pytest.approx(found.value, abs=1e-12)
    assert found.start != "default"


def test_halving_keeps_the_best(hills):
    # without a step what is kept are the starts themselves: θ = 0.1, and the ends σ(±6)
    starts = [0.1, *(1 / (1 + np.exp([6.0, -6.0])))]
    worth = sorted((exact.objective(hills, [theta]) for theta in starts), reverse=True)
    two = exact.multi_start(hills, draws=0, schedule=((2, 0),))
    np.testing.assert_allclose(two.last_values, worth[:2], rtol=1e-12)
    one = exact.multi_start(hills, draws=0, schedule=((2, 0), (1, 0)))
    np.testing.assert_allclose(one.last_values, worth[:1], rtol=1e-12)
    assert one.start == "default"  # 0.3 exp(−1) at θ = 0.1, against 0.5 exp(−4) and less at the ends
    assert one.evaluations == 3


def test_evaluations_are_starts_and_steps(make):
    found = exact.multi_start(make("FourRooms"), draws=7, schedule=((5, 3), (2, 4)))
    assert found.evaluations == (1 + 105 + 7) + 5 * 3 + 2 * 4
    assert len(found.last_values) == 2
    assert found.last_values[0] == found.value >= found.last_values[1]


def test_the_seed_draws_the_starts(make):
    env = make("FourRooms")
    one, same, other = (exact.multi_start(env, seed=seed, draws=4, schedule=((1, 0),)) for seed in (3, 3, 4))
    assert one.value == same.value
    hills = [exact.multi_start(make("TollBridge"), seed=s, draws=1, schedule=((4, 0),)) for s in (0, 1)]
    assert set(hills[0].last_values) != set(hills[1].last_values)
    assert other.value >= exact.objective(env, env.unwrapped.theta)


def test_all_of_the_budget_on_one_cell_is_best_before_the_top_corridor(make):
    from bilevel_envs.envs.four_rooms import STATE

    # raw 6 in one entry of 105: a share of e⁶ / (e⁶ + 104)
    found = exact.multi_start(make("FourRooms"), draws=0, schedule=((1, 0),))
    assert found.start == "vertex"
    assert found.theta.argmin() == STATE[3, 5]
    assert found.theta.min() == pytest.approx(-0.2 * np.exp(6) / (np.exp(6) + 104), rel=1e-12)


@pytest.mark.parametrize("beta", [1e-3, 3e-3, 5e-3])
def test_most_of_the_budget_lies_before_the_top_corridor_at_the_best_known_theta(make, beta):
    from bilevel_envs.envs.four_rooms import STATE

    env = make("FourRooms", beta=beta)
    found = exact.multi_start(env, seed=0)
    assert found.value == pytest.approx(float(env.best_known), rel=1e-3)
    assert found.theta[STATE[3, 5]] < -0.2 / 2


def test_the_followers_beta_counts(make):
    env = BilevelWrapper(gym.make("BiLevel/TollBridge-v0"), "soft_value_iteration", beta=1.0)
    assert exact.multi_start(env, **SHORT).value == pytest.approx(0.9 / (1 + np.exp(-1.5)), rel=1e-3)


def test_a_step_out_of_the_space_of_theta_ends_on_its_boundary():
    env = TabularEnv(TollBridge())  # J_L rises up to θ = 2
    found = exact.multi_start(env, parameterization=lambda runs, noise: Free(noise.normal(runs)[:, :1]), **SHORT)
    assert found.theta == [2.0]
    assert found.value == pytest.approx(TollBridge().objective(2.0), abs=1e-12)


def test_networks_start_at_their_own_first_values(make):
    env = make("ToyMarkovGame")
    found = exact.multi_start(
        env, draws=6, schedule=((3, 5),), parameterization=lambda runs, noise: SoftmaxNetwork(noise, 3, 2)
    )
    assert found.start == "draw"
    assert found.evaluations == 6 + 15
    with pytest.raises(ValueError, match="`draws` must be at least 1 for SoftmaxNetwork"):
        exact.multi_start(env, draws=0, parameterization=lambda runs, noise: SoftmaxNetwork(noise, 3, 2))


def test_where_there_is_no_maximum_the_steps_are_bounded(make):
    env = make("RandomMDP")
    few, more = (exact.multi_start(env, draws=4, schedule=((2, steps),)) for steps in (5, 50))
    assert few.evaluations == 1 + 4 + 10
    assert few.value < more.value < np.inf


def test_a_start_without_an_optimum_is_passed_over():
    class Fragile(TollBridge):
        """Has no follower above θ = 1."""

        def model(self, theta):
            if (theta > 1).any():
                raise RuntimeError("no optimum")
            return super().model(theta)

    found = exact.multi_start(TabularEnv(Fragile()), **SHORT)
    assert found.theta == pytest.approx([1.0], abs=0.1)
    assert found.theta <= 1
    with pytest.raises(RuntimeError, match="no optimum"):
        exact.multi_start(
            TabularEnv(Fragile()),
            draws=3,
            schedule=((1, 0),),
            parameterization=lambda runs, noise: Box(np.zeros((runs, 1)), 1.1, 1.2),
        )


def test_worlds_without_an_exact_solver_are_refused():
    with pytest.raises(TypeError, match="a TabularModel or a LinearQuadraticModel for exact values, got Simulated"):
        exact.multi_start(gym.make("BiLevel/GuidedCartPole-v0"))
    with pytest.raises(TypeError, match="`env` must be a configurable Gymnasium environment, got int"):
        exact.multi_start(3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"schedule": ()}, r"`schedule` must be pairs \(starts kept, steps of each\), got \(\)"),
        ({"schedule": ((2, 3, 4),)}, r"`schedule` must be pairs"),
        ({"schedule": ((2, 3), (4, 1))}, "`schedule` must not keep more starts in a later rung"),
        ({"schedule": ((0, 3),)}, r"`schedule\[0\]\[0\]` must be at least 1, got 0"),
        ({"draws": -1}, "`draws` must be at least 0"),
        ({"learning_rate": 0.1}, "`learning_rate` must be two numbers"),
        ({"learning_rate": (0.1, 0.0)}, "`learning_rate` must be above 0"),
        ({"parameterization": lambda runs, noise: None}, "`parameterization` must be given, since TwoHills has none"),
        ({"schedule": ((2, 3), (1,))}, r"`schedule` must be pairs"),
        ({"schedule": 3}, r"`schedule` must be pairs"),
        ({"parameterization": 3}, r"`parameterization` must be a function of \(runs, noise\) .* 3 raised TypeError"),
        (
            {"parameterization": lambda runs, noise: Free(np.zeros((runs, 3)))},
            r"`parameterization` must return a module that yields θ of shape \[1, 1\] for 1 runs, got \[1, 3\]",
        ),
        (
            {"parameterization": lambda runs, noise: OneNumber(torch.zeros(1, 1)), **SHORT},
            r"`parameterization` must .* yields θ of shape \[\d+, 1\] for \d+ runs, got \[1, 1\]",
        ),
        (
            {"parameterization": lambda runs, noise: OneNumber(torch.zeros(()), runs), **SHORT},
            r"`parameterization` must .* lead with the runs axis, \d+; those of OneNumber have shapes \[\[\]\]",
        ),
    ],
)
def test_bad_arguments_are_refused(hills, arguments, message):
    with pytest.raises(ValueError, match=message):
        exact.multi_start(hills, **arguments)


def test_what_is_no_module_is_refused_as_a_parameterisation(hills):
    with pytest.raises(TypeError, match="`parameterization` must return a torch.nn.Module whose .*, got 3 for 1 runs"):
        exact.multi_start(hills, parameterization=lambda runs, noise: 3)


def test_a_single_number_is_searched_like_a_vector_of_one(hills):
    vector = exact.multi_start(hills, **SHORT)
    scalar = exact.multi_start(TabularEnv(ScalarHills()), **SHORT)
    assert scalar.theta.shape == ()
    assert scalar.theta == pytest.approx(RIGHT, abs=1e-3)  # by hand: the higher hill, γ_L = 0.9 times its height
    assert scalar.value == pytest.approx(0.9 * HEIGHTS[1], rel=1e-4)
    assert (scalar.start, scalar.evaluations) == (vector.start, vector.evaluations)
    np.testing.assert_allclose(scalar.last_values, vector.last_values, rtol=1e-12)


def test_games_are_led_by_policies():
    # One state, and r_L = 1 for the leader's action 1: the best policy always takes it, J_L = 1 / (1 − 0.9).
    game = FiniteGame(
        np.ones((1, 2, 1, 1)),
        [1.0],
        np.array([[[0.0], [1.0]]]),
        np.zeros((1, 2, 1)),
        preferences=Preferences(0.9, 0.9, 0.1),
    )
    found = exact.multi_start(TabularEnv(game), **SHORT)
    assert found.value == pytest.approx(10.0, rel=1e-3)
    assert found.theta[0, 1] > 0.999


@pytest.mark.parametrize(
    "module",
    [
        Free(np.zeros((1, 2, 2))),
        Box(np.zeros((1, 3)), -1.0, np.array([1.0, 2.0, 5.0])),
        Budget(np.zeros((1, 4)), -0.2),
        Softmax(np.zeros((1, 2, 3))),
    ],
    ids=lambda module: type(module).__name__,
)
def test_the_inverse_of_a_parameterisation_gives_theta_back(module):
    raw = torch.from_numpy(np.random.default_rng(0).normal(size=module.raw.shape))
    with torch.no_grad():
        module.raw.copy_(raw)
        theta = module()
        module.raw.copy_(module.inverse(theta))
        torch.testing.assert_close(module(), theta, rtol=1e-12, atol=1e-12)


def at(module, raw):
    """θ at raw values [K, ...], [K, ...]."""
    return torch.cat([torch.func.functional_call(module, {"raw": one[None]}) for one in raw]).detach()


def test_vertices_are_the_corners_of_theta():
    box = at(Box(np.zeros((1, 2)), 0.0, 1.0), Box(np.zeros((1, 2)), 0.0, 1.0).vertices()).round()
    assert sorted(map(tuple, box.tolist())) == sorted(product((0.0, 1.0), repeat=2))
    wide = Box(np.zeros((1, 12)), 0.0, 1.0)
    assert wide.vertices().shape == (24, 12)
    assert ((wide.vertices() != 0).sum(1) == 1).all()
    policy = Softmax(np.zeros((1, 2, 3)))
    tables = at(policy, policy.vertices()).round().argmax(-1)
    assert sorted(map(tuple, tables.tolist())) == sorted(product(range(3), repeat=2))
    many = Softmax(np.zeros((1, 20, 2)))
    one_row = at(many, many.vertices())
    assert one_row.shape == (40, 20, 2)
    assert (((one_row - 0.5).abs() > 0.4).any(-1).sum(1) == 1).all()
    assert len({tuple(table.flatten().tolist()) for table in one_row}) == 40


def test_scattered_draws_belong_to_their_streams():
    module = Budget(np.zeros((1, 4)), -0.2)
    together, alone = module.scattered(Noise([1, 2])), module.scattered(Noise([2]))
    assert torch.equal(together[1], alone[0])
    # the mean of a standard Gumbel number is Euler's constant; 40,000 of them, deviation 2 π/√6
    many = Budget(np.zeros((1, 40_000)), 1.0).scattered(Noise([0]))
    assert float(many.mean()) == pytest.approx(2 * 0.5772, abs=5 * 2 * 1.2825 / 200)


# Best known values ------------------------------------------------------------------------------------------------


def agrees(name, kwargs, how, seed):
    """Found within 0.1 %, and not above what rounding of the recorded value allows."""
    env = gym.make(name, **kwargs)
    best = float(env.unwrapped.best_known)
    found = exact.multi_start(env, seed=seed, **how)
    assert found.value >= best - 1e-3 * abs(best)
    assert found.value <= best + 2e-6 * abs(best), f"a higher value: record it, at {found.theta.tolist()}"


@pytest.mark.parametrize("name", ["BiLevel/TollBridge-v0", "BiLevel/ToyMarkovGame-v0"])
def test_multi_start_reaches_the_best_known_value(name):
    agrees(name, {}, SHORT, 0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kwargs", "how", "seed"),
    [
        pytest.param(*one, seed, id=f"{told} {seed}")
        for told, one in zip(NAMES[:-1], RECORDED[:-1], strict=True)
        for seed in range(1 if "BilevelLQR" in told else 3)  # half a minute each, there
    ],
)
def test_multi_start_reaches_every_best_known_value(name, kwargs, how, seed):
    agrees(name, kwargs, how, seed)


@pytest.mark.slow
def test_multi_start_reaches_the_best_known_taxes():
    agrees(*RECORDED[-1], seed=0)


# The command ------------------------------------------------------------------------------------------------------


def test_the_command_evaluates_what_is_recorded(capsys):
    from leaders.cli.main import main

    main(["best-known", "BiLevel/TollBridge-v0", "--env-args", "ferry=1"])
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "BiLevel/TollBridge-v0, β = 0.2"
    assert "closed form" in out[1]
    worth = 0.9 / (1 + np.exp(-2 / 0.2))
    assert out[2].split()[-1] == f"{worth:.7g}"
    assert len(out) == 4


def test_the_command_repeats_a_multi_start(capsys):
    from leaders.cli.main import main

    few = ["--draws", "2", "--schedule", "8", "30", "1", "2"]
    main(["best-known", "BiLevel/FourRooms-v0", "--beta", "1e-3", "--seed", "1", *few])
    out = capsys.readouterr().out
    assert "0.768374  multi-start of the exact gradient" in out
    found = exact.multi_start(gym.make("BiLevel/FourRooms-v0", beta=1e-3), seed=1, draws=2, schedule=((8, 30), (1, 2)))
    assert f"found      {found.value:.7g}  start: vertex, 350 evaluations" in out
    assert f"({100 * (found.value - 0.768374) / 0.768374:+.2g} %)" in out


def test_the_command_searches_where_nothing_is_recorded(capsys):
    from leaders.cli.main import main

    main(["best-known", "BiLevel/RandomMDP-v0", "--draws", "2", "--schedule", "1", "2"])
    out = capsys.readouterr().out
    assert "recorded   nothing" in out
    assert "5 evaluations" in out
    with pytest.raises(SystemExit):
        main(["best-known", "BiLevel/GuidedCartPole-v0"])
    assert "a TabularModel or a LinearQuadraticModel for exact values" in capsys.readouterr().err
