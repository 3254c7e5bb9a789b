"""A study on a Ray cluster of two nodes, one of which is killed in the middle."""

import subprocess
import sys

import pytest

pytest.importorskip("ray")
COMMAND = [sys.executable, "-c", "import sys; from leaders.cli.main import main; main(sys.argv[1:])"]
STUDY = """
env: BiLevel/TollBridge-v0
iterations: 600
runs: 2
stack: false
leader: [bchg, naive-pgd]
"""
CLUSTER = """
import sys, threading, time
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

from leaders.cli.main import main

room = dict(num_cpus=1, object_store_memory=80_000_000)
cluster = Cluster(initialize_head=True, head_node_args=dict(room, num_cpus=0, include_dashboard=False))
first, second = cluster.add_node(**room), cluster.add_node(**room)
jobs = Path("out/jobs")


def kill_the_node():
    while not list(jobs.glob("*/leader.zip")):  # until a job has a checkpoint
        time.sleep(0.05)
    cluster.remove_node(first, allow_graceful=False)
    print("KILLED", len(list(jobs.glob("*/result.json"))), flush=True)


threading.Thread(target=kill_the_node, daemon=True).start()
main(["sweep", "study.yaml", "--out", "out", "--ray", cluster.address, "--checkpoint-every", "0.2", "--no-progress"])
"""


def files(folder):
    kept = ("history.csv", "theta.csv", "result.json", "results.csv", "summary.csv")
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.name in kept}


@pytest.mark.slow
def test_runs_of_a_node_that_is_killed_go_on_from_their_checkpoint_on_another(tmp_path):
    found = {}
    for where, command in {
        "ray": [sys.executable, "-c", CLUSTER],
        "here": [*COMMAND, "sweep", "study.yaml", "--out", "out", "--processes", "1"],
    }.items():
        folder = tmp_path / where
        folder.mkdir()
        (folder / "study.yaml").write_text(STUDY)
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=500)
        assert "[4/4]" in done.stdout, done.stdout + done.stderr
        found[where] = files(folder / "out")
        if where == "ray":
            assert "KILLED 0" in done.stdout  # before the first job was done
            logs = [path.read_text() for path in (folder / "out" / "logs").glob("*.log")]
            assert any("resuming after" in text for text in logs)
    assert len(found["here"]) == 4 * 3 + 2
    assert found["ray"] == found["here"]
