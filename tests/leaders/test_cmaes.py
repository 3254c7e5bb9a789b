"""CMA-ES: restarts, records, probes, separable covariances, learning-rate adaptation, and how it is saved."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor

from bilevel_envs import ConfigurableMDP, Preferences, TabularModel
from bilevel_envs.core.noise import Noise
from bilevel_envs.parameterizations import Free
from leaders import CMAES
from leaders.algorithms.restarted_search import RestartedSearch, Settings
from tests.helpers import wrapped


@dataclass(frozen=True)
class OneStep(ConfigurableMDP):
    """An episode of a single step that pays the leader f(θ), whatever the follower does; γ_L counts nothing then."""

    start: tuple[float, ...]
    preferences: ClassVar[Preferences] = Preferences(0.9, 0.9, 1.0)

    @property
    def theta_space(self) -> gym.spaces.Box:
        return gym.spaces.Box(-np.inf, np.inf, (len(self.start),), np.float64)

    @property
    def default_theta(self) -> np.ndarray:
        return np.array(self.start)

    def value(self, theta: Tensor) -> Tensor:
        raise NotImplementedError

    def model(self, theta: Tensor) -> TabularModel:
        pays = self.value(theta)[:, None, None].expand(-1, 1, 2)
        over = torch.zeros(1, 1, 2, dtype=torch.float64)
        one = torch.ones(1, 1, 2, 1, dtype=torch.float64)
        return TabularModel(one, one[:, 0, 0], pays, torch.zeros_like(pays), over)

    def parameterization(self, runs: int, noise: Noise) -> Free:
        return Free(np.tile(self.default_theta, (runs, 1)))


OPTIMUM = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)


class Sphere(OneStep):
    """J = −|θ − (1, −2, ½)|²."""

    def value(self, theta: Tensor) -> Tensor:
        return -((theta - OPTIMUM) ** 2).sum(-1)


class Hills(OneStep):
    """Two hills: of height 1 around 0, of height 2 around (6, 0, ...); no more than e^-9 of either at the other."""

    def value(self, theta: Tensor) -> Tensor:
        rest = (theta[:, 1:] ** 2).sum(-1)
        low, high = (((theta[:, 0] - place) ** 2 + rest) / 4 for place in (0.0, 6.0))
        return torch.exp(-low) + 2 * torch.exp(-high)


def completed(search: RestartedSearch, value) -> list[np.ndarray]:
    """Runs a search until its generation, or its probes, are complete; the candidates."""
    asked, done = [], False
    while not done:
        asked.append(search.ask().copy())
        done = search.tell(value(asked[-1]))
    return asked


def restarts(leader: CMAES) -> list[int]:
    return [search.state_dict()["restart"] for search in leader.searches]


# Optima that are known ------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("lr_adapt", [False, True])
def test_the_top_of_a_paraboloid_is_found_within_900_trials(lr_adapt):
    leader = CMAES(wrapped(Sphere((0.0, 0.0, 0.0))), runs=2, lr_adapt=lr_adapt, episodes=1, restarts="none")
    leader.learn(129)  # 4 + ⌊3 ln 3⌋ = 7 trials each
    assert leader.history["follower_solves"][-1].tolist() == [903, 903]
    np.testing.assert_allclose(leader.theta, np.tile(OPTIMUM.numpy(), (2, 1)), atol=0.02)


@pytest.mark.slow
def test_the_toll_is_raised_to_its_optimum_within_2400_trials(make):
    leader = CMAES(make("TollBridge"), runs=2).learn(600)  # 4 trials each of 4 episodes of 2 steps
    assert leader.history["env_steps"][-1].tolist() == [600 * 4 * 4 * 2] * 2
    assert (leader.history["leader_value"][-1] > 0.89).all()  # of 0.8995 at θ = 2; the start has 0.19


@pytest.mark.slow
def test_a_single_raw_parameter_is_adapted(make):
    leader = CMAES(wrapped(Hills((1.0,))), runs=2, episodes=1, restarts="none").learn(60)
    assert leader.theta.shape == (2, 1)
    np.testing.assert_allclose(leader.theta, 0.0, atol=2e-3)  # the low hill's top is at 12 e^-9 = 1.5e-3


@pytest.mark.slow
def test_restarts_find_the_higher_of_two_hills_within_1600_trials_and_a_single_search_does_not():
    for way, height in (("none", 1.0), ("bipop", 2.0)):
        leader = CMAES(wrapped(Hills((0.0,))), runs=2, episodes=1, sigma=1.5, restarts=way).learn(400)
        np.testing.assert_allclose(leader.history["leader_value"][-1], height, atol=1e-3)


@pytest.mark.slow
def test_a_restart_keeps_the_record():
    leader, seen = CMAES(wrapped(Hills((6.0,))), runs=2, episodes=1, sigma=0.5), []
    leader.learn(150, callback=lambda *_: seen.append(leader.theta))
    assert min(restarts(leader)) >= 1
    np.testing.assert_allclose(seen[60:], np.full((90, 2, 1), 6.0), atol=0.05)


@pytest.mark.slow
def test_learning_rate_adaptation_does_not_take_noise_for_a_slope():
    # Values 0.02 apart per unit of distance under noise of 1: plain CMA-ES shrinks its steps long before it arrives.
    def distance(lr_adapt, seed):
        noise = np.random.default_rng(seed)
        search = RestartedSearch(np.full(3, 10.0), seed, Settings(sigma=2.0, lr_adapt=lr_adapt, restarts=False))
        for _ in range(800):
            completed(search, lambda x: -0.02 * (x @ x) + noise.normal())
        return np.linalg.norm(search.point)

    plain, adapted = (np.array([distance(lr_adapt, seed) for seed in range(5)]) for lr_adapt in (False, True))
    assert np.median(adapted) < np.median(plain) / 2


# Restarts -------------------------------------------------------------------------------------------------------


def test_populations_double_and_the_kind_with_fewer_trials_is_next():
    search, populations, trials = RestartedSearch(np.zeros(2), 3, Settings(sigma=1.0)), [], []
    while len(populations) < 12:
        now = search.state_dict()["restart"]
        asked = completed(search, lambda x: 0.0)  # flat returns end a search after 10 + ⌈60 / λ⌉ generations and one
        if now == len(populations):
            populations.append(len(asked))
            trials.append(0)
        trials[-1] += len(asked)
    assert populations[:2] == [6, 12]
    assert trials[:2] == [6 * 21, 12 * 16]
    spent, doublings = {"large": 0, "small": 0}, 0
    for size, total in zip(populations[1:-1], trials[1:-1], strict=True):
        small = doublings > 0 and spent["small"] < spent["large"]
        if small:
            assert 6 <= size <= max(6, 6 * 2**doublings // 2)
        else:
            doublings += 1
            assert size == 6 * 2**doublings
        spent["small" if small else "large"] += total
    assert doublings >= 2
    assert spent["small"] > 0


def test_returns_that_do_not_improve_end_a_search_and_slow_progress_under_noise_does_not():
    # λ = 6: the medians are compared over 120 + 30·2/6 = 130 generations
    def restarted(slope):
        noise, search = np.random.default_rng(0), RestartedSearch(np.zeros(2), 0, Settings(sigma=1.0))
        for generation in range(400):
            completed(search, lambda x, now=generation: slope * now + noise.normal())
            if search.state_dict()["restart"]:
                return generation + 1
        return None

    assert 130 <= restarted(0.0) < 400
    assert restarted(0.05) is None
    assert restarted(-0.05) == 130


def test_a_lucky_start_of_a_search_does_not_replace_a_record():
    noise, search = np.random.default_rng(0), RestartedSearch(np.zeros(2), 0, Settings(sigma=0.1))
    while not search.state_dict()["restart"]:  # 130 generations of 6 at least: a third are 43, of 258 trials
        completed(search, lambda x: noise.normal())
    record = search.point
    np.testing.assert_array_equal(record, search.record.mean)
    assert search.record.trials >= 43 * 6
    for _ in range(20):  # generations of 12, the last ten of them 120 trials
        completed(search, lambda x: 5.0 + noise.normal())
        np.testing.assert_array_equal(search.point, record)
    while search.state_dict()["restart"] == 1:
        completed(search, lambda x: 5.0 + noise.normal())
    assert search.record.score == pytest.approx(5.0, abs=4 / search.record.trials**0.5)
    assert (search.point != record).all()


# Probes and covariances -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dim", "separable"), [(2, False), (5, True), (160, False), (400, True)])
def test_the_best_tenth_of_the_probes_is_where_the_search_begins(dim, separable):
    start = np.linspace(-1, 1, dim)
    settings = Settings(sigma=2.0, separable=separable, probes=20, population=200)
    search, values = RestartedSearch(start, 0, settings), np.random.default_rng(1).normal(size=20)
    told = iter(values)
    probes = np.array(completed(search, lambda x: float(next(told))))
    assert abs(probes.mean() - start.mean()) < 4 * 6 / (20 * dim) ** 0.5  # probes are N(start, (3·2)²)
    best = probes[np.argsort(values)[-2:]]
    np.testing.assert_allclose(search.point, best.mean(0), atol=1e-12)
    # by the formula of the paper: Σ = (0.1·6)² I + the two's covariance; σ² is det(Σ)^(1/n), of diag Σ where separable
    half = (best[1] - best[0]) / 2
    full = 0.36 * np.eye(dim) + np.outer(half, half)
    axes = np.diag(full) if separable or dim > 150 else np.linalg.eigvalsh(full)
    candidates = np.array(completed(search, lambda x: 0.0)) - best.mean(0)
    wanted = np.exp(np.log(axes).mean()) if separable else np.trace(full) / dim
    assert np.mean(candidates**2) == pytest.approx(wanted, rel=4 * (2 / 200) ** 0.5)


def test_probes_share_their_random_numbers_and_are_counted(make):
    # draws so near each other that no choice differs: 51 of 60 probes, from three iterations, return the same
    leader = CMAES(make("FourRooms"), probes=60, sigma=1e-12).learn(3)
    values = leader.searches[0].state_dict()["values"]
    assert len(values) == 51  # 3 times 4 + ⌊3 ln 105⌋
    np.testing.assert_allclose(values, values[0], rtol=0, atol=1e-9)
    assert leader.history["follower_solves"][-1, 0] == 51
    later = leader.learn(2).searches[0].state_dict()
    assert len(later["values"]) == 2 * 17 - 9 - 17
    assert abs(later["best"][0] - values[0]) > 1e-6  # other random numbers
    assert later["best"][0] == pytest.approx(later["median"][0], abs=1e-9)


def test_the_covariance_is_diagonal_above_200_raw_parameters(make):
    def entries(dim, **arguments):
        optimiser = CMAES(make("RandomMDP", dim=dim), **arguments).searches[0].state_dict()["optimiser"]["pickled"]
        return {name: len(optimiser[name]) for name in ("_C", "_c_1d") if name in optimiser}

    assert entries(200) == {"_c_1d": 200 * 201 // 2}  # a symmetric matrix
    assert entries(201) == {"_C": 201}
    assert entries(201, separable=False) == {"_c_1d": 201 * 202 // 2}
    assert entries(5, separable=True, lr_adapt=False) == {"_C": 5}


# Saving, and runs beside each other -----------------------------------------------------------------------------


def saved_and_straight(tmp_path, make_env, before, after, **arguments):
    """A leader that was saved after `before` iterations and went on, what it was then, and one that never stopped."""
    straight = CMAES(make_env(), runs=2, seed=1, **arguments).learn(before + after)
    first = CMAES(make_env(), runs=2, seed=1, **arguments).learn(before)
    first.save(tmp_path / "leader.zip")
    second = CMAES.load(tmp_path / "leader.zip", env=make_env())
    return first, second.learn(after), straight


@pytest.mark.slow
@pytest.mark.parametrize("separable", [None, True])
def test_saving_in_the_middle_of_the_probes_goes_on_bit_for_bit(make, tmp_path, separable):
    arguments = {"probes": 40, "episodes": 1, "separable": separable, "lr_adapt": False}
    first, second, straight = saved_and_straight(tmp_path, lambda: make("FourRooms"), 2, 4, **arguments)
    state = first.searches[0].state_dict()
    assert state["probing"]
    assert len(state["values"]) == 34
    np.testing.assert_array_equal(second.theta, straight.theta)
    np.testing.assert_array_equal(second.history.state(), straight.history.state())


@pytest.mark.slow
@pytest.mark.parametrize(("dim", "arguments"), [(1, {}), (2, {"lr_adapt": True}), (2, {"separable": True})])
def test_saving_in_the_middle_of_a_restart_goes_on_bit_for_bit(tmp_path, dim, arguments):
    def env():
        return wrapped(Hills((0.0,) * dim))

    settings = {"episodes": 1, "sigma": 1.0, **arguments}
    population = 4 + int(3 * np.log(dim))
    probe, before = CMAES(env(), runs=2, seed=1, **settings), 0
    while True:  # until run 0 is in the middle of a generation of a restart with a doubled population
        probe.learn(1)
        before += 1
        state = probe.searches[0].state_dict()
        if state["restart"] and not state["small"] and state["values"] and len(state["asked"]) == 2 * population:
            break
    first, second, straight = saved_and_straight(tmp_path, env, before, 60 * dim, **settings)
    assert first.searches[0].state_dict()["values"] == state["values"]
    np.testing.assert_array_equal(second.theta, straight.theta)
    np.testing.assert_array_equal(second.history.state(), straight.history.state())


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, {"lr_adapt": True}, {"separable": True}])
def test_a_search_goes_on_alike_from_its_state_through_many_restarts(settings):
    def value(x):
        return round(-float(((x - 1) ** 2).sum()), 3)  # flat at its top, so that searches end soon

    first, second = (RestartedSearch(np.zeros(4), 2, Settings(sigma=1.0, **settings)) for _ in range(2))
    while not first.state_dict()["small"] or not first.state_dict()["values"]:
        first.tell(value(first.ask()))
    second.load_state_dict(first.state_dict())
    before = first.state_dict()["restart"]
    while first.state_dict()["doublings"] < 3:
        np.testing.assert_array_equal(first.ask(), second.ask())
        assert first.tell(value(first.ask())) == second.tell(value(second.ask()))
        np.testing.assert_array_equal(first.point, second.point)
    assert first.state_dict()["restart"] > before + 1
    assert first.state_dict()["spent"] == second.state_dict()["spent"]


def test_stagnation_is_found_alike_after_reloading():
    values = np.random.default_rng(0).normal(size=400 * 6)

    def generations(reload_after):
        search, done = RestartedSearch(np.zeros(2), 0, Settings(sigma=1.0)), 0
        while not search.state_dict()["restart"]:
            rest = iter(values[6 * done :])
            completed(search, lambda x, rest=rest: float(next(rest)))
            done += 1
            if done == reload_after:
                state, search = search.state_dict(), RestartedSearch(np.zeros(2), 0, Settings(sigma=1.0))
                search.load_state_dict(state)
        return done, search.record.score, search.record.trials

    assert generations(100) == generations(None)


@pytest.mark.slow
def test_a_run_restarts_alike_alone_and_beside_others(make):
    arguments = {"lr_adapt": False, "probes": 10}
    together = CMAES(make("TollBridge"), runs=3, seed=0, **arguments).learn(150)
    assert len(set(restarts(together))) > 1  # at different times
    for run in range(3):
        alone = CMAES(make("TollBridge"), runs=1, seed=run, **arguments).learn(150)
        assert restarts(alone) == restarts(together)[run : run + 1]
        np.testing.assert_array_equal(alone.theta[0], together.theta[run])
        np.testing.assert_array_equal(alone.history["leader_return"][:, 0], together.history["leader_return"][:, run])


# Settings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"restarts": "ipop"}, "`restarts` must be one of 'bipop', 'none', got 'ipop'"),
        ({"lr_adapt": 1}, "`lr_adapt` must be one of True, False"),
        ({"separable": "yes"}, "`separable` must be one of True, False, None"),
        ({"probes": 9}, "`probes` must be 0 or at least 10, got 9"),
        ({"probes": -1}, "`probes` must be at least 0"),
        ({"lr_adapt": True, "separable": True}, "`lr_adapt` must be False with a separable covariance"),
    ],
)
def test_bad_settings_name_the_argument(make, arguments, message):
    with pytest.raises(ValueError, match=message):
        CMAES(make("RandomMDP"), **arguments)


def test_a_single_parameter_has_no_separable_form(make):
    with pytest.raises(
        ValueError, match="`separable` must be None or False for a `policy` with a single raw parameter"
    ):
        CMAES(make("TollBridge"), separable=True)


def test_seeds_lead_different_searches(make):
    thetas = CMAES(make("RandomMDP"), runs=3, restarts="none", episodes=1).learn(3).theta
    assert all((a != b).all() for a, b in pairwise(thetas))


@pytest.mark.parametrize(
    "settings",
    [
        {"population": 2},
        pytest.param({"population": 3}, marks=pytest.mark.slow),
        pytest.param({"population": 2, "lr_adapt": True}, marks=pytest.mark.slow),
    ],
)
def test_the_smallest_populations_search_without_warnings(settings):
    leader = CMAES(wrapped(Sphere((0.0, 0.0, 0.0))), seed=0, episodes=1, restarts="none", **settings)
    leader.learn(300)  # where a warning is an error
    assert leader.history["leader_value"][-1, 0] > -0.1  # from −5.25
