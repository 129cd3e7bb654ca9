"""What the tables of results say, and with what right."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from scipy.stats import ttest_rel

pytest.importorskip("yaml")


@pytest.fixture(scope="module")
def program(load_script):
    return load_script("tabulate")


def write(folder, config, text, values, users=None, point=""):
    """A configuration and the results of one run per value."""
    path = folder / f"{config}.yaml"
    path.write_text(text)
    for seed, value in enumerate(values):
        file = folder / "results" / config / point / f"seed-{seed}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        metrics = {"recall@20": value, "ndcg@20": value / 2}
        file.write_text(json.dumps({"metrics": {"validation": metrics, "test": metrics}}))
        if users is not None:
            ids = torch.arange(users.shape[1], dtype=torch.int32)
            content = {"user": ids, "recall@20": torch.from_numpy(users[seed])}
            save_file(content, file.with_suffix(".safetensors"))
    return path


def read(program, folder, *paths):
    return [program.Result.read(program.Config.read(path), folder / "results") for path in paths]


def cells(program, rows, **wanted):
    """The one row with these cells, by column."""
    found = [dict(zip(program.HEADER, row, strict=True)) for row in rows]
    (row,) = [row for row in found if all(row[key] == value for key, value in wanted.items())]
    return row


def test_improvements_their_average_and_their_tests(program, tmp_path):
    generator = np.random.default_rng(0)
    users = {name: generator.random((2, 50)).astype(np.float32) for name in ("a", "b")}
    users["b"] += 0.05
    paths = []
    for model, (base, better) in {"VBPR": (0.1, 0.12), "LightGCN": (0.2, 0.22)}.items():
        text = f"model: {model}\ndataset: x\nseeds: 2\n"
        kept = users if model == "VBPR" else {"a": None, "b": None}
        paths.append(write(tmp_path, f"{model}_n", text, [base, base], kept["a"]))
        text += "method: dvib-c\n"
        paths.append(write(tmp_path, f"{model}_d", text, [better, better + 0.02], kept["b"]))
    rows = program.make_rows(read(program, tmp_path, *paths))
    row = cells(program, rows, model="VBPR", method="dvib-c", metric="recall@20")
    assert (row["ours"], row["seeds"]) == ("0.1300 ± 0.0141", "2")
    assert row["improvement"] == "+30.00 %"
    p = ttest_rel(users["b"].astype(float).mean(0), users["a"].astype(float).mean(0)).pvalue
    assert float(row["p (t-test)"]) == pytest.approx(p, rel=0.05)  # one comparison: not corrected
    assert float(row["p (bootstrap)"]) == pytest.approx(p, abs=0.05)
    row = cells(program, rows, model="LightGCN", method="dvib-c", metric="recall@20")
    assert (row["improvement"], row["p (t-test)"]) == ("+15.00 %", "")  # users were not kept
    row = cells(program, rows, model="average over 2 models", metric="ndcg@20")
    assert row["improvement"] == "+22.50 %"
    assert cells(program, rows, model="VBPR", method="none", metric="ndcg@20")["improvement"] == ""


def test_only_runs_on_the_same_terms_are_compared(program, tmp_path):
    def configure(name, value, *lines):
        return write(tmp_path, name, "\n".join(["model: VBPR", "dataset: x", *lines, ""]), [value])

    scaled = ("options:", "  data.scale_features: l2")
    plain, other = configure("a", 0.1), configure("b", 0.2, *scaled)
    first = configure("c", 0.3, "method: fib", *scaled, "  method.weight: 3")
    second = configure("d", 0.4, "method: fib", *scaled)
    rows = program.make_rows(read(program, tmp_path, plain, other, first, second))
    gains = [row[program.HEADER.index("improvement")] for row in rows if row[6] == "recall@20"]
    assert gains == ["", "", "+50.00 %", "+100.00 %"]  # and no average: it is one model
    text = "\n".join(["model: VBPR", "dataset: x", *scaled, "grid:", "  model.reg_weight: [1]"])
    third = write(tmp_path, "e", text, [0.1], point="reg_weight=1")
    with pytest.raises(ValueError, match="'b' and 'e' differ in their grids only"):
        program.make_rows(read(program, tmp_path, other, third))
    with pytest.raises(ValueError, match="there is no metric 'auc'; there are ndcg@20, recall@20"):
        program.make_rows(read(program, tmp_path, plain), ["auc"])


def test_published_figures_and_unfinished_searches(program, tmp_path):
    text = (
        "model: VBPR\ndataset: x\nseeds: 3\ngrid:\n  model.reg_weight: [1, 2, 3]\npublished:\n"
        "  - source: one\n    recall@20: 0.2\n  - source: other\n    recall@20: 0.4\n"
    )
    for point, value in (("1", 0.1), ("2", 0.3)):
        path = write(tmp_path, "search", text, [value], point=f"reg_weight={point}")
    rows = program.make_rows(read(program, tmp_path, path))
    row = cells(program, rows, published="0.2000 (one)")
    assert (row["ours"], row["ours is"], row["options"]) == ("0.3000", "+50.0 %", "reg_weight 2")
    assert row["seeds"] == "1 of 3, 2 of 3 points searched"
    assert cells(program, rows, published="0.4000 (other)")["ours is"] == "-25.0 %"
    empty = write(tmp_path, "none", "model: VBPR\ndataset: x\n", [])
    assert cells(program, program.make_rows(read(program, tmp_path, empty)))["ours"] == "not run"


def test_a_wide_table_has_a_column_per_metric(program, tmp_path):
    generator = np.random.default_rng(0)
    users = generator.random((1, 50)).astype(np.float32)
    text = "model: VBPR\ndataset: x\n"
    source = "published:\n  - source: one (a)\n    ndcg@20: 0.2\n"
    plain = write(tmp_path, "a", text + source, [0.2], users)
    better = write(tmp_path, "b", text + "method: amr\n", [0.3], users + 0.05 + users * 0.01)
    rows = program.make_rows(read(program, tmp_path, plain, better), ["recall@20", "ndcg@20"])
    header, lines = program.widen(rows)
    assert header == [*program.HEADER[:6], "recall@20", "ndcg@20"]
    assert [line[2:] for line in lines] == [
        ["none", "paper", "", "1", "0.2000", "0.1000"],
        ["none", "paper", "one (a)", "published", "", "0.2000 (-50.0 %)"],
        ["amr", "paper", "", "1", "0.3000 (+50.00 %**)", "0.1500 (+50.00 %)"],
    ]  # fmt: skip
    shared, header, lines = program.common_cells(header, lines)
    assert shared == "data x, model VBPR, preset paper"
    assert header == ["method", "options", "seeds", "recall@20", "ndcg@20"]
    equal = [["x", "0.2"], ["x", "0.2"]]  # a value stays, though all share it
    assert program.common_cells(["data", "ours"], equal) == ("data x", ["ours"], [["0.2"]] * 2)
    assert program.common_cells(["data"], [["x"]]) == ("", ["data"], [["x"]])
    with pytest.raises(ValueError, match="two configurations agree in"):
        program.widen(program.make_rows(read(program, tmp_path, better, better)))


def test_seeds_with_other_users_are_not_mixed(program, tmp_path):
    users = np.zeros((2, 3), dtype=np.float32)
    path = write(tmp_path, "c", "model: VBPR\ndataset: x\n", [0.1, 0.1], users)
    (result,) = read(program, tmp_path, path)
    assert result.users("recall@20") == {0: 0.0, 1: 0.0, 2: 0.0}
    assert result.users("ndcg@20") == {}  # was not kept
    ids = torch.tensor([0, 1, 3], dtype=torch.int32)
    save_file(
        {"user": ids, "recall@20": torch.zeros(3)}, result.files[1].with_suffix(".safetensors")
    )
    with pytest.raises(ValueError, match="'c' have other test users"):
        result.users("recall@20")


def test_holm_by_hand(program):
    assert program.holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert program.holm([0.9, 0.8]) == [1.0, 1.0]
    assert program.holm([]) == []


def test_bootstrap_agrees_with_the_t_test(program):
    generator = np.random.default_rng(1)
    for shift in (0.0, 0.1, 0.2, 0.5):
        x = generator.standard_normal(200) + shift
        assert program.bootstrap(x) == pytest.approx(
            float(ttest_rel(x, np.zeros(200)).pvalue), abs=0.02
        )


def test_every_format_holds_the_same_cells(program):
    rows, headers = [["a_b", "0.1 ± 0.2"], ["c", "+3.0 %"]], ["model", "ours, mean"]
    assert program.FORMATS["markdown"](rows, headers).splitlines() == [
        "| model | ours, mean |", "| --- | --- |", "| a_b | 0.1 ± 0.2 |", "| c | +3.0 % |",
    ]  # fmt: skip
    assert program.FORMATS["csv"](rows, headers).splitlines()[:2] == [
        'model,"ours, mean"', "a_b,0.1 ± 0.2",
    ]  # fmt: skip
    latex = program.FORMATS["latex"](rows, headers)
    assert r"a\_b & 0.1 $\pm$ 0.2 \\" in latex and r"c & +3.0 \% \\" in latex
    assert latex.startswith(r"\begin{tabular}{ll}")
    assert "a_b     0.1 ± 0.2" in program.FORMATS["terminal"](rows, headers)
