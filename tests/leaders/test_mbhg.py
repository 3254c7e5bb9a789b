"""The leader that learns the world: it finds optima, goes on bit for bit, and says what it cannot use."""

import math

import numpy as np
import pytest
import torch

from bilevel_envs.core.follower import FollowerError
from bilevel_envs.envs.random_mdp import RandomMDP
from bilevel_envs.followers import ObservedFollower, Quantal, SoftQLearning, SoftValueIteration
from leaders import MBHG, FollowerNotAskedWarning, exact
from leaders.algorithms.mbhg import Deployment, Record, best_of, measured
from tests.helpers import building, random_mdp, rollout, toll_bridge, wrapped, wrapped_env

BEST = {1e-3: 0.768374, 3e-3: 0.616065, 5e-3: 1.622716}  # four rooms, multi-start of the exact gradient
PUBLISHED = {1e-3: 0.668, 3e-3: 0.548, 5e-3: 1.333}  # arXiv:2603.14867, Figure 2
QUICK = {"draws": 8, "batch_size": 100}


@pytest.mark.slow
def test_the_toll_goes_to_its_optimum():
    leader = MBHG(toll_bridge(), seed=0, **QUICK).learn(3)
    assert exact.objective(leader.env, leader.theta) >= 0.999 * 0.899502  # θ = 2, in closed form


@pytest.mark.slow
@pytest.mark.parametrize(("variant", "best"), [("R1", 34.992641), ("R2", 39.940211)])
def test_the_toy_games_go_to_their_optima(variant, best):
    """One run; `benchmarks/mbhg_worlds.py` has three."""
    leader = MBHG(wrapped_env("ToyMarkovGame", variant=variant), seed=0).learn(12)
    assert exact.objective(leader.env, leader.theta) >= 0.999 * best


@pytest.mark.slow
@pytest.mark.parametrize("beta", [1e-3, 5e-3])
def test_four_rooms_are_led_to_the_best_known_value(beta):
    """One run; `benchmarks/exploration.py` has ten for each of three β."""
    leader = MBHG(wrapped_env("FourRooms", beta=beta), seed=0).learn(24)
    history = leader.history
    assert exact.objective(leader.env, leader.theta) >= 0.97 * BEST[beta]
    assert history["env_steps"][-1, 0] <= 25_000
    assert history["follower_solves"].max() <= 3_000
    passed = history["leader_value"] >= PUBLISHED[beta]
    assert (np.where(passed, history["env_steps"], np.inf).min(0) <= 6_000).all()


@pytest.mark.slow
def test_a_run_goes_on_bit_for_bit(tmp_path):
    straight = MBHG(wrapped_env("FourRooms"), runs=2, seed=1, **QUICK).learn(3)
    MBHG(wrapped_env("FourRooms"), runs=2, seed=1, **QUICK).learn(2).save(tmp_path / "leader.zip")
    again = MBHG.load(tmp_path / "leader.zip", env=wrapped_env("FourRooms")).learn(1)
    np.testing.assert_array_equal(straight.theta, again.theta)
    np.testing.assert_array_equal(straight.history.state(), again.history.state())


@pytest.mark.slow
def test_a_run_goes_on_bit_for_bit_where_theta_moves_the_transitions(tmp_path):
    quick = {"seed": 1, "batch_size": 50, "draws": 2, "vertices": False}
    straight = MBHG(random_mdp(), **quick).learn(3)
    MBHG(random_mdp(), **quick).learn(2).save(tmp_path / "leader.zip")
    again = MBHG.load(tmp_path / "leader.zip", env=random_mdp()).learn(1)
    np.testing.assert_array_equal(straight.theta, again.theta)
    np.testing.assert_array_equal(straight.learners[0]._steps, again.learners[0]._steps)


@pytest.mark.slow
def test_a_run_is_the_same_alone_or_beside_others():
    both = MBHG(wrapped_env("FourRooms"), runs=2, seed=1, **QUICK).learn(3)
    alone = MBHG(wrapped_env("FourRooms"), seed=2, **QUICK).learn(3)
    np.testing.assert_allclose(both.theta[1], alone.theta, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(both.history["env_steps"][:, 1], alone.history["env_steps"][:, 0])
    np.testing.assert_array_equal(both.history["follower_solves"][:, 1], alone.history["follower_solves"][:, 0])


@pytest.mark.slow
def test_an_iteration_costs_two_batches_and_every_question_to_the_follower():
    asked = []

    class Counting(SoftValueIteration):
        def best_response(self, model, *arguments, **further):
            best = super().best_response(model, *arguments, **further)
            asked.append(len(best.v.values))
            return best

    env = toll_bridge(Counting())
    leader = MBHG(env, seed=0, **QUICK).learn(2)
    np.testing.assert_array_equal(leader.history["env_steps"][:, 0], [200, 400])
    assert leader.history["follower_solves"][-1, 0] == sum(asked)
    quiet = MBHG(toll_bridge(), seed=0, optimism=False, **QUICK).learn(1)
    assert np.isnan(quiet.history["explored_value"]).all()
    assert not np.isnan(leader.history["explored_value"]).any()


@pytest.mark.parametrize("asked", range(4))
def test_a_follower_that_fails_in_the_middle_of_a_plan_is_named_with_the_iteration(asked):
    class Fails(SoftValueIteration):
        left = asked

        def best_response(self, model, *arguments, **further):
            self.left -= 1
            if self.left < 0:
                raise ZeroDivisionError("its own reasons")
            return super().best_response(model, *arguments, **further)

    leader = MBHG(toll_bridge(Fails()), seed=0, **QUICK)
    before = leader.theta
    with pytest.raises(
        FollowerError, match="outer iteration 0: the follower failed .ZeroDivisionError: its own reasons"
    ):
        leader.learn(1)
    np.testing.assert_array_equal(leader.theta, before)
    assert len(leader.history) == leader.progress.iterations == 0


class Interrupted(SoftValueIteration):
    """Counts its responses, and breaks off before the next one whenever `left` comes to 0."""

    left = -1
    given = 0

    def best_response(self, model, *arguments, **further):
        if self.left == 0:
            raise KeyboardInterrupt
        best = super().best_response(model, *arguments, **further)
        self.left -= 1
        self.given += len(best.v.values)
        return best


@pytest.mark.slow
@pytest.mark.parametrize("left", [1, 2, 5, 6])
def test_what_an_interrupted_iteration_took_is_counted_with_the_next_one(left, tmp_path, monkeypatch):
    """Also after saving. The first batch of an iteration is drawn after one response, the second after some five."""
    follower, batches = Interrupted(), []
    leader = MBHG(toll_bridge(follower), seed=0, **QUICK).learn(1)
    drawn = MBHG._drawn
    monkeypatch.setattr(MBHG, "_drawn", lambda *arguments: [drawn(*arguments), batches.append(1)][0])
    before = follower.given
    object.__setattr__(follower, "left", left)
    with pytest.raises(KeyboardInterrupt):
        leader.learn(1)
    assert len(leader.history) == leader.progress.iterations == 1
    object.__setattr__(follower, "left", -1)
    leader.save(tmp_path / "leader.zip")
    again = MBHG.load(tmp_path / "leader.zip", env=toll_bridge(follower)).learn(1)
    steps, solves = (np.diff(again.history[name][:, 0]) for name in ("env_steps", "follower_solves"))
    assert steps == [100 * len(batches)]
    assert solves == [follower.given - before]
    again.learn(1)
    assert np.diff(again.history["env_steps"][:, 0])[-1] == 200


@pytest.mark.slow
def test_an_interrupted_iteration_does_not_take_a_proposal_back():
    """The best decision is not in force yet: its measured return must not be mixed with that of the one that is."""
    follower = Interrupted()
    leader = MBHG(random_mdp(follower), seed=0, batch_size=500, draws=0, vertices=False).learn(1)
    best = leader._records[0]
    best.mean, best.error, best.source = 1e6, 0.0, "world"
    learner, kept, now = leader.learners[0], best.raw.clone(), leader.theta
    observe = learner.observe

    def broken(*arguments):
        if leader._attempt.steps == 1_000:  # the second batch
            raise KeyboardInterrupt
        observe(*arguments)

    learner.observe = broken
    with pytest.raises(KeyboardInterrupt):
        leader.learn(1)
    np.testing.assert_array_equal(leader.theta, now)
    learner.observe = observe
    leader.learn(1)
    np.testing.assert_array_equal(leader._raw.flat()[0], kept)
    assert (leader._records[0].mean, leader._records[0].source) == (1e6, "record")


@pytest.mark.slow
def test_an_iteration_that_fails_at_its_end_is_counted_too(monkeypatch):
    follower = Interrupted()
    leader = MBHG(toll_bridge(follower), seed=0, **QUICK)
    move = MBHG._move

    def broken(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(MBHG, "_move", broken)
    with pytest.raises(KeyboardInterrupt):
        leader.learn(1)
    monkeypatch.setattr(MBHG, "_move", move)
    leader.learn(1)
    assert leader.history["env_steps"].tolist() == [[400]]
    assert leader.history["follower_solves"].tolist() == [[follower.given]]


@pytest.mark.slow
def test_what_was_explored_and_what_was_promised_are_recorded():
    leader = MBHG(toll_bridge(), seed=0, **QUICK).learn(4)
    promised, value = leader.history["promised_value"][:, 0], leader.history["leader_value"][:, 0]
    assert np.isnan(promised[0])  # nobody proposed the start
    assert promised[-1] == pytest.approx(value[-1], rel=1e-3)  # the world is known by then


@pytest.mark.parametrize("follower", [Quantal(0.3), ObservedFollower(observations=200), SoftQLearning(rounds=20)])
@pytest.mark.slow
def test_a_follower_that_cannot_be_asked_is_led_by_counts_alone(follower):
    env = toll_bridge(follower)
    with pytest.warns(FollowerNotAskedWarning, match=f"MBHG: {type(follower).__name__} cannot be asked") as caught:
        leader = MBHG(env, seed=0, **QUICK)
    assert (len(caught), caught[0].filename) == (1, __file__)  # where the user makes the leader
    leader.learn(3)
    assert leader.history["follower_solves"][-1, 0] <= 2 * 3  # a deployment each
    assert exact.objective(env, leader.theta) > 0.8  # from 0.2; the optimum under an optimal follower is 0.8995


def test_worlds_without_countable_states_are_refused_with_the_leader_to_take():
    with pytest.raises(ValueError, match="a table for MBHG.*BuildingThermalControl is none: take BCHG$"):
        MBHG(building())


@pytest.mark.slow
def test_a_search_alone_finds_what_needs_no_exploration():
    """Without candidates, optimism, equations or questions it still ascends from where it is."""
    settings = {"draws": 0, "vertices": False, "optimism": False, "equations": False, "ask_every": 0}
    leader = MBHG(random_mdp(), seed=0, batch_size=200, **settings).learn(3)
    assert leader.history["leader_value"][-1, 0] > leader.history["leader_value"][0, 0] + 1
    assert leader.history["follower_solves"][-1, 0] < 100


def test_measured_returns_have_the_mean_and_error_of_their_episodes():
    batch = rollout([[[0, 0, 0, 0]]], terminated=[[[0, 1, 0, 1]]], r_leader=[[[1.0, 2.0, 4.0, 3.0]]])
    mean, error = measured(batch, 0.5)
    assert mean == [pytest.approx((2.0 + 5.5) / 2)]  # 1 + 2/2 and 4 + 3/2
    assert error == [math.inf]  # of two episodes nothing is said
    rewards = np.arange(20.0)
    many = rollout(np.zeros((1, 1, 20), int), terminated=np.ones((1, 1, 20)), r_leader=rewards[None, None])
    mean, error = measured(many, 0.5)
    assert mean == [pytest.approx(9.5)]
    assert error == [pytest.approx(rewards.std(ddof=1) / math.sqrt(20))]


def found(raw, mean, error, endless=False):
    """A deployment whose θ and g are its raw parameters."""
    return Deployment(mean, error, endless, raw, raw)


def nobody(*_):
    raise AssertionError("the learnt world is not asked")


def test_a_proposal_that_measures_worse_is_taken_back():
    first, second = torch.zeros(2), torch.ones(2)
    record = Record()
    assert not record.compared(found(first, 5.0, 0.1), first, nobody)
    record.source = "world"
    assert not record.compared(found(second, 4.7, 0.1), second, nobody)  # within three errors
    assert not record.compared(found(second, 4.0, math.inf), second, nobody)  # of few episodes
    assert record.compared(found(second, 4.0, 0.1), second, nobody)
    np.testing.assert_array_equal(record.raw, first)
    assert (record.source, record.patience) == ("record", 5)
    assert not record.compared(found(first, 4.4, 0.1), first, nobody)  # the record again, which had been lucky
    assert record.mean == pytest.approx(4.7)


def test_without_returns_the_learnt_world_decides_once_it_has_said_so_three_times():
    first, second, third = torch.zeros(2), torch.ones(2), torch.full((2,), 2.0)
    values = {(0.0, "neutral"): 10.0, (1.0, "neutral"): 5.0, (2.0, "neutral"): 11.0}
    hopes = {(1.0, "optimistic"): 9.0, (2.0, "optimistic"): 12.0}

    def value(theta, policy, completion):
        return (values | hopes)[float(theta[0]), completion]

    def said(raw):
        return record.compared(found(raw, 0.0, math.inf, endless=True), raw, value)

    record = Record()
    assert not said(first)
    record.source = "world"
    assert [said(second), said(second)] == [False, False]
    hopes[1.0, "optimistic"] = 9.6  # within a twentieth: it may be as good
    assert not said(second)
    hopes[1.0, "optimistic"] = 9.0
    assert [said(second), said(second), said(second)] == [False, False, True]
    np.testing.assert_array_equal(record.raw, first)
    record.source = "world"
    assert not said(third)  # better
    np.testing.assert_array_equal(record.raw, third)


def test_in_a_world_without_an_end_the_best_decision_comes_back():
    env = wrapped(RandomMDP(gamma_leader=0.99))
    leader = MBHG(env, seed=0, batch_size=500, draws=0, vertices=False, optimism=False)
    start = leader._raw.flat()[0]
    draws = torch.from_numpy(np.random.default_rng(0).normal(size=(20, 5)))
    bad = min(draws, key=lambda raw: exact.objective(env, raw.numpy()))
    assert exact.objective(env, bad.numpy()) < exact.objective(env, start.numpy()) - 50
    (learner,) = leader.learners
    learner.propose = lambda raw: (bad, 1e6)  # a learnt world that is wrong, and stays so
    leader.learn(3)
    np.testing.assert_array_equal(leader.theta, bad)
    np.testing.assert_array_equal(leader.best_deployed_theta, start)
    leader.learn(1)
    np.testing.assert_array_equal(leader.theta, start)


def test_the_best_decision_deployed_is_the_one_that_measured_best():
    env = random_mdp()
    leader = MBHG(env, runs=2, seed=0, batch_size=500, draws=0, vertices=False, optimism=False)
    np.testing.assert_array_equal(leader.best_deployed_theta, leader.theta)  # nothing was
    start = leader.theta
    for learner in leader.learners:
        learner.propose = lambda raw: (raw - 3.0, 1e6)  # worse, which nothing has shown yet
    leader.learn(1)
    assert (exact.objective(env, leader.theta) < exact.objective(env, start)).all()
    np.testing.assert_array_equal(leader.best_deployed_theta, start)


@pytest.mark.parametrize(("make", "batch"), [(toll_bridge, 400), (random_mdp, 60)], ids=["measured", "learnt"])
def test_a_decision_deployed_to_explore_can_be_the_best_one(make, batch, tmp_path):
    env = make()
    leader = MBHG(env, runs=2, seed=0, batch_size=batch, draws=0, vertices=False)
    shape = leader._raw.flat().shape
    draws = torch.from_numpy(np.random.default_rng(1).normal(size=(40, shape[-1])) * 2)
    values = [float(exact.objective(env, leader._raw.theta(raw.expand(shape)).detach().numpy())[0]) for raw in draws]
    good, bad = (draws[order(range(40), key=values.__getitem__)] for order in (max, min))
    for learner in leader.learners:
        learner.explore = lambda raw: (good, 1e6)
        learner.propose = lambda raw: (bad, 1e6)
    leader.learn(1)
    assert all(np.isfinite(best.error) == (make is toll_bridge) for best in leader._best)
    explored = leader._raw.theta(good.expand(shape)).detach()
    np.testing.assert_array_equal(leader.best_deployed_theta, explored)
    leader.save(tmp_path / "leader.zip")
    again = MBHG.load(tmp_path / "leader.zip", env)
    np.testing.assert_array_equal(again.best_deployed_theta, explored)


def test_the_best_of_two_deployments_is_the_one_that_measured_best_or_is_worth_more_in_the_learnt_world():
    first, second, values = torch.zeros(2), torch.ones(2), {0.0: 1.0, 1.0: 2.0}

    def best(one, other, value=nobody):
        return best_of(one, other, value)

    low, high = found(first, 1.0, 0.1), found(second, 2.0, 0.3)
    assert best(None, low) is low
    assert best(low, high) is high
    assert best(high, low) is high
    few = found(second, -9.0, math.inf)
    assert best(low, few, lambda theta, *_: values[float(theta[0])]) is few
    assert best(low, few, lambda theta, *_: -values[float(theta[0])]) is low
    both = best(high, found(second, 1.0, 0.4))  # the same θ again: 2 with the precision 1 / 0.09, 1 with 1 / 0.16
    assert (both.mean, both.error) == (
        pytest.approx((2 / 0.09 + 1 / 0.16) / (1 / 0.09 + 1 / 0.16)),
        pytest.approx(0.24),
    )
    assert best(few, high) is high
    assert best(high, few) is high
    assert best(found(first, 3.0, 0.0), found(first, 5.0, 0.0)).mean == 4.0  # where nothing is random


def test_a_decision_whose_iteration_fails_was_deployed_all_the_same(tmp_path):
    env = toll_bridge()
    leader = MBHG(env, seed=0, batch_size=400, draws=0, vertices=False)
    good = torch.full_like(leader._raw.flat()[0], 3.0)
    (learner,) = leader.learners
    learner.explore = lambda raw: (good, 1e6)

    def failing(raw):
        raise FloatingPointError("on purpose")

    learner.propose = failing
    with pytest.raises(FloatingPointError, match="on purpose"):
        leader.learn(1)
    explored = leader._raw.theta(good[None]).detach()[0]
    np.testing.assert_array_equal(leader.best_deployed_theta, explored)


@pytest.mark.slow
def test_files_of_versions_that_kept_the_best_theta_in_force_alone_are_read(tmp_path, monkeypatch):
    leader = MBHG(toll_bridge(), runs=2, seed=0, batch_size=400).learn(2)
    state = leader._critic_state()
    del state["best"]
    monkeypatch.setattr(leader, "_critic_state", lambda: state)
    leader.save(tmp_path / "leader.zip")
    again = MBHG.load(tmp_path / "leader.zip", toll_bridge())
    np.testing.assert_array_equal(again.best_deployed_theta, [record.theta.numpy() for record in leader._records])
    assert np.isfinite(again.learnt_values()["neutral"]).all()


def test_the_value_of_a_deployment_is_exact_where_all_is_known():
    env = wrapped(RandomMDP(beta=1.0))
    leader = MBHG(env, seed=0, batch_size=10_000, draws=0, vertices=False).learn(1)
    theta = torch.tensor([0.3, -0.2, 0.1, 0.0, 0.2]).double()
    best = env.best_response(theta)
    (learner,) = leader.learners
    for completion in ("neutral", "optimistic"):
        value = learner.deployed_value(theta, best.policy.probs[0], completion)
        assert value == pytest.approx(exact.objective(env, theta.numpy()), rel=1e-6)


def test_bc_hg_goes_on_from_a_proposal_that_was_taken_back():
    env = random_mdp()
    leader = MBHG(env, seed=0, batch_size=500, **{"draws": 0, "vertices": False})
    leader.learn(1)
    best = leader._records[0]
    best.mean, best.error, best.source = 1e6, 0.0, "world"  # nothing measures up to it
    kept = best.raw.clone()
    leader.learn(1)
    np.testing.assert_array_equal(leader._raw.flat()[0], kept)
    leader.learn(1)
    step = (leader._raw.flat()[0] - kept).abs()
    assert 0 < float(step.max()) <= 0.06  # one step of Adam with rate 0.05, not a jump
    assert np.isnan(leader.history["promised_value"][-1, 0])


@pytest.mark.slow
def test_a_policy_of_one_run_needs_no_runs_axis():
    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.layers = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1)).double()

        def forward(self):
            return 2 * torch.sigmoid(self.layers(torch.ones(1, 3, dtype=torch.float64)))

    leader = MBHG(toll_bridge(), seed=0, policy=Network(), **QUICK).learn(2)
    assert exact.objective(leader.env, leader.theta) > 0.89  # θ = 2 is worth 0.8995


def test_candidates_depend_on_the_seed_and_on_the_policy():
    one, two = (MBHG(wrapped_env("FourRooms"), runs=2, seed=seed, draws=3) for seed in (0, 1))
    found = [learner.candidates for learner in (*one.learners, *two.learners)]
    assert [tuple(rows.shape) for rows in found] == [(108, 105)] * 4  # 105 vertices and three draws
    np.testing.assert_array_equal(found[1], found[2])
    assert not torch.equal(found[0], found[1])


@pytest.mark.slow
@pytest.mark.parametrize("changed", [{"draws": 5}, {"vertices": False}, {"draws": 10, "vertices": False}])
def test_candidates_may_be_others_after_loading(changed, tmp_path):
    """The follower's saved answers are those at the old candidates: also where the new ones are as many."""
    MBHG(toll_bridge(), seed=0, **QUICK).learn(1).save(tmp_path / "leader.zip")
    leader = MBHG.load(tmp_path / "leader.zip", env=toll_bridge(), **changed)
    (learner,) = leader.learners
    assert learner._of_candidates is None
    leader.learn(1)
    q, v = learner._of_candidates
    theta = leader._raw.theta(learner.candidates).detach()
    best = leader.env.best_response(theta)
    np.testing.assert_allclose(q, best.q.values, atol=1e-6)
    np.testing.assert_allclose(v, best.v.values, atol=1e-6)


@pytest.mark.slow
def test_what_is_known_bounds_the_value_of_the_best_deployed_theta():
    """In the toll bridge moves are certain: counts tell them, and once all is known nothing is left to suppose."""
    leader = MBHG(toll_bridge(), runs=2, batch_size=200, seed=0)
    assert np.isnan(leader.learnt_values()["pessimistic"]).all()
    leader.learn(4)
    truth = exact.objective(leader.env, leader.best_deployed_theta)
    for values in leader.learnt_values().values():
        np.testing.assert_allclose(values, truth, rtol=1e-6)


@pytest.mark.slow
def test_where_pairs_are_unknown_completions_differ_and_the_pessimistic_one_is_a_lower_bound():
    env = wrapped_env("RandomMDP", states=60, actions=6)
    leader = MBHG(env, seed=0, batch_size=60).learn(2)
    values = {name: float(value[0]) for name, value in leader.learnt_values().items()}
    assert values["pessimistic"] < values["neutral"] <= values["optimistic"]
    assert values["pessimistic"] < exact.objective(env, leader.best_deployed_theta)
