"""θ, the answer: where a user sees it, and how it is put to use."""

import csv
import math
from itertools import pairwise

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.logger import KVWriter, Logger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bilevel_envs import BilevelWrapper, ConfigurableDynamics, ConfigurableRewards, Preferences, TabularEnv
from bilevel_envs.envs.toll_bridge import TollBridge
from bilevel_envs.followers import SB3Follower
from bilevel_envs.parameterizations import Free
from leaders import BCHG, CMAES, MBHG, ExactGradient, NaivePGD, RandomSearch, ZerothOrder
from leaders.cli.main import main
from leaders.experiments.run_directory import Checkpoint, RunDirectory
from leaders.training.theta import one_line, write_csv


def theta_in(folder, shape):
    """θ [R, *shape] as theta.csv has it."""
    with open(folder / "theta.csv") as file:
        rows = list(csv.DictReader(file))
    runs = 1 + max(int(row["run"]) for row in rows)
    assert list(rows[0]) == ["run", "index", "value"]
    assert [(int(row["run"]), int(row["index"])) for row in rows] == list(np.ndindex(runs, math.prod(shape)))
    return np.array([float(row["value"]) for row in rows]).reshape(runs, *shape)


@pytest.mark.parametrize(
    ("theta", "text"),
    [
        (np.array([1.0]), "[1]"),
        (np.array(0.25), "0.25"),
        (np.array([[0.5, 0.5], [1.4, -0.123456]]), "[[0.5, 0.5], [1.4, -0.12346]]"),
        (np.array([1e-7, 1e9, -3.0]), "[1e-07, 1e+09, -3]"),
        (np.arange(8.0), "[0, 1, 2, 3, 4, 5, 6, 7]"),
        (np.arange(9.0), "[0, 1, 2, ..., 6, 7, 8] of shape [9]"),
        (np.arange(10_000.0).reshape(100, 10, 10), "[0, 1, 2, ..., 9997, 9998, 9999] of shape [100, 10, 10]"),
    ],
)
def test_theta_is_printed_on_one_line(theta, text):
    assert one_line(theta) == text


@pytest.mark.parametrize("shape", [(), (1,), (3, 2), (2, 3, 4)])
def test_theta_csv_holds_every_entry_in_full_precision(tmp_path, shape):
    theta = np.random.default_rng(0).normal(size=(5, *shape)) * 10.0 ** np.arange(-150, 150, 60).reshape(
        5, *[1] * len(shape)
    )
    write_csv(theta, 5, tmp_path / "theta.csv")
    np.testing.assert_array_equal(theta_in(tmp_path, shape), theta)
    table = np.loadtxt(tmp_path / "theta.csv", delimiter=",", skiprows=1)  # as the docs read it
    np.testing.assert_array_equal(table[:, 2].reshape(theta.shape), theta)


@pytest.mark.parametrize("runs", [None, 3])
def test_each_checkpoint_brings_theta_csv_up_to_date(make, tmp_path, runs):
    leader = BCHG(make("ToyMarkovGame"), runs=runs, seed=0)
    directory, seen = RunDirectory(tmp_path / "run", {}), []
    directory.begin()

    def compare(*_):
        seen.append(theta_in(directory.path, (3, 2)))
        np.testing.assert_array_equal(seen[-1], leader.theta.reshape(leader.runs, 3, 2))

    leader.learn(4, callback=[Checkpoint(directory, seconds=0.0), compare])
    assert len(seen) == 4
    assert all((earlier != later).any() for earlier, later in pairwise(seen))
    assert not list(directory.path.glob(".*.part"))


def test_train_writes_and_prints_theta_also_after_resume(make, tmp_path, capsys):
    command = ["train", "--env", "BiLevel/ToyMarkovGame-v0", "--runs", "2", "--seed", "5", "--no-progress"]
    command += ["--out", str(tmp_path / "run")]
    for iterations, further in ((3, []), (5, ["--resume"])):
        main([*command, "--iterations", str(iterations), *further])
        leader = BCHG(make("ToyMarkovGame"), runs=2, seed=5).learn(iterations)
        np.testing.assert_array_equal(theta_in(tmp_path / "run", (3, 2)), leader.theta)
        lines = capsys.readouterr().out.split(
            f"θ after {iterations} iterations (every entry: {tmp_path}/run/theta.csv)"
        )
        assert lines[1].splitlines()[1:] == [
            f"  run {run}: {one_line(theta)}" for run, theta in enumerate(leader.theta)
        ]


@pytest.mark.slow
def test_train_prints_long_thetas_and_many_runs_in_short(tmp_path, capsys):
    command = ["train", "--env", "BiLevel/FourRooms-v0", "--leader", "naive-pgd", "--runs", "12", "--iterations", "1"]
    main([*command, "--out", str(tmp_path / "run")])
    lines = capsys.readouterr().out.split("theta.csv):\n")[1].splitlines()
    assert len(lines) == 11
    assert all(line.endswith("] of shape [104]") for line in lines[:10])
    assert lines[10] == "  and 2 more"
    assert theta_in(tmp_path / "run", (104,)).shape == (12, 104)


class Recorder(KVWriter):
    """Keeps what an SB3 logger is told."""

    def __init__(self):
        self.rows = []

    def write(self, key_values, key_excluded, step=0):
        self.rows.append(dict(key_values))

    def close(self):
        pass


@pytest.mark.parametrize(("runs", "name", "entries"), [(None, "TollBridge", 1), (3, "FourRooms", 10)])
def test_the_logger_gets_the_first_entries_of_run_0_and_their_norm(make, runs, name, entries):
    leader, recorder, thetas = NaivePGD(make(name), runs=runs, seed=0), Recorder(), []
    leader.set_logger(Logger(None, [recorder]))
    leader.learn(4, callback=lambda *_: thetas.append(np.atleast_2d(leader.theta)[0]), log_interval=2)
    assert len(recorder.rows) == 2
    for row, theta in zip(recorder.rows, thetas[1::2], strict=True):
        logged = {key: value for key, value in row.items() if key.startswith("theta/")}
        assert logged == {f"theta/{k}": theta[k] for k in range(entries)} | {
            "theta/norm": pytest.approx(math.sqrt(math.fsum(x * x for x in theta)), rel=1e-12)
        }


def test_tensorboard_shows_theta_also_of_a_short_run(tmp_path):
    out = tmp_path / "run"
    main(["train", "--env", "BiLevel/TollBridge-v0", "--runs", "2", "--iterations", "5", "--out", str(out)])
    events = EventAccumulator(str(out / "tensorboard"))
    events.Reload()
    last = [event.value for event in events.Scalars("theta/0")]
    assert [event.step for event in events.Scalars("theta/0")] == [1, 2, 3, 4, 5]
    found = theta_in(out, (1,))[0, 0]
    assert last[-1] == pytest.approx(found, rel=1e-6)  # events are single precision
    assert events.Scalars("theta/norm")[-1].value == pytest.approx(abs(found), rel=1e-6)


def test_a_leader_names_its_task_its_progress_and_theta(make):
    # θ = 2 σ(raw), raw ~ N(−2, 0.1²): 0.2 to 0.3
    leader = ExactGradient(make("TollBridge"), seed=0)
    before = leader.theta[0]
    settings = "learning_rate=0.05, optimizer=adam"
    expected = f"runs=1, iterations=0, theta=[{before:.5g}], {settings}"
    assert repr(leader) == f"ExactGradient(env=BiLevel/TollBridge-v0, {expected})"
    leader.learn(1)
    worth = 0.9 / (1 + math.exp((0.5 - before) / 0.2))  # J_L in closed form
    expected = f"runs=1, iterations=1, last_leader_value={worth:.5g}, theta=[{leader.theta[0]:.5g}], {settings}"
    assert repr(leader) == f"ExactGradient(env=BiLevel/TollBridge-v0, {expected})"
    assert str(leader) == repr(leader)


def test_a_stacked_leader_shows_value_and_theta_of_the_same_run(make):
    leader = ExactGradient(make("TollBridge"), runs=3, seed=0)
    worth = 0.9 / (1 + np.exp((0.5 - leader.theta[:, 0]) / 0.2))  # J_L in closed form, of each run before the update
    assert len({f"{value:.5g}" for value in (*worth, worth.mean())}) == 4
    text = repr(leader.learn(1))
    assert f"iterations=1, last_leader_value[0]={worth[0]:.5g}, theta[0]=[{leader.theta[0, 0]:.5g}]," in text


def test_a_leader_is_short_in_print_whatever_it_leads(make):
    for leader in (
        NaivePGD(make("RandomMDP", dim=10_000), runs=2),
        BCHG(BilevelWrapper(gym.make("BiLevel/FourRooms-v0").unwrapped), seed=1),  # without an id's wrappers
        CMAES(BilevelWrapper(gym.make("BiLevel/BuildingThermalControl-v0")), runs=3),
    ):
        text = repr(leader.learn(1))
        assert len(text) < 350
        assert "\n" not in text
        assert " at 0x" not in text
        run = "[0]" if leader.runs > 1 else ""
        assert f"runs={leader.runs}, iterations=1, last_leader_value{run}=" in text
    assert "theta[0]=[" in text
    assert repr(BCHG(BilevelWrapper(TabularEnv(TollBridge())))).startswith("BCHG(env=TollBridge, runs=1, iterations=0,")


def test_a_leader_in_a_black_box_shows_what_a_user_declared():
    theta, preferences = gym.spaces.Box(0.5, 1.5, (1,), np.float64), Preferences(0.95, 0.95, 0.1)

    def r_leader(theta, c):
        return c[..., 0] - theta[..., 0]

    rewards = ConfigurableRewards("Pendulum-v1", theta, lambda theta, c: c[..., 0], r_leader, preferences)
    physics = ConfigurableDynamics("Pendulum-v1", theta, lambda env, theta: None, r_leader, preferences)
    for env, kind in ((rewards, "ConfigurableRewards"), (physics, "ConfigurableDynamics")):
        leader = RandomSearch(BilevelWrapper(env, SB3Follower("SAC", 10)))
        assert repr(leader).startswith(f"RandomSearch(env={kind}(Pendulum-v1), runs=1, iterations=0, theta=[1]")


def test_a_leader_shows_the_settings_that_were_chosen_for_it(make):
    def settings(leader):
        return repr(leader).partition("], ")[2].rstrip(")")

    toll, building = make("TollBridge"), BilevelWrapper(gym.make("BiLevel/BuildingThermalControl-v0"))
    steps, sampled = "learning_rate=0.05, optimizer=adam, ", "gradient=score, guiding=sampled"
    assert settings(BCHG(toll)) == f"{steps}estimator=bc_hg, critic=empirical, batch_size=100, {sampled}"
    assert settings(BCHG(toll, critic="td", runs=1, seed=3, tail="keep")) == (
        f"{steps}seed=3, estimator=bc_hg, critic=td, tail=keep, batch_size=100, {sampled}"
    )
    assert settings(BCHG(building)) == (
        f"{steps}estimator=bc_hg, critic=lstd, control_variate=quadratic, tail=keep, batch_size=1000, "
        "gradient=analytic, guiding=sampled"
    )
    assert settings(ZerothOrder(toll, episodes=7)).endswith("episodes=7")
    assert "preset=paper, estimator=bc_hg_shared, critic=sarsa" in settings(BCHG(toll, preset="paper"))


@pytest.mark.parametrize("arguments", [{}, {"sampler": "steps"}, {"preset": "paper"}])
def test_learning_leaves_the_environments_own_theta_alone(make, arguments):
    env = make("TollBridge")
    env.unwrapped.configure([0.7])
    leader = BCHG(env, **arguments).learn(3)
    assert env.unwrapped.theta.tolist() == [0.7]
    leader.gradient_samples(2)
    agents = BilevelWrapper(gym.make("BiLevel/TollBridge-v0"), SB3Follower("SoftDQN", 40, learning_starts=10))
    BCHG(agents).learn(1)
    assert agents.unwrapped.theta.tolist() == env.unwrapped.problem.default_theta.tolist()


def deployed(env, theta, way):
    """The environment with θ in force, by each of the ways that the docs name."""
    if way == "configure":
        env.unwrapped.configure(theta)
    elif way == "reset":
        env.reset(options={"theta": theta})
    else:
        env = BilevelWrapper(gym.make("BiLevel/TollBridge-v0", theta=theta))
    return env


@pytest.mark.slow
@pytest.mark.parametrize("way", ["configure", "reset", "make"])
def test_a_found_theta_is_deployed(make, way):
    env = make("TollBridge")
    theta = BCHG(env, seed=0, learning_rate=0.1).learn(20).theta
    env = deployed(env, theta, way)
    np.testing.assert_array_equal(env.unwrapped.theta, theta)
    policy, rng, sailed = env.best_response(theta).policy, np.random.default_rng(1), []
    env.reset(seed=2)
    for _ in range(2000):
        (state, _), over, total, discount = env.reset(), False, 0.0, 1.0
        while not over:
            state, _, terminated, truncated, info = env.step(policy.sample(state, rng.random()).item())
            total, discount, over = total + discount * info["leader_reward"], 0.9 * discount, terminated or truncated
        sailed.append(total)
    share = 1 / (1 + math.exp((0.5 - theta[0]) / 0.2))  # of those who sail; the leader then gets 1 a step later
    assert set(sailed) == {0.0, 0.9}
    assert abs(np.mean(sailed) / 0.9 - share) < 4 * math.sqrt(share * (1 - share) / 2000)
    assert abs(share - 1 / (1 + math.exp(0.5 / 0.2))) > 0.05  # not the default's


def test_a_policy_that_leaves_theta_space_is_named_with_what_it_yields(make):
    refused = "`policy` must yield θ inside theta_space .* TollBridge refuses the one {}: `theta` must .* Take a module"
    with pytest.raises(ValueError, match=refused.format("at its start")):
        BCHG(make("TollBridge"), policy=Free(np.array([[5.0]])))
    leader = ExactGradient(make("TollBridge"), policy=Free(np.array([[1.9]])), learning_rate=0.06)  # 1.9, 1.96, 2.02
    with pytest.raises(ValueError, match=refused.format("after 2 outer iterations")):
        leader.learn(3)
    assert len(leader.history) == leader.progress.iterations == 2


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (MBHG, {"batch_size": 20, "draws": 8}),
        (CMAES, {}),
        (RandomSearch, {"scale": 30.0}),
        (BCHG, {"exploration": "restarts"}),
    ],
)
def test_a_candidate_outside_theta_space_is_named_and_not_taken_for_the_followers_failure(make, kind, settings):
    leader = kind(make("TollBridge"), policy=Free(np.array([[1.0]])), seed=0, **settings)
    with pytest.raises(ValueError, match="`policy` must yield θ inside .* the one tried in outer iteration [0-9]+: "):
        leader.learn(20)


def test_a_model_that_is_wrong_is_not_taken_for_a_wrong_theta():
    class Wrong(TollBridge):
        def model(self, theta):
            if float(theta.detach().max()) > 1:
                raise ValueError("`transition` must be something else")
            return super().model(theta)

    with pytest.raises(ValueError, match="^`transition` must be something else$"):
        BCHG(BilevelWrapper(TabularEnv(Wrong())), policy=Free(np.array([[1.5]])))
