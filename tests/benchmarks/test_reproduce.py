"""Tables and figures of the papers, by one command each."""

import re
from functools import cache

import pytest

from tests.benchmarks.conftest import BENCHMARKS

pytest.importorskip("yaml")
pytest.importorskip("matplotlib")

ROW = """\
model: {model}
dataset: planted-tiny
{more}options:
  train.epochs: 2
  model.embedding_dim: 8
"""


@pytest.fixture(scope="module")
def program(load_script):
    return load_script("reproduce")


@pytest.fixture
def rows(tmp_path):
    """A folder of configurations, two of which train, and a table beside it."""
    folder = tmp_path / "configs"
    folder.mkdir()
    (folder / "none.yaml").write_text(ROW.format(model="LightGCN", more=""))
    (folder / "dvib.yaml").write_text(ROW.format(model="LightGCN", more="method: dvib-c\n"))
    (folder / "mostpop.yaml").write_text("model: MostPop\ndataset: planted-tiny\n")
    table = tmp_path / "tables" / "one.yaml"
    table.parent.mkdir()
    table.write_text(
        'title: "A table"\nconfigs: [../configs/mostpop.yaml, "../configs/[nd]*.yaml"]\n'
        "metrics: [recall@5, ndcg@5]\nfigure: dots\n"
    )
    return table


def run(program, monkeypatch, table, *more):
    folder = table.parent.parent
    monkeypatch.setattr(
        program.sys, "argv",
        ["reproduce.py", str(table), "--results", str(folder / "results"),
         "--work", str(folder / "work"), "--figures", str(folder / "figures"), *more],
    )  # fmt: skip
    return program.main()


def test_one_command_runs_shows_and_draws(program, rows, trained_here, monkeypatch, capsys):
    assert run(program, monkeypatch, rows) == 0
    text = capsys.readouterr().out
    text = text[text.index("A table\n") :]  # after the runs
    header = next(line for line in text.splitlines() if "recall@5" in line)
    assert "ndcg@5" in header and "recall@20" not in header
    lines = [line for line in text.splitlines() if line.startswith("| ") and "%" in line]
    assert len(lines) == 1 and "dvib-c" in lines[0]
    figure = rows.parent.parent / "figures" / "one.png"
    assert figure.stat().st_size > 1000 and str(figure) in text
    drawn = text[text.index("published") :]
    assert "LightGCN + dvib-c" in drawn and "MostPop" not in drawn
    # Again, it trains nothing and says the same.
    monkeypatch.setattr(program, "run_as_asked", lambda *arguments: pytest.fail("it ran"))
    assert run(program, monkeypatch, rows, "--show") == 0
    assert capsys.readouterr().out == text


def test_what_has_not_run_is_said(program, rows, monkeypatch, capsys):
    assert run(program, monkeypatch, rows, "--show", "--format", "csv") == 0
    out, err = capsys.readouterr()
    assert out.startswith("data,") and out.count("not run") == len(out.splitlines()) - 1 == 3
    assert "A table" in err and "no figure yet: no run of 'mostpop' has finished" in err


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("title:", "name:", "needs the fields 'title' and 'configs'"),
        ("figure: dots", "figure: pie", "needs one of ['sweep', 'convergence', 'dots',"),
        ("figure:", "drawing:", "has unknown fields ['drawing']"),
        ("mostpop.yaml", "mostpops.yaml", "there is no file '../configs/mostpops.yaml'"),
        ("]", "", "is not YAML"),
        ("metrics: [recall@5, ndcg@5]", "metrics: recall@5", "a list of texts for 'metrics'"),
        ("metrics: [recall@5, ndcg@5]", "metrics: [recal@5]", "unknown metrics ['recal@5']"),
        ("configs: [", "configs: [[], ", "a list of texts for 'configs'"),
        (
            'configs: [../configs/mostpop.yaml, "../configs/[nd]*.yaml"]',
            "configs: []",
            "needs one of 'configs' at least",
        ),
    ],
)
def test_a_wrong_table_is_told(program, rows, old, new, message):
    rows.write_text(rows.read_text().replace(old, new))
    with pytest.raises(ValueError, match=re.escape(message)):
        program.Table.read(rows)


@pytest.fixture(scope="module")
def tables(program):
    files = sorted((BENCHMARKS / "tables").glob("*.yaml"))
    assert files
    with pytest.MonkeyPatch.context() as patch:  # many tables share a configuration
        patch.setattr(program.Config, "read", cache(program.Config.read))
        return {file.stem: program.Table.read(file) for file in files}


def test_every_table_of_the_project_can_be_shown(program, tables, tmp_path):
    for name, table in tables.items():
        results = [program.Result(config) for config in table.configs]
        text, _ = program.show(results, table.metrics, True, "csv")
        assert text.count("not run") == len(table.configs), name


def test_every_table_has_baselines_and_what_its_methods_improve(program, tables):
    for name, table in tables.items():
        results = [program.Result(config) for config in table.configs]
        models = {result.config.content["model"] for result in results}
        assert {"MostPop", "ItemKNN"} <= models, name
        plain = {result.group for result in results if result.method == "none"}
        lonely = [
            result.config.path.stem
            for result in results
            if result.method != "none" and result.group not in plain
        ]
        assert lonely == [], name
        data = {str(r.config.content["dataset"]).removesuffix("_proxy") for r in results}
        assert len(data) == 1, name


def test_every_figure_of_the_project_is_of_one_data_set(program, tables):
    drawn = [table for table in tables.values() if table.figure is not None]
    assert drawn
    for table in drawn:
        trained = [c for c in table.configs if c.content["model"] not in ("MostPop", "ItemKNN")]
        program.plot.check_same_data(trained)
        assert len(set(program.plot.labels(trained))) == len(trained)


def test_every_configuration_of_the_project_stands_in_a_table(tables):
    shown = {config.path.resolve() for table in tables.values() for config in table.configs}
    files = {file.resolve() for file in (BENCHMARKS / "configs").rglob("*.yaml")}
    assert sorted(file.stem for file in files - shown) == []
