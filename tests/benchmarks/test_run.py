"""The benchmark queue and its table, on the generated data."""

import json
import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
CONFIG = """
model: LightGCN
dataset: planted-tiny
preset: mmrec
options: {model.embedding_dim: 8, train.epochs: 3}
grid: {model.num_layers: [1, 2]}
seeds: 2
note: "a small one"
published:
  - source: "somewhere"
    recall@20: 0.25
"""


@pytest.fixture
def program(load_script, monkeypatch, capsys):
    """Calls a script with arguments, as its command would be; what it starts are processes."""

    def call(name, *arguments):
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
        code = load_script(name).main()
        return SimpleNamespace(returncode=code or 0, **capsys.readouterr()._asdict())

    return call


@pytest.fixture
def config(tmp_path):
    file = tmp_path / "small.yaml"
    file.write_text(CONFIG)
    return file


def test_a_queue_searches_repeats_and_never_overwrites(config, tmp_path, program):
    results = tmp_path / "results"
    folders = ["--results", results, "--work", tmp_path / "work"]
    done = program("run", config, "--jobs", 2, *folders)
    assert done.returncode == 0, done.err
    files = sorted(results.rglob("*.json"))
    contents = {file: json.loads(file.read_text()) for file in files}
    searched = [file for file in files if file.name == "seed-0.json"]
    validation = {file: contents[file]["metrics"]["validation"]["recall@20"] for file in searched}
    best = max(searched, key=lambda file: validation[file])
    assert len(searched) == 2
    assert set(files) == {*searched, best.with_name("seed-1.json")}
    for file, content in contents.items():
        assert content["history"]["epochs"] == 3 and content["peak_memory_bytes"] > 1e8
        assert len(content["history"]["validation ndcg@5"]) == 3
        users = np.load(file.with_suffix(".npz"))
        test = content["metrics"]["test"]["recall@20"]
        assert users["recall@20"].mean() == pytest.approx(test, abs=1e-3)
        assert {"config", "versions", "data", "seconds_per_epoch"} <= set(content)

    before = {file: file.stat().st_mtime_ns for file in files}
    assert program("run", config, *folders).returncode == 0
    assert {file: file.stat().st_mtime_ns for file in results.rglob("*.json")} == before

    table = program("tabulate", config, "--results", results)
    assert table.returncode == 0, table.err
    runs = [contents[best.with_name(f"seed-{seed}.json")] for seed in (0, 1)]
    mean = sum(run["metrics"]["test"]["recall@20"] for run in runs) / 2
    (row,) = [line for line in table.out.splitlines() if "| LightGCN" in line]
    assert f"| {mean:.4f} ± " in row and f"| {100 * (mean / 0.25 - 1):+.1f} % |" in row
    assert "0.2500 (somewhere)" in row and table.out.rstrip().endswith("LightGCN: a small one")

    config.write_text(CONFIG.replace("train.epochs: 3", "train.epochs: 2"))
    changed = program("run", config, *folders)
    assert changed.returncode == 1 and "results are never overwritten" in changed.err
    assert {file: file.stat().st_mtime_ns for file in results.rglob("*.json")} == before


def test_a_sweep_trains_all_seeds_at_every_point_seed_by_seed(
    config, tmp_path, load_script, monkeypatch
):
    run = load_script("run")
    config.write_text(CONFIG + "sweep: true\n")
    config, trained = run.Config.read(config), []

    def train(experiment, *_):
        trained.append((experiment.options["model.num_layers"], experiment.seed))
        metrics = {"validation": {"recall@20": 0.1}}
        return {"config": experiment.config(), "metrics": metrics, "history": []}

    monkeypatch.setattr(run, "train", train)
    around = run.Surroundings("", tmp_path, tmp_path / "work")
    run.run([config], around)
    assert trained == [("1", 0), ("2", 0), ("1", 1), ("2", 1)]
    run.run([config], around, seeds=3)
    assert trained[4:] == [("1", 2), ("2", 2)]


def test_a_result_names_the_commit_that_tells_its_defaults(config, tmp_path, program, trained_here):
    config.write_text("model: MostPop\ndataset: planted-tiny\n")
    folders = ["--results", tmp_path / "results", "--work", tmp_path / "work"]
    assert program("run", config, *folders).returncode == 0
    (file,) = (tmp_path / "results").rglob("*.json")
    found = json.loads(file.read_text())["versions"]["commit"]
    assert found is None or re.fullmatch(r"[0-9a-f]{40}\+?", found)


def test_what_does_not_train_runs_once(config, tmp_path, program, trained_here):
    config.write_text("model: MostPop\ndataset: planted-tiny\nseeds: 2\n")
    results = tmp_path / "results"
    folders = ["--results", results, "--work", tmp_path / "work"]
    assert program("run", config, "--seeds", 3, *folders).returncode == 0
    assert [file.name for file in results.rglob("*.json")] == ["seed-0.json"]


def test_a_run_that_another_process_trains_is_left_out(config, tmp_path, program, trained_here):
    fcntl = pytest.importorskip("fcntl")
    config.write_text(CONFIG.replace("seeds: 2", "seeds: 1"))
    results, work = tmp_path / "results", tmp_path / "work"
    folder = work / "small" / "num_layers=1" / "seed-0"
    folder.mkdir(parents=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        arguments = [config, config, "--results", results, "--work", work]  # twice is once
        done = program("run", *arguments)
    (line,) = [line for line in done.err.splitlines() if line.startswith("failed: ")]
    assert done.returncode == 1
    assert "num_layers=1/seed-0: RuntimeError: left out, since another run.py is training" in line
    assert [file.parent.name for file in results.rglob("*.json")] == ["num_layers=2"]
    assert program("run", *arguments).returncode == 0
    assert len(list(results.rglob("*.json"))) == 2


def test_a_result_that_came_meanwhile_stays(config, tmp_path, load_script, monkeypatch):
    run = load_script("run")
    config = run.Config.read(config)
    point = config.points()[0]
    file = tmp_path / config.folder(point) / "seed-0.json"
    theirs = {"config": config.experiment(point, 0, "").config(), "by": "another"}

    def train(experiment, folder, *_):
        with pytest.raises(RuntimeError, match="another run.py is training it"):
            with run.locked(folder):
                pass
        run.write_json(file, theirs)
        return {"by": "us"}

    monkeypatch.setattr(run, "train", train)
    around = run.Surroundings("", tmp_path, tmp_path / "work")
    assert run.run_one(config, point, 0, around) == theirs
    assert json.loads(file.read_text()) == theirs
    with run.locked(tmp_path / "work" / config.folder(point) / "seed-0"):  # free again
        pass


def test_what_a_failed_run_said_is_kept(tmp_path, load_script):
    run = load_script("run")
    experiment = run.Experiment("LightGCN", "nowhere", root=str(tmp_path))
    with open(tmp_path / "lock", "w") as lock, pytest.raises(RuntimeError) as error:
        run.train(experiment, tmp_path, 1, lock.fileno())
    file = tmp_path / "errors.txt"
    assert str(file) in str(error.value) and "nowhere" in str(error.value)
    assert "nowhere" in file.read_text()


def test_names_of_configurations_differ(config, tmp_path, monkeypatch, load_script, capsys):
    other = tmp_path / "other" / config.name
    other.parent.mkdir()
    other.write_text(CONFIG)
    monkeypatch.setattr(sys, "argv", ["run.py", str(config), str(other)])
    with pytest.raises(SystemExit, match="2"):
        load_script("run").main()
    assert "two configurations are called 'small'" in capsys.readouterr().err


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="not on Linux")
def test_the_memory_of_a_run_is_its_own(tmp_path):
    held = b"x" * 2**30  # by the parent
    file = tmp_path / "peak"
    command = [sys.executable, BENCHMARKS / "clock.py", file, "platform", "--terse"]
    assert "Linux" in subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert 1e7 < int(file.read_text()) < len(held)


def test_an_interrupt_starts_nothing_new_and_unfinished_searches_are_told(
    config, tmp_path, program
):
    results = tmp_path / "results"
    config.write_text(CONFIG.replace("[1, 2]", "[1, 2, 3, 4, 5, 6]"))
    command = [sys.executable, BENCHMARKS / "run.py", config]
    command += ["--results", results, "--work", tmp_path / "work"]
    # A shell's background jobs ignore interrupts, and so would what they start.
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=heed)
    while not list(results.rglob("*.json")) and process.poll() is None:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 130 and "the same command goes on from here" in errors
    finished = len(list(results.rglob("seed-0.json")))
    assert 1 <= finished <= 3
    table = program("tabulate", config, "--results", results).out
    assert f"| 1 of 2, {finished} of 6 points searched |" in table


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("model.num_layers", "model.depth", "there is no option 'model.depth'"),
        ("[1, 2]", "3", "needs a list of values for 'model.num_layers' in 'grid'"),
        ("note:", "remark:", "has unknown fields ['remark']"),
        ("dataset: planted-tiny", "", "needs the fields 'model' and 'dataset'"),
        ("[1, 2]", "[1, 2", "is not YAML"),
        ("seeds: 2", "seeds: two", "needs a positive integer for 'seeds' (got 'two')"),
        ("seeds: 2", "sweep: 2", "needs true or false for 'sweep' (got 2)"),
        ("seeds: 2", "method:", "needs a name or 'none' for 'method' (got None)"),
        ("recall@20: 0.25", "recall@20: 25%", "needs a 'source' and numbers by metric"),
        ("recall@20: 0.25", "recal@20: 0.25", "positive numbers of metrics such as 'recall@20'"),
        ("recall@20: 0.25", "recall@20: 0", "in 'published' (got recall@20: 0)"),
        ('"a small one"', "[1]", "needs a text for 'note' (got [1])"),
        ("model: LightGCN", "model: no_module:A", "model 'no_module:A' cannot be imported: No mod"),
    ],
)
def test_a_wrong_configuration_is_told_before_anything_runs(
    config, tmp_path, monkeypatch, load_script, old, new, message
):
    run = load_script("run")
    config.write_text(CONFIG.replace(old, new))
    with pytest.raises(ValueError, match=re.escape(message)):
        run.Config.read(config)
    monkeypatch.setattr(sys, "argv", ["run.py", str(config), "--results", str(tmp_path / "out")])
    with pytest.raises(SystemExit, match="2"):
        run.main()
    assert not (tmp_path / "out").exists()


def test_a_folder_is_no_configuration(tmp_path, load_script):
    with pytest.raises(ValueError, match="is a folder: name its files"):
        load_script("run").Config.read(tmp_path)


def test_every_method_of_the_project_is_compared_with_none(load_script):
    tabulate = load_script("tabulate")
    files = (BENCHMARKS / "configs").rglob("*.yaml")
    results = [tabulate.Result(tabulate.Config.read(file)) for file in files]
    plain = {result.group for result in results if result.method == "none"}
    lonely = [r.config.path.stem for r in results if r.method != "none" and r.group not in plain]
    assert lonely == []


def test_every_configuration_of_the_project_is_right(tmp_path, program):
    files = sorted((BENCHMARKS / "configs").rglob("*.yaml"))
    assert files
    done = program("tabulate", *files, "--results", tmp_path)
    assert done.returncode == 0, done.err
