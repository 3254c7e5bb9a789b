"""What every leader does: learn, save, load, call back, and mind its seeds."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback
from stable_baselines3.common.logger import configure

from bilevel_envs import BilevelWrapper
from bilevel_envs.followers import SoftValueIteration
from bilevel_envs.worlds.tabular.banded import band_of
from leaders import BCHG, HPGD, LEADERS, ExactGradient, NaivePGD, SoBiRL, exact
from tests.helpers import Stock, wrapped


class StopAfter(BaseCallback):
    def __init__(self, calls):
        super().__init__()
        self.calls = calls

    def _on_step(self):
        assert self.num_timesteps == self.model.num_timesteps == 100 * self.n_calls
        return self.n_calls < self.calls


@pytest.mark.slow
@pytest.mark.parametrize("leader", [BCHG, ExactGradient])
def test_the_toll_goes_to_its_optimum(make, leader):
    trained = leader(make("TollBridge"), seed=0, learning_rate=0.1).learn(300)
    assert trained.theta.shape == (1,)
    assert trained.theta[0] > 1.6
    assert exact.objective(trained.env, trained.theta) > 0.99 * trained.env.best_known


def test_naive_pgd_does_not_move_the_toll(make):
    leader = NaivePGD(make("TollBridge"), seed=0)
    before = leader.theta
    np.testing.assert_array_equal(leader.learn(50).theta, before)


def test_bc_hg_climbs_a_random_mdp(make):
    env = make("RandomMDP", seed=2)
    leader = BCHG(env, runs=4, seed=0, batch_size=400).learn(60)
    value = leader.history["leader_value"]
    assert (value[-1] > value[0] + 1.0).all()


def test_leader_value_is_the_exact_objective_before_the_update(make):
    leader = BCHG(make("FourRooms"), seed=0, exploration="none")
    before = leader.theta
    leader.learn(1)
    assert leader.history["leader_value"][0, 0] == pytest.approx(exact.objective(leader.env, before), abs=1e-9)
    assert leader.history["env_steps"][:, 0].tolist() == [100]
    leader.learn(2)
    assert leader.history["env_steps"][:, 0].tolist() == [100, 200, 300]
    assert leader.history["follower_solves"][:, 0].tolist() == [1, 2, 3]


def test_leader_value_is_the_optimal_followers_also_with_the_fixed_schedule():
    follower = SoftValueIteration(rounds=2, sweeps=5)
    env = BilevelWrapper(gym.make("BiLevel/FourRooms-v0"), follower)
    leader = BCHG(env, seed=0)
    before = leader.theta
    leader.learn(1)
    assert leader.history["leader_value"][0, 0] == pytest.approx(exact.objective(env, before), abs=1e-9)
    assert leader.history["residual"][0, 0] > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("preset", [None, "paper"])
def test_a_run_is_the_same_alone_or_beside_others(make, preset):
    together = BCHG(make("FourRooms"), runs=3, seed=7, preset=preset).learn(12)
    alone = BCHG(make("FourRooms"), seed=8, preset=preset).learn(12)
    np.testing.assert_allclose(together.theta[1], alone.theta, atol=1e-9)
    np.testing.assert_allclose(together.history["leader_value"][:, 1], alone.history["leader_value"][:, 0], atol=1e-9)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_numbers(make):
    one, other = (BCHG(make("FourRooms"), seed=3).learn(10) for _ in range(2))
    np.testing.assert_array_equal(one.theta, other.theta)
    assert not np.array_equal(one.theta, BCHG(make("FourRooms"), seed=4).learn(10).theta)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("leader", "arguments"),
    [
        (BCHG, {"preset": "paper"}),
        (BCHG, {}),
        (BCHG, {"sampler": "steps", "critic": "monte_carlo", "exploration": "none"}),
        (BCHG, {"critic": "exact", "control_variate": "none", "tail": "drop"}),
        (NaivePGD, {}),
        (HPGD, {"variant": "sa", "preset": "paper"}),
        (HPGD, {"variant": "oracle", "batch_size": 20}),
        (HPGD, {"variant": "oracle", "preset": "paper", "oracle_size": 300}),
        (SoBiRL, {"modified": True}),
        (ExactGradient, {}),
    ],
)
def test_a_saved_leader_goes_on_bit_for_bit(make, tmp_path, leader, arguments):
    straight = leader(make("FourRooms"), runs=2, seed=1, **arguments).learn(14)
    first = leader(make("FourRooms"), runs=2, seed=1, **arguments).learn(6)
    first.save(tmp_path / "leader.zip")
    second = leader.load(tmp_path / "leader.zip", env=make("FourRooms")).learn(8)
    np.testing.assert_array_equal(straight.theta, second.theta)
    np.testing.assert_array_equal(straight.history.state(), second.history.state())
    assert [path.name for path in tmp_path.iterdir()] == ["leader.zip"]


def test_a_band_of_earlier_counts_goes_on_bit_for_bit(tmp_path):
    """Solutions depend on the order of states in their last digits, so the order is saved, not found anew."""
    how = {"runs": 2, "seed": 1, "batch_size": 200}
    straight = BCHG(wrapped(Stock()), **how).learn(9)
    first = BCHG(wrapped(Stock()), **how).learn(6)
    seen = first.critic.seen
    anew = band_of(np.maximum(seen.successor, 0), (seen.successor >= 0).astype(float))
    assert 4 * (seen.band.width + seen.band.border) < 210  # narrow enough for the banded solver
    assert (seen.band.position != anew.position).any()
    first.save(tmp_path / "leader.zip")
    second = BCHG.load(tmp_path / "leader.zip", env=wrapped(Stock()))
    np.testing.assert_array_equal(second.critic.seen.band.position, seen.band.position)
    second.learn(3)
    np.testing.assert_array_equal(straight.theta, second.theta)
    np.testing.assert_array_equal(straight.history.state(), second.history.state())


@pytest.mark.slow
@pytest.mark.parametrize("leader", [BCHG, NaivePGD, HPGD, SoBiRL])
def test_a_leader_that_has_seen_nothing_is_saved_and_goes_on(make, tmp_path, leader):
    straight = leader(make("FourRooms"), seed=1).learn(2)
    first = leader(make("FourRooms"), seed=1)
    first.save(tmp_path / "leader.zip")
    second = leader.load(tmp_path / "leader.zip", env=make("FourRooms"))
    for one in (first, second):
        np.testing.assert_array_equal(straight.theta, one.learn(2).theta)


def test_a_leader_is_not_loaded_from_or_into_what_does_not_fit(make, tmp_path):
    path = tmp_path / "leader.zip"
    BCHG(make("FourRooms")).save(path)
    with pytest.raises(ValueError, match="holds a BCHG; load it with BCHG.load"):
        NaivePGD.load(path, env=make("FourRooms"))
    with pytest.raises(ValueError, match="`env` must be the task that the leader was saved in; problem: FourRooms"):
        BCHG.load(path, env=make("TollBridge"))
    with pytest.raises(ValueError, match="`env` must be the task .*beta=0.001"):
        BCHG.load(path, env=make("FourRooms", beta=1e-3))
    with pytest.raises(ValueError, match="`optimizer` cannot be changed on loading"):
        BCHG.load(path, env=make("FourRooms"), optimizer="sgd")
    with pytest.raises(FileNotFoundError, match="`path` must be a file that `save` wrote"):
        BCHG.load(tmp_path / "nothing.zip", env=make("FourRooms"))
    (tmp_path / "bad.zip").write_text("not a zip")
    with pytest.raises(ValueError, match="`path` must be a file that `save` wrote"):
        BCHG.load(tmp_path / "bad.zip", env=make("FourRooms"))
    whole = path.read_bytes()
    for middle in (len(whole) // 3, len(whole) // 2):
        (tmp_path / "torn.zip").write_bytes(whole[:middle] + b"torn" + whole[middle + 4 :])
        with pytest.raises(ValueError, match="`path` must be a file that `save` wrote"):
            BCHG.load(tmp_path / "torn.zip", env=make("FourRooms"))


@pytest.mark.slow
@pytest.mark.parametrize("first", [0.05, [0.01, 0.02]])
@pytest.mark.parametrize("then", [1e-4, [1e-4, 1e-4]])
def test_a_new_learning_rate_on_loading_is_the_one_in_force(make, tmp_path, first, then):
    BCHG(make("FourRooms"), runs=2, learning_rate=first).learn(3).save(tmp_path / "leader.zip")
    leader = BCHG.load(tmp_path / "leader.zip", env=make("FourRooms"), learning_rate=then)
    before = leader.policy.raw.detach().clone()
    leader.learn(1)
    moved = (leader.policy.raw.detach() - before).abs().max()
    assert 1e-5 < moved < 3e-4  # Adam moves by about its learning rate


class Network(torch.nn.Module):
    """θ from a small network, without a runs axis."""

    def __init__(self):
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 5))

    def forward(self):
        return self.net(torch.ones(3))


def test_a_module_of_your_own_is_the_policy(make, tmp_path):
    torch.manual_seed(0)
    env = make("RandomMDP", seed=2)
    leader = BCHG(env, policy=Network(), seed=0, batch_size=400, learning_rate=0.01).learn(40)
    assert leader.theta.shape == (5,)
    assert leader.history["leader_value"][-1, 0] > leader.history["leader_value"][0, 0] + 0.5
    leader.save(tmp_path / "leader.zip")
    with pytest.raises(ValueError, match="saved with an object as `policy`; give it again"):
        BCHG.load(tmp_path / "leader.zip", env=env)
    again = BCHG.load(tmp_path / "leader.zip", env=env, policy=Network())
    np.testing.assert_array_equal(again.theta, leader.theta)
    samples = leader.gradient_samples(3, raw=True)
    assert samples.shape == (3, sum(p.numel() for p in leader.policy.parameters()))
    assert exact.hypergradient(env, parameters=leader.policy).shape == samples.shape[1:]


@pytest.mark.slow
def test_learning_rates_may_differ_by_run(make):
    def final(rates, **arguments):
        leader = BCHG(make("FourRooms"), runs=2, learning_rate=rates, critic_learning_rate=[0.5, 0.5], **arguments)
        return leader.learn(10).theta

    for arguments in ({"preset": "paper"}, {}):
        mixed = final(np.array([0.1, 0.01]), **arguments)
        np.testing.assert_allclose(mixed[0], final(0.1, **arguments)[0], atol=1e-12)
        np.testing.assert_allclose(mixed[1], final(0.01, **arguments)[1], atol=1e-12)


def test_gradients_are_clipped_in_each_run(make):
    # SGD with step 1 and clip 1e-3: every run's raw parameters move by exactly 1e-3
    leader = BCHG(make("FourRooms"), preset="paper", runs=3, learning_rate=1.0, max_grad_norm=1e-3)
    before = leader.policy.raw.detach().clone()
    leader.learn(1)
    moved = (leader.policy.raw.detach() - before).norm(dim=1)
    torch.testing.assert_close(moved, torch.full((3,), 1e-3, dtype=torch.float64))
    assert (leader.history["grad_norm"][0] > 1e-2).all()


@pytest.mark.parametrize("rates", [1.0, [1.0, 0.1]])
def test_the_step_size_shrinks_after_every_iteration(make, tmp_path, rates):
    # gradients are clipped to 1e-3, so that SGD's n-th step has the length 1e-3 times the step size; also after loading
    env, how = make("FourRooms"), {"preset": "paper", "max_grad_norm": 1e-3, "learning_rate_decay": 0.5}
    leader, lengths = BCHG(env, runs=2, learning_rate=rates, **how), []
    for iteration in range(4):
        if iteration == 2:
            leader.save(tmp_path / "leader.zip")
            leader = BCHG.load(tmp_path / "leader.zip", env)
        before = leader.policy.raw.detach().clone()
        leader.learn(1)
        lengths.append((leader.policy.raw.detach() - before).norm(dim=1).numpy())
    expected = 1e-3 * 0.5 ** np.arange(4)[:, None] * np.broadcast_to(rates, 2)
    np.testing.assert_allclose(lengths, expected, rtol=1e-4)


def test_callbacks_can_stop_a_run(make):
    leader = BCHG(make("TollBridge"), batch_size=100).learn(50, callback=StopAfter(7))
    assert leader.progress.iterations == 7
    leader = BCHG(make("TollBridge")).learn(50, callback=lambda scope, _: scope["self"].progress.iterations < 3)
    assert leader.progress.iterations == 3


@pytest.mark.parametrize("part", ["_estimate", "_ascend"])
def test_an_interrupt_leaves_the_last_whole_iteration(make, tmp_path, part):
    class Interrupted(BCHG):
        calls = 0

        def interrupt(self):
            self.calls += 1
            if self.calls == 3:
                raise KeyboardInterrupt

        def _estimate(self, *given):
            estimate = super()._estimate(*given)
            if part == "_estimate":
                self.interrupt()
            return estimate

        def _ascend(self, surrogate):
            if part == "_ascend":
                self.interrupt()
            return super()._ascend(surrogate)

    whole = BCHG(make("TollBridge"), seed=0).learn(2)
    leader = Interrupted(make("TollBridge"), seed=0)
    with pytest.raises(KeyboardInterrupt):
        leader.learn(5)
    assert leader.progress.iterations == len(leader.history["leader_return"]) == 2
    np.testing.assert_array_equal(leader.theta, whole.theta)
    leader.save(tmp_path / "leader.zip")
    again = Interrupted.load(tmp_path / "leader.zip", make("TollBridge")).learn(1)
    np.testing.assert_array_equal(again.theta, leader.learn(1).theta)


def test_sb3s_own_callbacks_work(make, tmp_path):
    callback = CheckpointCallback(save_freq=5, save_path=str(tmp_path), name_prefix="toll")
    BCHG(make("TollBridge"), batch_size=10).learn(10, callback=[callback])
    saved = sorted(path.name for path in tmp_path.iterdir())
    assert saved == ["toll_100_steps.zip", "toll_50_steps.zip"]


def test_sb3s_logger_is_written(make, tmp_path):
    leader = BCHG(make("TollBridge"))
    leader.set_logger(configure(str(tmp_path), ["csv", "tensorboard"]))
    leader.learn(20, log_interval=10)
    leader.logger.close()
    lines = (tmp_path / "progress.csv").read_text().splitlines()
    assert len(lines) == 3
    assert {"rollout/leader_value", "train/grad_norm", "time/env_steps"} <= set(lines[0].split(","))
    assert any(path.name.startswith("events.out.tfevents") for path in tmp_path.iterdir())


def test_a_verbose_leader_prints_a_table(make, capsys):
    BCHG(make("TollBridge"), verbose=1).learn(10, log_interval=10).logger.close()
    assert "leader_value" in capsys.readouterr().out


def test_the_progress_bar_is_shown(make, capsys):
    BCHG(make("TollBridge")).learn(5, progress_bar=True)
    assert "5/5" in capsys.readouterr().out


def test_an_oracles_steps_are_counted(make):
    leader = HPGD(make("FourRooms"), "oracle", preset="paper", oracle_size=300).learn(2)
    assert leader.history["env_steps"][:, 0].tolist() == [400, 800]


@pytest.mark.parametrize("leader", sorted(LEADERS))
def test_a_bare_environment_is_refused(leader):
    with pytest.raises(TypeError, match="must be a BilevelWrapper.*wrap it"):
        LEADERS[leader](gym.make("BiLevel/FourRooms-v0"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"preset": "papers"}, "`preset` must be one of None, 'paper', got 'papers'"),
        ({"critic": "exacct"}, "`critic` must be one of"),
        ({"tail": "cut"}, "`tail` must be one of 'drop', 'keep', 'continue', 'reference'"),
        ({"score_weight": "x"}, "`score_weight` must be one of"),
        ({"sampler": "x"}, "`sampler` must be one of 'fused', 'steps'"),
        ({"control_variate": "linear"}, "`control_variate` must be one of"),
        ({"optimizer": "rmsprop"}, "`optimizer` must be one of 'sgd', 'adam'"),
        ({"learning_rate": -0.1}, "`learning_rate` must be above 0, got -0.1"),
        ({"learning_rate_decay": 1.1}, "`learning_rate_decay` must be above 0 and at most 1, got 1.1"),
        ({"learning_rate": [0.1, 0.2]}, r"`learning_rate` must be a number or one per run \(1\)"),
        ({"max_grad_norm": 0.0}, "`max_grad_norm` must be above 0"),
        ({"batch_size": 0}, "`batch_size` must be at least 1"),
        ({"batch_size": 100, "rows": 3}, r"`batch_size` must be a multiple of `rows` \(3\), got 100"),
        ({"shared": "no"}, "`shared` must be one of None, True, False, got 'no'"),
        ({"verbose": -1}, "`verbose` must be at least 0"),
        ({"critic_start": "ones"}, "`critic_start` must be one of 'zeros', 'normal'"),
        ({"runs": 0}, "`runs` must be at least 1"),
        ({"seed": -1}, "`seed` must be at least 0"),
        ({"critic_learning_rate": 2.0}, "`critic_learning_rate` must be above 0 and at most 1, got 2.0"),
        (
            {"critic_learning_rate": [0.5, 0.0], "runs": 2},
            "`critic_learning_rate` must be above 0 and at most 1, got 0.0",
        ),
        (
            {"critic_learning_rate": [0.5] * 3, "runs": 2, "critic": "sarsa"},
            r"`critic_learning_rate` must be a number or one per run \(2\), got shape \[3\]",
        ),
        (
            {"critic_learning_rate": [0.5] * 3, "critic": "td"},
            r"must be a number or one per run \(1\), got shape \[3\]",
        ),
    ],
)
def test_bad_settings_are_refused(make, arguments, message):
    with pytest.raises(ValueError, match=message):
        BCHG(make("FourRooms"), **arguments)


@pytest.mark.parametrize("given", [1, 0, 1.0, np.True_])
@pytest.mark.parametrize(
    ("leader", "name"),
    [
        *((leader, "cross_fit") for leader in ("bchg", "naive-pgd", "hpgd", "sobirl", "bi-ac")),
        ("bchg", "shared"),
        ("sobirl", "modified"),
        ("naive-pgd", "replay"),
        ("bi-ac", "replay"),
        ("zeroth-order", "one_sided"),
    ],
)
def test_switches_take_true_and_false_alone(make, leader, name, given):
    options = "None, True, False" if name in ("shared", "replay") else "True, False"
    env = make("ToyMarkovGame") if leader == "bi-ac" else make("TollBridge")
    with pytest.raises(ValueError, match=f"`{name}` must be one of {options}, got {given!r}$"):
        LEADERS[leader](env, **{name: given})


def test_misspelt_and_wrong_kinds_are_refused(make):
    with pytest.raises(
        TypeError, match=r"no argument 'learning_rat' \(did you mean 'learning_rate'\?\); it takes preset"
    ):
        BCHG(make("FourRooms"), learning_rat=0.1)
    with pytest.raises(TypeError, match="`policy` must be a torch.nn.Module"):
        BCHG(make("FourRooms"), policy=3)
    with pytest.raises(ValueError, match="`policy` must be None or a module: TollBridge names no other"):
        BCHG(make("TollBridge"), policy="mlp")
    with pytest.raises(TypeError, match="`critic` must be one of .*or an object with fit, values"):
        BCHG(make("TollBridge"), critic=3)
    with pytest.raises(TypeError, match="`follower` must be an object, got the class SoftValueIteration: make one"):
        BilevelWrapper(gym.make("BiLevel/FourRooms-v0"), SoftValueIteration)
    with pytest.raises(TypeError, match="`callback` must be an SB3 callback, a function, or a list"):
        BCHG(make("FourRooms")).learn(1, callback="stop")
    with pytest.raises(ValueError, match="`seed` must be at least 0"):
        BCHG(make("FourRooms")).gradient_samples(2, seed=-1)
    with pytest.raises(ValueError, match=r"`control_variate` must map states to shape \[1, 1, 100, 'F'\]"):
        BCHG(make("FourRooms"), control_variate=lambda state: state.double()).learn(2)
    assert dict(BCHG(make("FourRooms")).history).keys() >= {"leader_value", "residual"}
    with pytest.raises(KeyError, match="a history has the columns env_steps"):
        _ = BCHG(make("FourRooms")).history["value"]
    with pytest.raises(TypeError, match="`total_iterations` must be a whole number"):
        BCHG(make("FourRooms")).learn(1.5)
    with pytest.raises(ValueError, match="`follower` must be one of 'committed', 'mixture', 'observed'"):
        BilevelWrapper(gym.make("BiLevel/FourRooms-v0"), "soft_policy_iteration")
    with pytest.raises(TypeError, match="must be configurable by a leader; CartPoleEnv lacks theta_space"):
        BilevelWrapper(gym.make("CartPole-v1"))


def test_a_policy_outside_the_space_is_refused(make):
    class Outside(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.raw = torch.nn.Parameter(torch.ones(104))

        def forward(self):
            return self.raw

    with pytest.raises(ValueError, match="`theta` must lie in theta_space"):
        BCHG(make("FourRooms"), policy=Outside())


def test_a_broken_gradient_leaves_the_parameters_alone(make):
    class Poisoned(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.raw = torch.nn.Parameter(torch.zeros(5, dtype=torch.float64))

        def forward(self):
            return torch.sqrt(self.raw)  # an infinite slope at 0

    leader = BCHG(make("RandomMDP"), policy=Poisoned())
    with pytest.raises(FloatingPointError, match="outer iteration 0: the hypergradient of run 0 is not finite"):
        leader.learn(1)
    assert (leader.policy.raw == 0).all()
    assert len(leader.history) == 0


def test_the_wrapper_solves_the_follower_on_reset(make):
    env = make("FourRooms")
    _, info = env.reset(seed=0, options={"theta": np.zeros(104)})
    expected = env.best_response(np.zeros(104))
    torch.testing.assert_close(info["best_response"].v.values, expected.v.values)
