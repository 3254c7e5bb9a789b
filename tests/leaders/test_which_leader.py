"""README's table of leaders is true: each cell is tried, led or refused by name."""

import re
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

from bilevel_envs import BilevelWrapper, ConfigurableRewards, Preferences
from bilevel_envs.followers import ObservedFollower, SB3Follower
from leaders import LEADERS, NaivePGD
from tests.helpers import random_mdp, wrapped_env
from tests.lake import led_lake

README = (Path(__file__).parents[2] / "README.md").read_text()
NO, DIRECT = "–", "direct term alone"


def learner(algorithm="SoftDQN"):
    return SB3Follower(algorithm, steps=32, first_steps=32, learning_starts=8)


def somebody_elses():
    env = ConfigurableRewards(
        "CartPole-v1",
        theta_space=gym.spaces.Box(0.0, 2.0, (2,), np.float64),
        components=lambda observation, action, reward, after, info: [reward, after[0] ** 2],
        r_follower=lambda theta, c: c[..., 0] - theta[..., 0] * c[..., 1],
        r_leader=lambda theta, c: -c[..., 1] - 0.05 * theta.sum(-1),
        preferences=Preferences(gamma_leader=0.98, gamma_follower=0.98, beta=0.1),
    )
    return BilevelWrapper(env, learner())


def a_game_or_a_table(kind):
    """What a leader is led in to try followers and critics."""
    return "ToyMarkovGame" if kind.name == "bi-ac" else "TollBridge"


WORLDS = {
    "θ in rewards": lambda kind: random_mdp(transition_share=0.0, start_share=0.0),
    "θ in transitions": lambda kind: random_mdp(reward_share=0.0, start_share=0.0),
    "tables": lambda kind: wrapped_env("RandomMDP"),
    "vectors, linear-quadratic": lambda kind: wrapped_env("BuildingThermalControl"),
    "vectors, no model": lambda kind: somebody_elses(),
    "games": lambda kind: wrapped_env("ToyMarkovGame"),
    "contexts": lambda kind: wrapped_env("FourRooms", pairs=True, beta=0.02),
    "learning followers": lambda kind: wrapped_env(a_game_or_a_table(kind), learner()),
    "observed followers": lambda kind: wrapped_env(a_game_or_a_table(kind), ObservedFollower(observations=50)),
}
LONG = ("θ in rewards", "θ in transitions", "tables", "games", "vectors, no model", "contexts")  # wants small batches
OTHER = ("needs a model", "network as critic", "network weights as θ")  # columns with tests of their own


def table():
    lines = README[README.index("| leader | needs a model") :].split("\n\n")[0].splitlines()
    head = [cell.strip() for cell in lines[0].strip("|").split("|")]
    assert set(head) == {"leader", *WORLDS, *OTHER}
    for line in lines[2:]:
        cells = dict(zip(head, [cell.strip() for cell in line.strip("|").split("|")], strict=True))
        for cls in re.findall(r"`(\w+)`", cells["leader"]):
            yield next(one for one in LEADERS.values() if one.__name__ == cls), cells


def column(*names):
    """The cells of some columns: the leader's class, the column and what it says."""
    return [
        pytest.param(kind, name, cells[name], id=f"{kind.__name__}-{name}") for kind, cells in table() for name in names
    ]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::leaders.FollowerNotAskedWarning")
@pytest.mark.parametrize(("kind", "world", "says"), column(*WORLDS))
def test_a_leader_leads_where_the_table_says_so_and_refuses_elsewhere(kind, world, says):
    arguments = {"batch_size": 40} if kind.looks_at_trajectories and world in LONG else {}
    if says != NO:
        leader = kind(WORLDS[world](kind), seed=0, **arguments).learn(1)
        assert np.isfinite(leader.theta).all()
    else:
        with pytest.raises(ValueError, match=r"`(env|critic)`"):
            kind(WORLDS[world](kind), seed=0, **arguments).learn(1)


@pytest.mark.parametrize(
    ("kind", "where", "says"),
    [
        one
        for one in column("θ in rewards", "θ in transitions")
        if one.values[0].name in ("bchg", "sobirl", "naive-pgd")
    ],
)  # whose estimates are made of one batch
def test_the_follower_s_reaction_is_left_out_where_the_table_says_so(kind, where, says):
    estimate, direct = (one(WORLDS[where](one), critic="exact", seed=0).gradient_samples(2) for one in (kind, NaivePGD))
    assert np.allclose(estimate, direct) == (says == DIRECT)


@pytest.mark.parametrize(("kind", "name", "says"), column("needs a model"))
def test_a_leader_does_without_a_model_where_the_table_says_so(kind, name, says):
    for env in (led_lake(), somebody_elses()):  # states are numbers, states are vectors
        if says == "no":
            kind(env, seed=0)
        else:
            with pytest.raises(ValueError, match="`env` must (be a table|have a known model|have tables or matrices)"):
                kind(env, seed=0)


@pytest.mark.parametrize(("kind", "name", "says"), column("network as critic"))
def test_a_critic_is_a_network_where_the_table_says_so(kind, name, says):
    env = wrapped_env(a_game_or_a_table(kind))
    if says == "published form":
        kind(env, preset="paper", seed=0)
    elif says != NO:
        kind(env, critic="td", seed=0)
    if says != "✓":
        with pytest.raises(TypeError, match="has no argument 'critic'"):
            kind(env, critic="td", seed=0)


@pytest.mark.parametrize(("kind", "name", "says"), column("network weights as θ"))
def test_theta_is_a_network_s_weights_where_the_table_says_so(kind, name, says):
    if says == "published form":
        assert sum(p.numel() for p in kind(wrapped_env("ToyMarkovGame"), preset="paper").policy.parameters()) > 1000
    if says == "✓":
        assert kind(wrapped_env("GuidedPendulum", learner("SAC")), seed=0).theta.size > 1000
    else:
        with pytest.raises(ValueError, match="`env` must (be a table|have a known model|have tables or matrices)"):
            kind(wrapped_env("GuidedPendulum", learner("SAC")), seed=0)


def test_every_leader_has_a_row():
    assert {kind for kind, _ in table()} == set(LEADERS.values())
