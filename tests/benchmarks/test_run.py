"""The benchmark queue and its table, on the generated data."""

import json
import subprocess
import sys
from pathlib import Path

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


def program(name, *arguments):
    return subprocess.run(
        [sys.executable, str(BENCHMARKS / name), *map(str, arguments)],
        capture_output=True,
        text=True,
    )


@pytest.fixture
def config(tmp_path):
    file = tmp_path / "small.yaml"
    file.write_text(CONFIG)
    return file


def test_a_queue_searches_repeats_and_never_overwrites(config, tmp_path):
    pytest.importorskip("yaml")
    results = tmp_path / "results"
    folders = ["--results", results, "--work", tmp_path / "work"]
    done = program("run.py", config, "--jobs", 2, *folders)
    assert done.returncode == 0, done.stderr
    files = sorted(results.rglob("*.json"))
    contents = {file: json.loads(file.read_text()) for file in files}
    searched = [file for file in files if file.name == "seed-0.json"]
    validation = {file: contents[file]["metrics"]["validation"]["recall@20"] for file in searched}
    best = max(searched, key=lambda file: validation[file])
    assert len(searched) == 2
    assert set(files) == {*searched, best.with_name("seed-1.json")}
    for content in contents.values():
        assert content["history"]["epochs"] == 3 and content["peak_memory_bytes"] > 1e8
        assert {"config", "versions", "data", "seconds_per_epoch"} <= set(content)

    before = {file: file.stat().st_mtime_ns for file in files}
    assert program("run.py", config, *folders).returncode == 0
    assert {file: file.stat().st_mtime_ns for file in results.rglob("*.json")} == before

    table = program("tabulate.py", config, "--results", results)
    assert table.returncode == 0, table.stderr
    runs = [contents[best.with_name(f"seed-{seed}.json")] for seed in (0, 1)]
    mean = sum(run["metrics"]["test"]["recall@20"] for run in runs) / 2
    (row,) = [line for line in table.stdout.splitlines() if "LightGCN" in line]
    assert f"| {mean:.4f} ± " in row and f"| {100 * (mean / 0.25 - 1):+.1f} % |" in row
    assert "0.2500 (somewhere)" in row and table.stdout.rstrip().endswith("a small one")

    config.write_text(CONFIG.replace("train.epochs: 3", "train.epochs: 2"))
    changed = program("run.py", config, *folders)
    assert changed.returncode == 1 and "results are never overwritten" in changed.stderr
    assert {file: file.stat().st_mtime_ns for file in results.rglob("*.json")} == before


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("model.num_layers", "model.depth", "there is no option 'model.depth'"),
        ("[1, 2]", "3", "needs a list of values for 'model.num_layers' in 'grid'"),
        ("note:", "remark:", "has unknown fields ['remark']"),
        ("dataset: planted-tiny", "", "needs the fields 'model' and 'dataset'"),
        ("[1, 2]", "[1, 2", "is not YAML"),
    ],
)
def test_a_wrong_configuration_is_told_before_anything_runs(config, tmp_path, old, new, message):
    pytest.importorskip("yaml")
    config.write_text(CONFIG.replace(old, new))
    done = program("run.py", config, "--results", tmp_path / "results")
    assert done.returncode == 2 and message in " ".join(done.stderr.split())
    assert not (tmp_path / "results").exists()


def test_every_configuration_of_the_project_is_right():
    pytest.importorskip("yaml")
    files = sorted((BENCHMARKS / "configs").glob("*.yaml"))
    assert files
    done = program("tabulate.py", *files)
    assert done.returncode == 0, done.stderr
