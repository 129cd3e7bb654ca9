"""The programs that measure run through, on sizes that say nothing about speed."""

import sys
from argparse import Namespace

import pytest
import torch


SMALL_GRAPH = "--users 300 --items 100 --interactions 3000"
PROGRAMS = {
    "epochs": "--runs BPRMF:none BPRMF:dvib-a --epochs 2 --turns 1",
    "hsic": "--rows 64 --features 8 --repeats 1",
    "large": f"{SMALL_GRAPH} --channels 8 --batch-size 256 --steps 1 --ranked 50",
    "ranking": f"{SMALL_GRAPH} --held-out 300 --channels 8 --repeats 1",
    "speed": "--generate 300 100 3000 --features text:16 --runs LightGCN:none LATTICE:none "
    "--steps 2 --epochs 2 --turns 1 --no-memory",
}
SHOWN = {
    "epochs": "dvib-a",
    "hsic": "64",
    "large": "top 20 unseen items of 50 users",
    "ranking": "FullRanking",
    "speed": "LATTICE",
}


@pytest.mark.parametrize("name", sorted(PROGRAMS))
def test_it_measures(name, load_script, monkeypatch, capsys):
    program, threads = load_script(name), torch.get_num_threads()
    monkeypatch.setattr(program, "tune_process", lambda: None, raising=False)  # for a whole process
    monkeypatch.setattr(sys, "argv", [name, *PROGRAMS[name].split(), "--threads", str(threads)])
    program.main()
    assert SHOWN[name] in capsys.readouterr().out


@pytest.mark.parametrize("index", ["flat", "dense"])
def test_neighbours_are_the_exact_ones(index, load_script):
    options = Namespace(
        items=300, features=16, centers=0, k=10, sample=50, threads=torch.get_num_threads()
    )
    assert load_script("knn").measure(index, options)["recall"] == 1
