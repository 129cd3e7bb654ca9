"""The programs that measure run through, on sizes that say nothing about speed."""

import sys
from argparse import Namespace
from subprocess import CompletedProcess

import pytest
import torch

SMALL_GRAPH = "--users 300 --items 100 --interactions 3000"
PROGRAMS = {
    "hsic": "--rows 64 --features 8 --repeats 1",
    "large": f"{SMALL_GRAPH} --channels 8 --batch-size 256 --steps 1 --ranked 50",
    "ranking": f"{SMALL_GRAPH} --held-out 300 --channels 8 --repeats 1",
    "speed": "--generate 300 100 3000 --features text:16 --runs LightGCN:none LATTICE:none "
    "--steps 2 --epochs 2 --turns 1 --no-memory",
}
SHOWN = {
    "hsic": "64",
    "large": "top 20 unseen items of 50 users",
    "ranking": "negatives of all interactions",
    "speed": "LATTICE",
}


@pytest.mark.parametrize("name", sorted(PROGRAMS))
def test_it_measures(name, load_script, monkeypatch, capsys):
    program, threads = load_script(name), torch.get_num_threads()
    monkeypatch.setattr(program, "tune_process", lambda: None, raising=False)  # for a whole process
    monkeypatch.setattr(sys, "argv", [name, *PROGRAMS[name].split(), "--threads", str(threads)])
    program.main()
    assert SHOWN[name] in capsys.readouterr().out


def test_memory_is_measured_with_the_options_of_the_run(load_script, monkeypatch, capsys):
    speed, commands = load_script("speed"), []

    def run(command, **_):
        commands.append(command)
        return CompletedProcess(command, 0, stdout="42\n")

    monkeypatch.setattr(speed, "tune_process", lambda: None)
    monkeypatch.setattr(speed, "subprocess", Namespace(run=run))
    graph = "--generate 300 100 3000 --steps 2 --epochs 2 --turns 1 --no-common"
    runs = f"--runs BPRMF:none BPRMF:dvib-a --threads {torch.get_num_threads()}"
    options = "--set method.rate_weight=0.5"
    monkeypatch.setattr(sys, "argv", ["speed", *f"{graph} {runs} {options}".split()])
    speed.main()
    assert "42" in capsys.readouterr().out
    plain, dvib = commands
    assert "--set" not in plain and dvib[-2:] == options.split()


def test_epochs_are_timed_after_the_warm_up(load_script, monkeypatch):
    speed, numbers = load_script("speed"), []
    epoch = speed.Ours.epoch

    def noted(self, number):
        numbers.append(number)
        return epoch(self, number)

    monkeypatch.setattr(speed, "tune_process", lambda: None)
    monkeypatch.setattr(speed.Ours, "epoch", noted)
    graph = "--generate 300 100 3000 --steps 2 --epochs 2 --turns 2 --no-common --no-memory"
    runs = f"--runs BPRMF:none --warm-up 3 --threads {torch.get_num_threads()}"
    monkeypatch.setattr(sys, "argv", ["speed", *f"{graph} {runs}".split()])
    speed.main()
    assert numbers == [0, 1, 2, 3, 4, 3, 4]


@pytest.mark.parametrize("index", ["flat", "dense"])
def test_neighbours_are_the_exact_ones(index, load_script):
    options = Namespace(
        items=300, features=16, centers=0, k=10, sample=50, threads=torch.get_num_threads()
    )
    assert load_script("knn").measure(index, options)["recall"] == 1


def speed_arguments(speed, *arguments):
    graph = ["--generate", "300", "100", "3000", "--features", "text:16"]
    return speed.make_parser().parse_args([*graph, *arguments])


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("VLATTICE:ibmrec", []),
        ("LATTICE:mg", []),
        ("FREEDOM:mg", []),
        ("VBPR:second-stage", []),
        ("VBPR:dvib-a", ["method.clean_weight=0.5"]),
        ("VBPR:dvib-a", ["method.clean_weight=0"]),
    ],
)
def test_the_parts_of_a_step_are_those_of_the_trainer(name, option, load_script):
    speed = load_script("speed")
    data = speed.load(speed_arguments(speed))
    options = ["train.batch_size=500", "train.learning_rate=0.01", *option]
    (experiment,) = speed.make_experiments([name], "planted", "", options).values()
    by_parts, whole = speed.Ours(experiment, data), speed.Ours(experiment, data)
    torch.manual_seed(1)
    parts = by_parts.epoch_parts(by_parts.steps)
    torch.manual_seed(1)
    whole.trainer._epoch(0)
    theirs = whole.objective.state_dict()
    for key, ours in by_parts.objective.state_dict().items():
        torch.testing.assert_close(ours, theirs[key], msg=lambda text, key=key: f"{key}: {text}")
    assert by_parts.steps > 1 and set(parts) <= set(speed.PARTS)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--device", "cuda"], "'--device' needs to be cpu beside the common way (got cuda)"),
        (["--epochs", "1"], "'--epochs' needs to be 2 or more (got 1)"),
        (["--warm-up", "-1"], "'--warm-up' needs to be 0 or more (got -1)"),
    ],
)
def test_what_cannot_be_timed_is_told(wrong, message, load_script, monkeypatch, capsys):
    speed = load_script("speed")
    monkeypatch.setattr(speed, "tune_process", lambda: None)  # for a whole process
    arguments = [*PROGRAMS["speed"].split(), "--threads", str(torch.get_num_threads())]
    monkeypatch.setattr(sys, "argv", ["speed", *arguments, *wrong])
    with pytest.raises(SystemExit, match="2"):
        speed.main()
    assert message in capsys.readouterr().err
