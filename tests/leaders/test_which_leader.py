"""README's table of leaders is true: each of them in every kind of world, led or refused by name."""

import re
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

from bilevel_envs import BilevelWrapper, ConfigurableRewards, Preferences
from bilevel_envs.followers import SB3Follower
from leaders import LEADERS

README = (Path(__file__).parents[2] / "README.md").read_text()


def somebody_elses():
    env = ConfigurableRewards(
        "CartPole-v1",
        theta_space=gym.spaces.Box(0.0, 2.0, (2,), np.float64),
        components=lambda observation, action, reward, after, info: [reward, after[0] ** 2],
        r_follower=lambda theta, c: c[..., 0] - theta[..., 0] * c[..., 1],
        r_leader=lambda theta, c: -c[..., 1] - 0.05 * theta.sum(-1),
        preferences=Preferences(gamma_leader=0.98, gamma_follower=0.98, beta=0.1),
    )
    return BilevelWrapper(env, SB3Follower("SoftDQN", steps=32, first_steps=32, learning_starts=8))


def made(name, follower=None):
    return lambda: BilevelWrapper(gym.make(f"BiLevel/{name}-v0"), follower and follower())


WORLDS = {
    "tables": made("RandomMDP"),
    "linear-quadratic": made("BuildingThermalControl"),
    "games": made("ToyMarkovGame"),
    "others' environments": somebody_elses,
    "learning followers": made("TollBridge", lambda: SB3Follower("SoftDQN", steps=32, learning_starts=8)),
}


def rows():
    lines = README[README.index("| leader | needs a model") :].split("\n\n")[0].splitlines()
    head = [cell.strip() for cell in lines[0].strip("|").split("|")]
    for line in lines[2:]:
        cells = dict(zip(head, [cell.strip() for cell in line.strip("|").split("|")], strict=True))
        for cls in re.findall(r"`(\w+)`", cells["leader"]):
            for world in WORLDS:
                yield pytest.param(cls, world, cells[world] != "–", id=f"{cls}-{world}")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::leaders.FollowerNotAskedWarning")
@pytest.mark.parametrize(("cls", "world", "leads"), list(rows()))
def test_a_leader_leads_where_the_table_says_so_and_refuses_elsewhere(cls, world, leads):
    kind = next(one for one in LEADERS.values() if one.__name__ == cls)
    short = kind.looks_at_trajectories and world in ("tables", "games", "others' environments")
    arguments = {"batch_size": 40} if short else {}
    if leads:
        leader = kind(WORLDS[world](), seed=0, **arguments).learn(1)
        assert np.isfinite(leader.theta).all()
    else:
        with pytest.raises(ValueError, match=r"`(env|critic)`"):
            kind(WORLDS[world](), seed=0, **arguments).learn(1)


def test_every_leader_has_a_row():
    assert {param.values[0] for param in rows()} == {cls.__name__ for cls in LEADERS.values()}
