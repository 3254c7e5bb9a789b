"""A study on a Ray cluster of three nodes, two of which are killed in the middle, one after the other."""

import subprocess
import sys

import pytest

pytest.importorskip("ray")
COMMAND = [sys.executable, "-c", "import sys; from leaders.cli.main import main; main(sys.argv[1:])"]
STUDY = """
env: BiLevel/TollBridge-v0
iterations: 300
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
nodes = [cluster.add_node(**room) for _ in range(3)]
jobs = Path("out/jobs")


def under_way():
    # how many jobs run, where each of them has a checkpoint to go on from; else 0
    running = [job for job in jobs.glob("*") if not (job / "result.json").exists()]
    return len(running) if all((job / "leader.zip").exists() for job in running) else 0


def kill_two_nodes():
    for node in nodes[:2]:
        while under_way() < len(nodes):  # so the node runs a job that has a checkpoint
            time.sleep(0.02)
        cluster.remove_node(node, allow_graceful=False)
        print("KILLED", flush=True)


threading.Thread(target=kill_two_nodes, daemon=True).start()
main(["sweep", "study.yaml", "--out", "out", "--ray", cluster.address, "--checkpoint-every", "0.2", "--no-progress"])
"""


def files(folder):
    kept = ("history.csv", "theta.csv", "result.json", "results.csv", "summary.csv")
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.name in kept}


@pytest.mark.slow
def test_runs_of_nodes_that_are_killed_go_on_on_others_and_one_process_and_a_pool_give_the_same_bytes(tmp_path):
    found = {}
    for where, command in {
        "ray": [sys.executable, "-c", CLUSTER],
        "here": [*COMMAND, "sweep", "study.yaml", "--out", "out", "--processes", "1"],
        "pool": [*COMMAND, "sweep", "study.yaml", "--out", "out", "--processes", "2"],
    }.items():
        folder = tmp_path / where
        folder.mkdir()
        (folder / "study.yaml").write_text(STUDY)
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=500)
        assert "[4/4]" in done.stdout, done.stdout + done.stderr
        found[where] = files(folder / "out")
        if where == "ray":
            assert done.stdout.count("KILLED") == 2, done.stdout
            logs = [path.read_text() for path in (folder / "out" / "logs").glob("*.log")]
            assert sum(text.count("resuming after") for text in logs) >= 2
    assert len(found["here"]) == 4 * 3 + 2
    assert found["ray"] == found["here"] == found["pool"]
