"""Counts and files that this machine could not hold are refused before anything is allocated."""

import io
import json
import zipfile

import numpy as np
import pytest

from leaders import BCHG, CMAES, ExactGradient
from leaders.experiments import compare
from leaders.experiments.reproduce import building, games
from tests.helpers import toll_bridge


@pytest.mark.parametrize("leader", [BCHG, ExactGradient, CMAES])
def test_more_runs_than_memory_are_refused(leader):
    with pytest.raises(ValueError, match=r"`runs` must be less: 1000000000 would take some 1,632 GB for θ"):
        leader(toll_bridge(), runs=10**9)


def test_a_batch_larger_than_memory_is_refused():
    with pytest.raises(ValueError, match=r"`batch_size` must be less: 10{12} would take some 80,000 GB"):
        BCHG(toll_bridge(), batch_size=10**12)


def test_arguments_in_a_file_are_held_to_the_same(tmp_path):
    BCHG(toll_bridge(), runs=2, batch_size=40).learn(1).save(tmp_path / "leader.zip")
    with zipfile.ZipFile(tmp_path / "leader.zip") as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    described = json.loads(parts["leader.json"])
    described["arguments"]["runs"] = 10**9
    parts["leader.json"] = json.dumps(described).encode()
    with zipfile.ZipFile(tmp_path / "leader.zip", "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    with pytest.raises(ValueError, match="`runs` must be less"):
        BCHG.load(tmp_path / "leader.zip", toll_bridge())


LOADERS = {
    "a leader": lambda path: BCHG.load(path, toll_bridge()),
    "a comparison": compare.load_result,
    "a building": lambda path: building.load_curves(path, "bchg", 2),
    "a game": lambda path: games.load_returns(path, "bchg", 2),
}


@pytest.mark.parametrize("loader", LOADERS)
def test_a_file_that_unpacks_to_more_than_memory_is_refused(tmp_path, monkeypatch, loader):
    path = tmp_path / "file.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("state.pt", bytes(2**24))
    opened = zipfile.ZipFile.infolist

    def claims_more(self):
        parts = opened(self)
        for part in parts:
            part.file_size = 2**50
        return parts

    monkeypatch.setattr(zipfile.ZipFile, "infolist", claims_more)
    with pytest.raises(ValueError, match=r"file.zip .*unpacks to, and this machine"):
        LOADERS[loader](path)


def test_an_array_that_claims_more_than_it_holds_is_refused(tmp_path):
    BCHG(toll_bridge(), batch_size=40).learn(1).save(tmp_path / "leader.zip")
    with zipfile.ZipFile(tmp_path / "leader.zip") as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (2**48,)})
    parts["history.npy"] = header.getvalue()
    with zipfile.ZipFile(tmp_path / "leader.zip", "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    with pytest.raises(ValueError, match="must be a file that `save` wrote"):
        BCHG.load(tmp_path / "leader.zip", toll_bridge())
