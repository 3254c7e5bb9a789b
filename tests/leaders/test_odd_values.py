"""Values of another kind, shape or size than is asked for, as the fuzzer found them: each is refused by its name."""

import warnings
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch

from bilevel_envs import BilevelWrapper, TabularModel
from bilevel_envs.core.checks import check_number
from bilevel_envs.core.contexts import Contexts
from bilevel_envs.core.follower import FollowerError
from bilevel_envs.core.noise import Noise
from bilevel_envs.envs.four_rooms import FourRooms
from bilevel_envs.envs.random_mdp import RandomMDP
from bilevel_envs.envs.tax_design import TaxDesignSmall
from bilevel_envs.followers import ObservedFollower, SB3Follower, SoftQLearning, SoftValueIteration, Truncated
from bilevel_envs.worlds.tabular.transitions import Transitions
from leaders import BCHG, CMAES, HPGD, MBHG, BiAC, NaivePGD, SoBiRL
from leaders.experiments.lock import make_folder
from leaders.training.checkpoint import Checkpoint
from tests.helpers import toll_bridge

RAGGED = [[1, 2], [3]]
TABLE = np.full((2, 1, 2), 0.5)
LISTS = np.array([[[0, 1]], [[0, 1]]])


def ones(*shape):
    return torch.ones(shape, dtype=torch.float64)


def bridge(name, value, leader=BCHG):
    return lambda: leader(toll_bridge(), **{name: value})


REFUSED = {
    "ragged seeds": (bridge("seed", RAGGED), "`seed`"),
    "a truncated follower's ragged seeds": (lambda: Truncated(seed=RAGGED), "`seed`"),
    "steps that no integer holds": (lambda: SB3Follower(episode_steps=10**30), "`episode_steps` must be at most"),
    "a switch that is an array": (lambda: TaxDesignSmall(scale_debt_branch=np.ones((1, 2))), "`scale_debt_branch`"),
    "ragged probabilities of contexts": (
        lambda: Contexts(2, lambda index: torch.zeros(len(index)), RAGGED),
        "`probabilities`",
    ),
    "no seeds at all": (lambda: Truncated(seed=[]), "`seed`"),
    "seeds in two axes": (lambda: Truncated(seed=[[1, 2], [3, 4]]), "`seed`"),
    "more transitions than can be printed": (bridge("batch_size", 10**5000), "`batch_size` must be at most"),
    "less transitions than can be printed": (bridge("batch_size", -(10**5000)), "`batch_size` must be at least"),
    "a step size that cannot be printed": (bridge("learning_rate", 10**5000), "`learning_rate` must be .*bits"),
    "probabilities that are words": (
        lambda: Contexts(2, lambda index: torch.zeros(len(index)), ["a", "b"]),
        "`probabilities`",
    ),
    "ragged step sizes": (bridge("learning_rate", RAGGED), "`learning_rate`"),
    "a step size that no float holds": (bridge("learning_rate", 10**400), "`learning_rate`"),
    "an array as a clip": (bridge("max_grad_norm", torch.ones(2)), "`max_grad_norm`"),
    **{
        f"an array as `{name}`": (bridge(name, np.ones(2)), f"`{name}`") for name in ("guiding", "dynamics", "gradient")
    },
    **{
        f"an array as {kind.__name__}'s preset": (bridge("preset", np.ones(2), kind), "`preset`")
        for kind in (BCHG, HPGD, BiAC, NaivePGD, SoBiRL)
    },
    "lists that are a number": (lambda: Transitions.from_lists(-1, TABLE), "`successor`"),
    "ragged lists": (lambda: Transitions.from_lists(RAGGED, TABLE), "`successor`"),
    "probabilities of nothing": (lambda: Transitions.from_lists(LISTS, torch.zeros(0, 2)), "`probability`"),
    "probabilities that are a word": (lambda: Transitions.from_lists(LISTS, "half"), "`probability`"),
    "complex probabilities": (lambda: Transitions.from_lists(LISTS, TABLE + 0j), "`probability`"),
    "a dense table that is a number": (lambda: Transitions.from_dense(0.5), "`transition`"),
    "a dense table of objects": (lambda: Transitions.from_dense([[[object()]]]), "`transition`"),
    "a number as sparse arrays": (lambda: Transitions.from_scipy(1.0), "`matrices`"),
    "a vector as a sparse array": (lambda: Transitions.from_scipy(np.ones(3)), "`matrices`"),
    "words as sparse arrays": (lambda: Transitions.from_scipy([["a"]]), "`matrices`"),
    "a word as a function": (lambda: Transitions.from_function("f", 2, 1), "`function`"),
    "a function that answers with a number": (lambda: Transitions.from_function(lambda s, b: 1, 2, 1), "`function`"),
    "a function that answers with words": (
        lambda: Transitions.from_function(lambda s, b: ("a", "b"), 2, 1),
        "`function`",
    ),
    "more states than memory": (lambda: Transitions.from_function(lambda s, b: 1, 10**12, 1), "`states`"),
    "a structure that is none": (
        lambda: TabularModel(ones(1, 1, 1, 1), ones(1, 1), ones(1, 1, 1), ones(1, 1, 1), structure="mine"),
        "`structure`",
    ),
    "reset options that are an array": (lambda: toll_bridge().reset(options=np.ones(1)), "`options`"),
    "reset options by numbers and words": (lambda: toll_bridge().reset(options={1: 1, "a": 2}), "`options`"),
    "a random MDP larger than memory": (lambda: RandomMDP(states=10**12, branching=1), "`states`"),
    "more actions than memory": (lambda: RandomMDP(actions=10**30), "`actions`"),
    "a larger population than memory": (bridge("population", 10**12, CMAES), "`population`"),
    "more probes than memory": (bridge("probes", 10**12, CMAES), "`probes`"),
    "more draws than memory": (bridge("draws", 10**12, MBHG), "`draws`"),
    "more episodes than memory": (bridge("episodes", 10**12, CMAES), "`episodes`"),
    "a larger oracle than memory": (
        lambda: HPGD(toll_bridge(), variant="oracle", preset="paper", oracle_size=10**12),
        "`oracle_size`",
    ),
    "more draws of an oracle than memory": (
        lambda: HPGD(toll_bridge(), variant="oracle", oracle_draws=10**12),
        "`oracle_draws`",
    ),
    "a complex tensor as a table": (lambda: Transitions.from_dense(torch.tensor(TABLE + 0j)), "`transition`"),
    "a reward that is a number": (
        lambda: TabularModel(ones(1, 1, 1, 1), ones(1, 1), ones(1, 1, 1), ones()),
        "`r_follower`",
    ),
    "a policy that is neither a word nor a class": (lambda: SB3Follower("SoftDQN", policy=print), "`policy`"),
    "ragged closings": (lambda: FourRooms(closing=RAGGED), "`closing`"),
    "complex exponents of households": (lambda: TaxDesignSmall(households=np.ones((1, 2)) + 0j), "`households`"),
    "a ragged range of actions": (lambda: SB3Follower("SAC", action_range=RAGGED), "`action_range`"),
    "a policy that SB3 does not know": (
        lambda: toll_bridge(SB3Follower("SoftDQN", 30, policy="word")).best_response(np.array([0.5])),
        "`policy`",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_value_of_another_kind_is_refused_by_its_name(what):
    call, name = REFUSED[what]
    with pytest.raises((ValueError, TypeError), match=name):
        call()


class Answering(SoftValueIteration):
    """Changes a part of its answer."""

    def best_response(self, model, preferences, init=None):
        return replace(super().best_response(model, preferences), **self.changed)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"steps": "many"}, "its steps must be a whole number"),
        ({"steps": True}, "its steps must be a whole number"),
        ({"steps": -1}, "its steps must be a whole number"),
        ({"optimal": np.array([True, False])}, "its optimal must be True or False"),
        ({"q": lambda state, action: None}, "its q must give a tensor of shape"),
        ({"v": lambda state: torch.zeros(1)}, "its v must give a tensor of shape"),
    ],
)
def test_a_part_of_an_answer_that_is_of_another_kind_is_refused_by_its_name(changed, said):
    follower = Answering()
    object.__setattr__(follower, "changed", changed)
    with pytest.raises(FollowerError, match=said):
        BCHG(BilevelWrapper(toll_bridge().env, follower), batch_size=40).learn(1)


def test_a_random_stream_with_a_number_that_no_stream_has_is_refused_as_a_file(tmp_path):
    checkpoint = Checkpoint(tmp_path / "leader.zip", {}, {}, np.zeros(0))
    stream = BCHG(toll_bridge(), batch_size=40).noise
    (state,) = stream.state_dict()
    state["state"] = {"state": 10**60, "inc": 1}
    with pytest.raises(ValueError, match="does not fit together"), checkpoint.naming_itself():
        stream.load_state_dict([state])


def test_a_number_of_half_the_precision_is_a_number():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert check_number(np.float32(0.5), "share", above=0, below=1) == 0.5
        with pytest.raises(ValueError, match="`share` must be above 0 and finite"):
            check_number(np.float32("inf"), "share", above=0)


def test_a_clip_at_infinity_is_none_whatever_its_float():
    for kind in (float, np.float32, np.float64):
        BCHG(toll_bridge(), max_grad_norm=kind("inf"))


@pytest.mark.parametrize("pairs", [False, True], ids=["no context", "contexts"])
@pytest.mark.parametrize("observed", [False, True], ids=["itself", "observed"])
def test_a_follower_that_cannot_learn_here_is_refused_when_the_leader_is_made(observed, pairs):
    follower = ObservedFollower(SB3Follower("SAC")) if observed else SB3Follower("SAC")
    env = BilevelWrapper(gym.make("BiLevel/FourRooms-v0", pairs=pairs), follower=follower)
    with pytest.raises(ValueError, match="`algorithm` must be one of SoftDQN, DQN, PPO, A2C for discrete actions"):
        BCHG(env)


@pytest.mark.parametrize(
    ("path", "error", "said"),
    [
        (None, TypeError, "`path` must be a file's path, got None"),
        (b"name", TypeError, "`path` must be a file's path, got b'name'"),
        ("", ValueError, "`path` must be a file's path, got ''"),
        ("no\0name", ValueError, "`path` must be a file's path"),
        (".", IsADirectoryError, "got the folder .*: add a file's name"),
        ("missing/leader.zip", FileNotFoundError, r"must be in a folder that is there, got .*: make .*missing first"),
    ],
    ids=repr,
)
def test_a_path_at_which_nothing_can_be_written_is_refused_by_name(path, error, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=said):
        BCHG(toll_bridge(), runs=1).save(path)
    with pytest.raises(error, match=said):
        BCHG(toll_bridge(), runs=1).history.write_csv(path)
    assert not list(tmp_path.iterdir())


def test_a_path_in_a_file_and_a_folder_to_load_are_refused_by_name(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="`out` must be a folder that can be made, got .*file/run"):
        make_folder(tmp_path / "file" / "run")
    with pytest.raises(NotADirectoryError, match="`path` must be in a folder, got .*: .*file is a file"):
        BCHG(toll_bridge()).save(tmp_path / "file" / "leader.zip")
    with pytest.raises(IsADirectoryError, match="`path` must be a file that `save` wrote, got the folder"):
        BCHG.load(tmp_path, toll_bridge())


def test_a_seed_may_be_as_large_as_numpys_entropy():
    seed = 2**100 + 1
    assert np.isfinite(BCHG(toll_bridge(), seed=seed).learn(1).theta).all()
    assert SoftQLearning(seed=seed).seed == seed


def test_numbers_of_numpy_are_kept_as_pythons():
    """A limit of `np.uint8(3)` had the grid begin at −limit = 253."""
    tax, plain = TaxDesignSmall(limit=np.uint8(4)), TaxDesignSmall(limit=4)
    np.testing.assert_array_equal(tax.points, plain.points)
    assert type(RandomMDP(reward_share=np.float32(0.5)).reward_share) is float
    assert type(SoftValueIteration(beta=np.float16(0.5)).beta) is float


def test_a_batch_that_no_memory_holds_is_refused_before_it_is_drawn():
    follower = SoftQLearning(horizon=10**12)
    with pytest.raises(FollowerError, match="`horizon` must be less: 1000000000000 would take"):
        BCHG(BilevelWrapper(gym.make("BiLevel/TollBridge-v0"), follower=follower)).learn(1)
    env = toll_bridge()
    with pytest.raises(ValueError, match="`rows` must be less: 10000000000000 would take"):
        env.rollout(env.theta, env.best_response(env.theta), Noise([0]), rows=10**13, horizon=1)
