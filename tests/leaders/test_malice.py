"""Untrusted files: data never chooses code. Every payload would create a file if anything in it were run."""

import io
import json
import pickle
import re
import shutil
import sys
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from stable_baselines3 import DQN

from bilevel_envs.followers import SB3Follower
from leaders import BCHG
from leaders.cli.main import main
from leaders.experiments import json_file
from leaders.experiments.compare import BUDGETS, load_result
from tests.helpers import toll_bridge

AGENT = ["algorithm=SoftDQN", "steps=60", "learning_starts=20", "buffer=keep", 'policy_kwargs={"net_arch":[8]}']
RUN = ["train", "--env", "BiLevel/TollBridge-v0", "--runs", "1", "--iterations", "2", "--batch", "40", "--no-progress"]


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A run of an observed agent of SB3, whose folder is then tampered with."""
    out = tmp_path_factory.mktemp("kept") / "run"
    follower = [f"follower.{one}" for one in AGENT]
    main(
        [
            *RUN,
            "--follower",
            "observed",
            "--follower-args",
            "follower=sb3",
            "observations=40",
            *follower,
            "--out",
            str(out),
        ]
    )
    return out


@pytest.fixture
def run(kept, tmp_path, monkeypatch):
    out, ran = tmp_path / "run", tmp_path / "ran"
    shutil.copytree(kept, out)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "evil", raising=False)
    (tmp_path / "evil.py").write_text(f"from pathlib import Path\nPath({str(ran)!r}).touch()\nThing = Path\n")
    return out


def configured(run, **changed):
    path = run / "config.json"
    whole = json.loads(path.read_text())
    whole["arguments"] |= changed
    path.write_text(json.dumps(whole))


def member(run, name, content):
    """Replaces a member of leader.zip; a function of the old content may be given."""
    path = run / "leader.zip"
    with zipfile.ZipFile(path) as archive:
        parts = {one: archive.read(one) for one in archive.namelist()}
    parts[name] = content(parts[name]) if callable(content) else content
    with zipfile.ZipFile(path, "w") as archive:
        for one, part in parts.items():
            archive.writestr(one, part)


def pickled(run):
    return pickle.dumps(Payload(run.parent / "ran"), 2)  # torch warns of later protocols


def torch_saved(run, wrap):
    buffer = io.BytesIO()
    torch.save(wrap(Payload(run.parent / "ran")), buffer)
    return buffer.getvalue()


def numpy_saved(run):
    buffer = io.BytesIO()
    np.save(buffer, np.array([Payload(run.parent / "ran")], object), allow_pickle=True)
    return buffer.getvalue()


def as_tensor(content):
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)


def nested(run, path, value):
    """Puts a value deep into the state of leader.zip."""

    def changed(content):
        state = torch.load(io.BytesIO(content), weights_only=True)
        at = state
        for key in path[:-1]:
            at = at[key]
        at[path[-1]] = value
        buffer = io.BytesIO()
        torch.save(state, buffer)
        return buffer.getvalue()

    member(run, "state.pt", changed)


def sb3_archive(run, **parts):
    """A zip as SB3's `save` writes it, with members replaced."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in {"data": "{}", "policy.pth": b"", "_stable_baselines3_version": "2.9.0", **parts}.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def hidden_data(run):
    """SB3's `data` member with a pickled attribute, as its loader unpickles them."""
    import base64

    serialised = base64.b64encode(pickled(run)).decode()
    return json.dumps({"policy_class": {":type:": "x", ":serialized:": serialised}})


AGENTS = ("follower", "follower", "agents")
TAMPERED = {
    "a follower of a module": lambda run: configured(run, follower="evil:Thing", follower_args=[]),
    "a follower of the standard library": lambda run: configured(run, follower="os:system", follower_args=[]),
    "an observed follower of a module": lambda run: configured(run, follower_args=["follower=evil:Thing"]),
    "a follower that is a list": lambda run: configured(run, follower=["evil:Thing"], follower_args=[]),
    "a follower's arguments that are no text": lambda run: configured(run, follower_args=[{"follower": "evil:Thing"}]),
    "arguments of the environment that are no text": lambda run: configured(run, env_args=[["problem=evil:Thing"]]),
    "a leader of a module": lambda run: configured(run, leader="evil:Thing"),
    "an environment of a module": lambda run: configured(run, env="evil:BiLevel/TollBridge-v0"),
    "an environment of Gymnasium's own syntax": lambda run: configured(run, env="evil:evil:Thing-v0"),
    "an environment that is registered elsewhere": lambda run: configured(run, env="GymV26Environment-v0"),
    "a problem in the environment's arguments": lambda run: configured(run, env_args=["problem=evil:Thing"]),
    "a pickled configuration": lambda run: (run / "config.json").write_bytes(pickled(run)),
    "a pickled description": lambda run: member(run, "leader.json", pickled(run)),
    "a pickled state": lambda run: member(run, "state.pt", pickled(run)),
    "an object in the state": lambda run: member(run, "state.pt", torch_saved(run, lambda one: {"policy": one})),
    "an object deep in the state": lambda run: member(
        run, "state.pt", torch_saved(run, lambda one: {"follower": {"follower": {"agents": [{"parameters": one}]}}})
    ),
    "an object in the history": lambda run: member(run, "history.npy", numpy_saved(run)),
    "a pickled history": lambda run: member(run, "history.npy", pickled(run)),
    "a pickled archive": lambda run: (run / "leader.zip").write_bytes(pickled(run)),
    "an agent as SB3 archives it": lambda run: nested(
        run, AGENTS, [as_tensor(sb3_archive(run, data=hidden_data(run)))]
    ),
    "counters that are code": lambda run: nested(
        run, (*AGENTS, 0, "counters"), {"learn": "evil:Thing", "_n_calls": "x"}
    ),
    "an agent's parameters as a pickle": lambda run: nested(run, (*AGENTS, 0, "parameters"), as_tensor(pickled(run))),
    "a replay buffer as a pickle": lambda run: nested(run, (*AGENTS, 0, "buffer"), as_tensor(pickled(run))),
    "values of an observed follower as a pickle": lambda run: nested(
        run, ("follower", "values"), as_tensor(pickled(run))
    ),
    "a critic as a pickle": lambda run: nested(run, ("critic",), as_tensor(pickled(run))),
    "a pickled result": lambda run: (run / "result.json").write_bytes(pickled(run)),
    "a pickled history beside its checkpoint": lambda run: (run / "leader.history").write_bytes(pickled(run)),
    "a pickled table of the history": lambda run: (run / "history.csv").write_bytes(pickled(run)),
    "a pickled table of θ": lambda run: (run / "theta.csv").write_bytes(pickled(run)),
}
LOADERS = {
    "video": lambda run: main(["video", str(run)]),
    "curves": lambda run: main(["curves", str(run), "--out", str(run.parent / "curves.png")]),
    "resume": lambda run: main(
        [
            *RUN,
            *("--follower", "observed", "--follower-args", "follower=sb3", "observations=40"),
            *[f"follower.{one}" for one in AGENT],
            *("--out", str(run), "--resume", "--iterations", "3"),
        ]
    ),
    "report": lambda run: main(["report", str(run)]),
}


@pytest.mark.slow
@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("payload", TAMPERED)
def test_no_payload_in_a_run_directory_is_run(run, payload, loader, capsys):
    TAMPERED[payload](run)
    try:
        LOADERS[loader](run)
        refused = 0
    except SystemExit as end:
        refused = end.code
    assert not (run.parent / "ran").exists()
    assert refused in (0, 2)
    if refused:
        assert "bilevel: " in capsys.readouterr().err


COMPARISON = ["compare", "--env", "BiLevel/TollBridge-v0", "--leaders", "exact", "--runs", "2", "--iterations", "2"]
STUDY = ["sweep", "--processes", "1", "--no-progress", "--settings", "env=BiLevel/TollBridge-v0", "leader=exact"]
STUDY += ["runs=1", "iterations=2"]
MEMBERS = (*("name", "keys", "points", "value", "column", "choosing"), *BUDGETS)  # of a result of `compare`


def in_comparison(name, out):
    """Puts an object in place of an array of a comparison's result."""
    with np.load(out / "exact.npz") as data:
        assert set(data.files) == set(MEMBERS)
        arrays = dict(data)
    np.savez(out / "exact.npz", **arrays | {name: np.array([Payload(out.parent / "ran")], object)})


def job_of(out):
    (folder,) = (out / "jobs").iterdir()
    return folder


def begun(out, name):
    """A file of a job that has no result yet."""
    (job_of(out) / "result.json").unlink()
    return job_of(out) / name


COMPARED = {f"an object as `{name}`": partial(in_comparison, name) for name in MEMBERS} | {
    "a pickled comparison": lambda out: (out / "exact.npz").write_bytes(pickled(out)),
    "a comparison's pickled configuration": lambda out: (out / "config.json").write_bytes(pickled(out)),
}
STUDIED = {
    "a pickled study": lambda out: (out / "study.json").write_bytes(pickled(out)),
    "a study's pickled table": lambda out: (out / "results.csv").write_bytes(pickled(out)),
    "a job's pickled result": lambda out: (job_of(out) / "result.json").write_bytes(pickled(out)),
    "a job's pickled configuration": lambda out: begun(out, "config.json").write_bytes(pickled(out)),
    "a job's pickled checkpoint": lambda out: begun(out, "leader.zip").write_bytes(pickled(out)),
    "a job with a follower of a module": lambda out: configured(begun(out, ".").resolve(), follower="evil:Thing"),
}


@pytest.fixture(scope="module")
def kept_folders(tmp_path_factory):
    """A comparison and a study."""
    folder = tmp_path_factory.mktemp("folders")
    main([*COMPARISON, "--no-progress", "--out", str(folder / "compare")])
    main([*STUDY, "--out", str(folder / "sweep")])
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("payload", [*COMPARED, *STUDIED])
def test_no_payload_in_a_comparison_or_a_study_is_run(kept_folders, tmp_path, capsys, monkeypatch, payload):
    command, further = (COMPARISON, ["--no-progress", "--resume"]) if payload in COMPARED else (STUDY, [])
    out = tmp_path / "out"
    shutil.copytree(kept_folders / command[0], out)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "evil.py").write_text(
        f"from pathlib import Path\nPath({str(tmp_path / 'ran')!r}).touch()\nThing = Path\n"
    )
    (COMPARED | STUDIED)[payload](out)
    for loader in ([*command, *further, "--out", str(out)], ["report", str(out)]):
        try:
            main(loader)
            refused = 0
        except SystemExit as end:
            refused = end.code
        assert not (tmp_path / "ran").exists()
        assert refused in (0, 2, 3)
        if refused:
            assert "bilevel: " in capsys.readouterr().err


def test_the_page_on_security_counts_the_payloads():
    page = (Path(__file__).parents[2] / "docs" / "security.md").read_text()
    told = [int(number) for number in re.findall(r"(\d+) payloads", page)]
    assert told == [len(TAMPERED), len(COMPARED), len(STUDIED)]


@pytest.mark.parametrize("payload", ["policy", "data", "variables", "all of it"])
def test_a_foreign_archive_of_sb3_gives_its_parameters_alone(tmp_path, payload):
    run = tmp_path / "run"
    torch_file = torch_saved(run, lambda one: {"q_net": one})
    path = tmp_path / "agent.zip"
    path.write_bytes(
        {
            "policy": sb3_archive(run, **{"policy.pth": torch_file}),
            "data": sb3_archive(run, data=hidden_data(run)),
            "variables": sb3_archive(run, **{"pytorch_variables.pth": pickled(run)}),
            "all of it": pickled(run),
        }[payload]
    )
    follower = SB3Follower("SoftDQN", 60, model_file=path, learning_starts=20)
    with pytest.raises(ValueError, match="`model_file` must hold networks"):
        toll_bridge(follower).best_response(np.array([0.5]))
    assert not (tmp_path / "ran").exists()


def test_a_real_archive_with_a_payload_beside_its_parameters_is_read_without_it(tmp_path):
    import gymnasium as gym

    env = gym.make("FrozenLake-v1")
    DQN("MlpPolicy", env, policy_kwargs={"net_arch": [8]}).save(tmp_path / "plain.zip")
    with zipfile.ZipFile(tmp_path / "plain.zip") as archive:
        parts = {one: archive.read(one) for one in archive.namelist()}
    parts["data"] = hidden_data(tmp_path / "run").encode()
    with zipfile.ZipFile(tmp_path / "agent.zip", "w") as archive:
        for name, part in parts.items():
            archive.writestr(name, part)
    from tests.lake import led_lake

    follower = SB3Follower(
        "DQN", 30, model_file=tmp_path / "agent.zip", learning_starts=20, policy_kwargs={"net_arch": [8]}
    )
    led_lake(follower).best_response(np.full(3, 0.5))
    assert follower.agents[0].num_timesteps >= 30
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("part", ["leader", "arguments", "task", "noise", "iterations", "policy", "optimizer"])
@pytest.mark.parametrize("change", [None, "text"])
def test_a_file_with_a_part_of_another_kind_is_refused_as_a_file(tmp_path, part, change):
    BCHG(toll_bridge(), seed=0, batch_size=40).learn(1).save(tmp_path / "leader.zip")
    if part in ("policy", "optimizer"):
        nested(tmp_path, (part,), change)
    else:
        described = {"format": 5, "leader": "BCHG", "arguments": {}, "task": {}, "noise": [], "iterations": 1}
        member(tmp_path, "leader.json", json.dumps(described | {part: change}))
    with pytest.raises(ValueError, match="`path` must be a file that `save` wrote|holds a text; load it with"):
        BCHG.load(tmp_path / "leader.zip", toll_bridge())


DEEP = b"[" * 200_000 + b"]" * 200_000


@pytest.mark.parametrize("content", [DEEP, b'{"arguments": ' + DEEP + b"}", None])
def test_a_configuration_too_deep_or_too_large_is_named_with_its_remedy(tmp_path, monkeypatch, capsys, content):
    path = tmp_path / "run" / "config.json"
    path.parent.mkdir()
    path.write_bytes(content or b'{"arguments": {}}')
    (path.parent / "history.csv").touch()
    if content is None:
        monkeypatch.setattr(json_file, "LARGEST", 10)
    with pytest.raises(SystemExit, match="2"):
        main([*RUN, "--out", str(path.parent), "--resume"])
    said = capsys.readouterr().err
    assert f"{path} is not a run's configuration" in said
    assert f"choose another --out, or delete {path.parent} to begin anew" in said


@pytest.mark.parametrize("content", [DEEP, b'{"study": ' + DEEP + b"}", None])
def test_a_study_too_deep_or_too_large_is_named_with_its_remedy(tmp_path, monkeypatch, capsys, content):
    path = tmp_path / "out" / "study.json"
    path.parent.mkdir()
    path.write_bytes(content or b'{"study": {}}')
    if content is None:
        monkeypatch.setattr(json_file, "LARGEST", 10)
    settings = ["env=BiLevel/TollBridge-v0", "leader=bchg", "iterations=2", "runs=1"]
    with pytest.raises(SystemExit, match="2"):
        main(["sweep", "--out", str(path.parent), "--processes", "1", "--no-progress", "--settings", *settings])
    said = capsys.readouterr().err
    assert f"{path} is damaged (" in said
    assert "the same command with --extend keeps the jobs there and writes it anew" in said


def test_a_comparison_with_an_object_in_it_is_refused(tmp_path):
    np.savez(tmp_path / "result.npz", name=np.array([Payload(tmp_path / "ran")], object), keys=np.array([]))
    with pytest.raises(ValueError, match="is damaged or no result"):
        load_result(tmp_path / "result.npz")
    assert not (tmp_path / "ran").exists()


def test_a_trusted_name_is_loaded(run, capsys):
    configured(run, follower="evil:Thing", follower_args=[])
    with pytest.raises(SystemExit):
        main(["video", str(run)])
    assert "names evil:Thing, which is not of this library" in capsys.readouterr().err
    assert not (run.parent / "ran").exists()
    with pytest.raises(SystemExit):  # a path is no follower, but the module has been run
        main(["video", str(run), "--trust", "evil:Thing"])
    assert (run.parent / "ran").exists()


def test_the_payload_would_run(tmp_path):
    pickle.loads(pickle.dumps(Payload(tmp_path / "ran")))
    assert (tmp_path / "ran").exists()


def test_saved_agents_hold_no_pickled_object(tmp_path):
    leader = BCHG(toll_bridge(SB3Follower("SoftDQN", 60, learning_starts=20, buffer="keep")), seed=0, batch_size=40)
    leader.learn(2).save(tmp_path / "leader.zip")
    with zipfile.ZipFile(tmp_path / "leader.zip") as archive:
        state = torch.load(io.BytesIO(archive.read("state.pt")), weights_only=True)
    (agent,) = state["follower"]["agents"]
    assert agent["buffer"]["arrays"]["rewards"].shape == (120, 1)
    assert set(agent) == {"parameters", "counters", "buffer"}
