"""Figures of sweeps and of convergence, and the numbers beside them."""

import json
import re

import numpy as np
import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("yaml")

SWEEP = """
model: LightGCN
dataset: planted-tiny
grid:
  model.num_layers: [1, 2]
"""


@pytest.fixture(scope="module")
def program(load_script):
    return load_script("plot")


@pytest.fixture
def make(tmp_path, program):
    """Makes a configuration and results: validation curves by point, one per seed."""

    def make(name, text, curves, seconds=0.5):
        path = tmp_path / f"{name}.yaml"
        path.write_text(text)
        config = program.Config.read(path)
        points = {config.folder(point).name: point for point in config.points()}
        for point, runs in curves.items():
            for seed, curve in enumerate(runs):
                file = tmp_path / "results" / name / point / f"seed-{seed}.json"
                file.parent.mkdir(parents=True, exist_ok=True)
                options = points[point or name]  # without a grid, there is no folder of its own
                content = {
                    "config": config.experiment(options, seed, "").config(),
                    "metrics": {part: {"ndcg@20": max(curve)} for part in ("validation", "test")},
                    "history": {"epochs": len(curve), "validation recall@20": curve},
                    "seconds_per_epoch": {"train": seconds},
                }
                content["metrics"]["validation"]["recall@20"] = max(curve)
                file.write_text(json.dumps(content))
        return config

    return make


def test_sweep_over_one_option(program, make, tmp_path):
    config = make("s", SWEEP, {"num_layers=1": [[0.1], [0.2]], "num_layers=2": [[0.3], [0.3]]})
    base = make("b", "model: BPRMF\ndataset: planted-tiny", {"": [[0.25]]})
    output = tmp_path / "figure.png"
    text = program.sweep([config], tmp_path / "results", "ndcg@20", base, output)
    assert output.read_bytes().startswith(b"\x89PNG")
    assert "BPRMF: 0.2500, 1 seed(s)" in text and "ndcg@20, 2 seed(s)" in text
    lines = [line.split() for line in text.splitlines()]
    assert ["1", "0.1500", "±", "0.0707"] in lines and ["2", "0.3000", "±", "0.0000"] in lines


def test_an_option_of_one_value_is_not_swept(program, make, tmp_path):
    text = SWEEP.replace("grid:\n", "grid:\n  model.reg_weight: [0.5]\n")
    curves = {"reg_weight=0.5,num_layers=1": [[0.1]], "reg_weight=0.5,num_layers=2": [[0.3]]}
    config = make("s", text, curves)
    output = tmp_path / "figure.png"
    text = program.sweep([config], tmp_path / "results", "ndcg@20", None, output)
    lines = [line.split() for line in text.splitlines()]
    assert lines[1][0] == "num_layers" and lines[3:] == [["1", "0.1000"], ["2", "0.3000"]]


def test_a_sweep_compares_the_same_seeds(program, make, tmp_path):
    config = make("s", SWEEP, {"num_layers=1": [[0.1]], "num_layers=2": [[0.3], [0.1], [0.1]]})
    text = program.sweep([config], tmp_path / "results", "ndcg@20", None, tmp_path / "figure.png")
    assert ["2", "0.3000"] in [line.split() for line in text.splitlines()] and "1 seed(s)" in text


def test_stars_are_at_the_points_that_differ_over_users_and_seeds(program, make, tmp_path):
    pytest.importorskip("scipy")
    generator, metric = np.random.default_rng(0), "ndcg@20"
    seeds = [[0.1], [0.2], [0.3]]
    config = make("s", SWEEP, {"num_layers=1": seeds, "num_layers=2": seeds})
    base = make("b", "model: LightGCN\ndataset: planted-tiny\nseeds: 3", {"": seeds})
    gains = {"s/num_layers=1": 0.0, "s/num_layers=2": 0.5, "b": 0.0}
    for place, gain in gains.items():
        for file in (tmp_path / "results" / place).glob("seed-*.json"):
            users = gain + generator.random(40)
            np.savez(file.with_suffix(".npz"), **{"user": np.arange(40), metric: users})
    text = program.sweep([config], tmp_path / "results", metric, base, tmp_path / "figure.png")
    lines = [line.split() for line in text.splitlines()]
    assert ["1", "0.2000", "±", "0.1000"] in lines and ["2", "0.2000", "±", "0.1000**"] in lines
    assert text.endswith("over users and seeds (Holm, 2 points)")


def test_sweep_over_two_options_shows_what_did_not_run(program, make, tmp_path):
    text = SWEEP + "  model.reg_weight: [0.1, 0.2]\n"
    curves = {"num_layers=1,reg_weight=0.1": [[0.1]], "num_layers=2,reg_weight=0.2": [[0.4]]}
    config = make("s", text, curves)
    output = tmp_path / "figure.pdf"
    table = program.sweep([config], tmp_path / "results", "ndcg@20", None, output)
    assert output.read_bytes().startswith(b"%PDF")
    lines = [line.split() for line in table.splitlines()]
    assert ["1", "0.1000", "not", "run"] in lines and ["2", "not", "run", "0.4000"] in lines


@pytest.mark.parametrize(
    ("grid", "curves", "metric", "message"),
    [
        ("", {"": [[0.1]]}, "ndcg@20", "over one or two options"),
        (None, {}, "ndcg@20", "no run of 's' has finished"),
        (None, {"num_layers=1": [[0.1]]}, "ndgc@20", "there is no metric 'ndgc@20'; there are"),
    ],
)
def test_sweep_refuses(program, make, tmp_path, grid, curves, metric, message):
    config = make("s", SWEEP if grid is None else SWEEP.split("grid")[0], curves)
    with pytest.raises(ValueError, match=message):
        program.sweep([config], tmp_path / "results", metric, None, tmp_path / "figure.pdf")
    assert not (tmp_path / "figure.pdf").exists()


def test_convergence_counts_to_the_best_of_the_first(program, make, tmp_path):
    plain = "model: LightGCN\ndataset: planted-tiny\n"
    first = make("a", plain, {"": [[0.1, 0.3, 0.2], [0.1, 0.1, 0.1, 0.5]]})
    faster = make("b", plain + "method: dvib-c", {"": [[0.29, 0.4], [0.2, 0.49]]}, seconds=2.0)
    slower = make("c", plain + "method: dvib-a", {"": [[0.1, 0.2]]})
    output = tmp_path / "figure.svg"
    text = program.convergence([first, faster, slower], tmp_path / "results", output)
    assert "<svg" in output.read_text()
    rows = [re.split(r"  +", line) for line in text.splitlines()[2:]]
    best = "0.4000 ± 0.1414"
    assert rows[0][:4] == ["LightGCN", best, "4 ± 1", "0.500 ± 0.000"]
    assert rows[0][4:] == ["2 of 2", "3 ± 1", "2 ± 1"] * 2
    best = "0.4450 ± 0.0636"
    assert rows[1][:4] == ["LightGCN + dvib-c", best, "2 ± 0", "2.000 ± 0.000"]
    assert rows[1][4:] == ["2 of 2", "2 ± 1", "3 ± 1", "1 of 2", "2", "4"]
    assert rows[2] == ["LightGCN + dvib-a", "0.2000", "2", "0.500", "0 of 1", "0 of 1"]
    with pytest.raises(
        ValueError, match=r"result of 'a' holds no map@5 .* \['validation recall@20"
    ):
        program.convergence([first], tmp_path / "results", output, ["map@5"])


def test_convergence_draws_every_metric(program, make, tmp_path, monkeypatch):
    config = make("a", "model: LightGCN\ndataset: planted-tiny\n", {"": [[0.1, 0.3]]})
    file = tmp_path / "results" / "a" / "seed-0.json"
    content = json.loads(file.read_text())
    content["history"]["validation map@5"] = [0.01, 0.02]
    file.write_text(json.dumps(content))
    drawn = []
    save = program.plt.Figure.savefig
    monkeypatch.setattr(
        program.plt.Figure,
        "savefig",
        lambda self, *a, **k: (drawn.append(self), save(self, *a, **k)),
    )
    output = tmp_path / "figure.png"
    text = program.convergence([config], tmp_path / "results", output, ["map@5", "recall@20"])
    assert "best map@5" in text and output.exists()
    axes = drawn[0].axes
    assert [a.get_ylabel() for a in axes[::2]] == ["validation map@5", "validation recall@20"]
    assert [list(a.lines[0].get_ydata()) for a in axes] == [[0.01, 0.02]] * 2 + [[0.1, 0.3]] * 2
    assert list(axes[3].lines[0].get_xdata()) == [0.5, 1.0]


def test_what_is_compared_is_of_one_data_set(program, make, tmp_path):
    here = make("a", SWEEP, {"num_layers=1": [[0.1]]})
    there = make("b", "model: LightGCN\ndataset: planted", {"": [[0.1]]})
    results, output = tmp_path / "results", tmp_path / "figure.pdf"
    with pytest.raises(ValueError, match="of one data set \\(got planted-tiny, planted\\)"):
        program.sweep([here], results, "ndcg@20", there, output)
    with pytest.raises(ValueError, match="of one data set"):
        program.convergence([here, there], results, output)


def test_lines_of_one_model_are_named_by_their_files(program, make, tmp_path):
    plain = "model: LightGCN\ndataset: planted-tiny\n"
    configs = [make(name, plain, {"": [[0.1]]}) for name in ("one", "two")]
    text = program.convergence(configs, tmp_path / "results", tmp_path / "figure.pdf")
    assert [line.split()[0] for line in text.splitlines()[2:]] == ["one", "two"]


def test_lines_are_named_by_the_options_in_which_those_of_the_same_name_differ(program, make):
    text = "model: {}\ndataset: planted-tiny\noptions: {{model.reg_weight: 1{}}}\n"
    configs = [
        make("a", text.format("VBPR", ""), {"": [[0.1]]}),
        make("b", text.format("LightGCN", ", model.num_layers: 1"), {"": [[0.1]]}),
        make("c", text.format("LightGCN", ", model.num_layers: 2"), {"": [[0.1]]}),
    ]
    names = program.labels(configs)
    assert names == ["VBPR", "LightGCN, num_layers 1", "LightGCN, num_layers 2"]


def test_dots_are_normalized_by_the_best_of_their_model(program, make, tmp_path):
    text = (
        "model: {}\ndataset: planted-tiny\nmethod: {}\npublished: [{{source: x, ndcg@20: 0.3}}]\n"
    )
    configs = [
        make("a", text.format("VBPR", "none"), {"": [[0.1], [0.3], [0.9]]}),  # one alone has it
        make("b", text.format("VBPR", "dvib-c"), {"": [[0.4], [0.4]]}),
        make("c", text.format("LightGCN", "none"), {"": [[0.1]]}),
    ]
    results, output = tmp_path / "results", tmp_path / "figure.png"
    table = program.dots(configs, results, ["ndcg@20"], output)
    lines = [line.split() for line in table.splitlines()]
    assert lines[0] == ["run", "seeds", "ndcg@20", "published"]
    assert lines[2] == ["VBPR", "2", "0.2000", "±", "0.1414", "0.3000"]
    table = program.dots(configs, results, ["ndcg@20"], output, normalize=True)
    lines = [line.split() for line in table.splitlines()]
    assert lines[0] == ["run", "seeds", "ndcg@20", "/", "best", "published"]
    assert lines[2] == ["VBPR", "2", "0.5000", "±", "0.3536"]
    assert lines[3][-4:] == ["2", "1.0000", "±", "0.0000"] and lines[4][-1] == "1.0000"
    assert output.stat().st_size > 1000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["convergence", "a.yaml", "--baseline", "b.yaml"], "is of a sweep"),
        (
            ["sweep", "a.yaml", "--metric", "map@5", "ndcg@5"],
            "shows one metric (got map@5, ndcg@5)",
        ),
        (["sweep", "a.yaml", "--output", "figure.txt"], "needs a suffix such as"),
        (["sweep", "a.yaml", "--output", "nowhere/figure.pdf"], "there is no folder 'nowhere'"),
        (["sweep", "a.yaml", "--output", "figure.PDF"], "No such file"),
    ],
)
def test_wrong_arguments(program, monkeypatch, tmp_path, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["plot.py", *arguments])
    with pytest.raises(SystemExit, match="2"):
        program.main()
    assert message in capsys.readouterr().err
