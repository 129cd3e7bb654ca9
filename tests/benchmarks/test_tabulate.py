"""What the tables of results say, and with what right."""

import json

import numpy as np
import pytest
from scipy.stats import ttest_ind, ttest_rel

pytest.importorskip("yaml")


@pytest.fixture(scope="module")
def program(load_script):
    return load_script("tabulate")


def write(program, folder, name, text, values, users=None, point=0, validation=None):
    """A configuration and the results of one run per value, at a point of its grid."""
    path = folder / f"{name}.yaml"
    path.write_text(text)
    config = program.Config.read(path)
    options = config.points()[point]
    for seed, value in enumerate(values):
        file = folder / "results" / config.folder(options) / f"seed-{seed}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        metrics = {"recall@20": value, "ndcg@20": value / 2}
        content = {
            "config": config.experiment(options, seed, "").config(),
            "metrics": {"validation": validation or metrics, "test": metrics},
        }
        file.write_text(json.dumps(content))
        if users is not None:
            ids = np.arange(users.shape[1], dtype=np.int32)
            content = {"user": ids, "recall@20": users[seed]}
            np.savez(file.with_suffix(".npz"), **content)
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
        paths.append(write(program, tmp_path, f"{model}_n", text, [base, base], kept["a"]))
        text += "method: dvib-c\n"
        paths.append(
            write(program, tmp_path, f"{model}_d", text, [better, better + 0.02], kept["b"])
        )
    rows = program.make_rows(read(program, tmp_path, *paths))
    row = cells(program, rows, model="VBPR", method="dvib-c", metric="recall@20")
    assert (row["ours"], row["seeds"]) == ("0.1300 ± 0.0141", "2")
    assert row["improvement"] == "+30.00 %"
    p = ttest_rel(users["b"].astype(float).mean(0), users["a"].astype(float).mean(0)).pvalue
    assert float(row["p (users)"]) == pytest.approx(p, rel=0.05)  # one comparison: not corrected
    assert float(row["p (users and seeds)"]) > p
    row = cells(program, rows, model="LightGCN", method="dvib-c", metric="recall@20")
    assert (row["improvement"], row["p (users)"]) == ("+15.00 %", "")  # users were not kept
    row = cells(program, rows, model="average over 2 models", metric="ndcg@20")
    assert row["improvement"] == "+22.50 %"
    assert cells(program, rows, model="VBPR", method="none", metric="ndcg@20")["improvement"] == ""


def test_only_runs_on_the_same_terms_are_compared(program, tmp_path):
    def configure(name, value, *lines):
        return write(
            program, tmp_path, name, "\n".join(["model: VBPR", "dataset: x", *lines, ""]), [value]
        )

    scaled = ("options:", "  data.scale_features: l2")
    plain, other = configure("a", 0.1), configure("b", 0.2, *scaled)
    first = configure("c", 0.3, "method: fib", *scaled, "  method.weight: 3")
    second = configure("d", 0.4, "method: fib", *scaled)
    rows = program.make_rows(read(program, tmp_path, plain, other, first, second))
    gains = [row[program.HEADER.index("improvement")] for row in rows if row[6] == "recall@20"]
    assert gains == ["", "", "+50.00 %", "+100.00 %"]  # and no average: it is one model
    text = "\n".join(["model: VBPR", "dataset: x", *scaled, "grid:", "  model.reg_weight: [1]"])
    third = write(program, tmp_path, "e", text, [0.1])
    with pytest.raises(ValueError, match="'b' and 'e' differ in their grids only"):
        program.make_rows(read(program, tmp_path, other, third))
    with pytest.raises(ValueError, match="there is no metric 'auc'; there are ndcg@20, recall@20"):
        program.make_rows(read(program, tmp_path, plain), ["auc"])


def test_what_noisy_features_lose_is_measured_on_the_same_method(program, tmp_path):
    runs = {"none": (0.4, 0.3), "dvib-c": (0.5, 0.45)}
    paths = []
    for method, values in runs.items():
        for noise, value in zip((None, 0.05), values, strict=True):
            noisy = "" if noise is None else f"options:\n  data.feature_noise: {noise}\n"
            text = f"model: VBPR\ndataset: x\nmethod: {method}\n{noisy}"
            paths.append(write(program, tmp_path, f"{method}_{noise}", text, [value]))
    rows = program.make_rows(read(program, tmp_path, *paths), ["recall@20"])
    lost = {
        (row[2], row[4]): cells(program, rows, method=row[2], options=row[4])["lost"]
        for row in rows
    }
    noisy = "feature_noise 0.05"
    assert lost["none", noisy] == "25.0 %" and lost["dvib-c", noisy] == "10.0 %"
    assert lost["none", ""] == lost["dvib-c", ""] == ""
    text = "model: VBPR\ndataset: x\nmethod: dvib-c\ngrid:\n  method.std: [1]\n"
    searched = write(program, tmp_path, "searched", text, [0.2])  # another row without probes
    rows = program.make_rows(read(program, tmp_path, *paths, searched), ["recall@20"])
    lost = [row[program.HEADER.index("lost")] for row in rows if row[2] == "dvib-c"]
    assert lost == ["", "10.0 %", ""]
    (alone,) = program.make_rows(read(program, tmp_path, paths[1]), ["recall@20"])
    assert cells(program, [alone], method="none")["lost"] == ""
    # Redundant columns: relative to what is left, as in DVIB's Table 3.
    text = "model: VBPR\ndataset: x\noptions:\n  data.visual_redundancy: true\n"
    paths.append(write(program, tmp_path, "redundant", text, [0.32]))
    rows = program.make_rows(read(program, tmp_path, paths[0], paths[-1]), ["recall@20"])
    assert cells(program, rows, options="visual_redundancy true")["lost"] == "25.0 %"
    results = read(program, tmp_path, paths[0], paths[-1])
    assert "0.3200 [lost 25.0 %]" in program.show(results, ["recall@20"], True, "markdown")[0]


def test_an_unfinished_row_is_compared_with_the_same_seeds(program, tmp_path):
    text = "model: VBPR\ndataset: x\nseeds: 3\n"
    noisy = "options:\n  data.feature_noise: 0.05\n"
    users = np.tile([[0.1], [0.2], [0.3]], (1, 4)) + np.linspace(0, 0.01, 4)
    paths = [
        write(program, tmp_path, "none", text, [0.1, 0.2, 0.3], users),
        write(program, tmp_path, "dvib", text + "method: dvib-c\n", [0.11], users[:1] + 0.01),
        write(program, tmp_path, "noisy", text + noisy, [0.05]),
        write(program, tmp_path, "fib", text + "method: fib\n", [0.0, 0.4], users[:2]),
    ]
    (tmp_path / "results" / "fib" / "seed-1.json").rename(
        tmp_path / "results" / "fib" / "seed-7.json"
    )
    (tmp_path / "results" / "fib" / "seed-0.json").unlink()
    rows = program.make_rows(read(program, tmp_path, *paths[:3]), ["recall@20"])
    row = cells(program, rows, method="dvib-c")
    assert (row["seeds"], row["improvement"]) == ("1 of 3", "+10.00 %")
    assert row["p (users)"] == "0" and row["p (users and seeds)"] == ""
    assert cells(program, rows, options="feature_noise 0.05")["lost"] == "50.0 %"
    config = program.Config.read(paths[3])
    file = tmp_path / "results" / "fib" / "seed-7.json"
    content = {**json.loads(file.read_text()), "config": config.experiment({}, 7, "").config()}
    file.write_text(json.dumps(content))
    rows = program.make_rows(read(program, tmp_path, paths[0], paths[3]), ["recall@20"])
    assert cells(program, rows, method="fib")["improvement"] == "no seed in common"


def test_averages_tell_options_of_a_method_apart(program, tmp_path):
    paths = []
    for model in ("VBPR", "LightGCN"):
        text = f"model: {model}\ndataset: x\n"
        paths.append(write(program, tmp_path, f"{model}_none", text, [0.1]))
        for divergence, value in {"js": 0.11, "kl": 0.13}.items():
            more = f"method: dvib-c\noptions:\n  method.divergence: {divergence}\n"
            paths.append(write(program, tmp_path, f"{model}_{divergence}", text + more, [value]))
    rows = program.make_rows(read(program, tmp_path, *paths), ["recall@20"])
    averages = {row[4]: row[-4] for row in rows if row[1].startswith("average")}
    assert averages == {"divergence js": "+10.00 %", "divergence kl": "+30.00 %"}


def test_options_that_all_that_trains_shares_stand_above_the_table(program, tmp_path):
    paths = [
        write(program, tmp_path, "k", "model: ItemKNN\ndataset: x\noptions: {model.k: 9}\n", [1])
    ]
    text = "model: VBPR\ndataset: x\noptions: {model.embedding_dim: 8, model.reg_weight: %s}\n"
    paths += [write(program, tmp_path, f"v{i}", text % i, [0.1]) for i in (1, 2)]
    table, _ = program.show(read(program, tmp_path, *paths), ["recall@20"], True, "markdown")
    above, _, below = table.partition("| model")
    assert "where it trains: embedding_dim 8" in above and "embedding_dim" not in below
    assert "| k 9 |" in below and "| reg_weight 1 |" in below and "| reg_weight 2 |" in below
    table, _ = program.show(read(program, tmp_path, *paths), ["recall@20"], True, "csv")
    assert table.count("embedding_dim 8") == 2  # a file has everything in its cells


def test_published_figures_and_unfinished_searches(program, tmp_path):
    text = (
        "model: VBPR\ndataset: x\nseeds: 3\ngrid:\n  model.reg_weight: [1, 2, 3]\npublished:\n"
        "  - source: one\n    recall@20: 0.2\n  - source: other\n    recall@20: 0.4\n"
    )
    for point, value in enumerate((0.1, 0.3)):
        path = write(program, tmp_path, "search", text, [value], point=point)
    rows = program.make_rows(read(program, tmp_path, path))
    row = cells(program, rows, published="0.2000 (one)")
    assert (row["ours"], row["ours is"], row["options"]) == ("0.3000", "+50.0 %", "reg_weight 2")
    assert row["seeds"] == "1 of 3, 2 of 3 points searched"
    assert cells(program, rows, published="0.4000 (other)")["ours is"] == "-25.0 %"
    empty = write(program, tmp_path, "none", "model: VBPR\ndataset: x\n", [])
    assert cells(program, program.make_rows(read(program, tmp_path, empty)))["seeds"] == "not run"


def test_what_picking_on_test_adds(program, tmp_path):
    text = "model: VBPR\ndataset: x\ngrid:\n  model.reg_weight: [1, 2, 3]\n"
    validation = (0.3, 0.5, 0.4)
    for point, test in enumerate((0.1, 0.2, 0.25)):
        values, runs = {"recall@20": validation[point]}, [test, 0.9] if point == 1 else [test]
        searched = write(program, tmp_path, "search", text, runs, point=point, validation=values)
    plain = write(program, tmp_path, "plain", "model: VBPR\ndataset: x\n", [0.2])
    configs = [program.Config.read(path) for path in (plain, searched)]
    header, rows = program.compare_picking(configs, tmp_path / "results")
    assert rows == [["search", "3", "test recall@20", "0.2000", "0.2500", "+25.0 %"]]
    assert len(header) == len(rows[0])
    with pytest.raises(ValueError, match="none of the configurations has a grid"):
        program.compare_picking(configs[:1], tmp_path / "results")


def test_false_alarms_are_of_one_settings_seeds(program, tmp_path):
    text = "model: VBPR\ndataset: x\n"
    same = np.random.default_rng(0).random((1, 50)).repeat(5, axis=0)
    shifted = same.copy()
    shifted[:2] += 0.5
    scattered = same + np.array([0.0, 0.5, 0.1, 0.1, 0.9])[:, None]  # the fifth is not looked at
    paths = [
        write(program, tmp_path, name, text, [0.1] * len(users), users)
        for name, users in [
            ("same", same), ("shifted", shifted), ("scattered", scattered), ("few", shifted[:3])
        ]
    ]  # fmt: skip
    configs = [program.Config.read(path) for path in paths]
    header, rows = program.count_false_alarms(configs, tmp_path / "results", "recall@20")
    assert header[2].startswith("recall@20")
    assert rows == [["x", "3", "66.7 %", "33.3 %"], ["all", "3", "66.7 %", "33.3 %"]]
    with pytest.raises(ValueError, match="four seeds with the recall@20 of every user"):
        program.count_false_alarms(configs[3:], tmp_path / "results", "recall@20")


def test_a_sweep_is_picked_from_by_the_mean_over_the_seeds_of_every_point(program, tmp_path):
    text = "model: VBPR\ndataset: x\nsweep: true\nseeds: 3\ngrid:\n  model.reg_weight: [1, 2]\n"
    for point, values in enumerate(([0.3, 0.1], [0.2, 0.25, 0.9])):
        path = write(program, tmp_path, "sweep", text, values, point=point)
    (result,) = read(program, tmp_path, path)
    assert result.point == {"model.reg_weight": "2"} and result.searched == 2
    assert result.values("recall@20") == [0.2, 0.25, 0.9]
    _, rows = program.compare_picking([result.config], tmp_path / "results")
    assert rows == [["sweep", "2", "test recall@20", "0.2250", "0.2250", "+0.0 %"]]


def test_published_improvements_stand_beside_ours_also_where_nothing_ran(program, tmp_path):
    text = "model: {}\ndataset: x\nmethod: {}\n"
    source = "published: [{{source: one, recall@20: {}}}, {{source: two, recall@20: 0.3}}]\n"
    paths = [
        write(program, tmp_path, f"{model}-{method}", text.format(model, method)
              + source.format(theirs), [ours] if ours else [])
        for model, method, theirs, ours in [
            ("VBPR", "none", 0.2, 0.1), ("VBPR", "amr", 0.25, 0.11),
            ("BM3", "none", 0.4, 0.2), ("BM3", "amr", 0.6, 0.22), ("LightGCN", "none", 0.1, None),
        ]
    ]  # fmt: skip
    rows = program.make_rows(read(program, tmp_path, *paths), ["recall@20"])
    cells = [dict(zip(program.HEADER, row, strict=True)) for row in rows]
    bm3 = [c for c in cells if c["model"] == "BM3"]
    assert [(c["published"][:12], c["published improvement"]) for c in bm3] == [
        ("0.4000 (one)", ""), ("0.3000 (two)", ""), ("0.6000 (one)", "+50.00 %"),
        ("0.3000 (two)", "+0.00 %"),
    ]  # fmt: skip
    assert [(c["seeds"], c["published"], c["ours"]) for c in cells if c["model"] == "LightGCN"] == [
        ("not run", "0.1000 (one)", ""), ("not run", "0.3000 (two)", "")
    ]  # fmt: skip
    average = cells[-1]
    assert average["published improvement"] == "+37.50 %" and average["improvement"] == "+10.00 %"
    _, lines = program.widen(rows)
    assert lines[-1][-1] == "(+10.00 %) [published +37.50 %]"
    assert "0.6000 (ours -63.3 %, improves +50.00 %)" in [line[-1] for line in lines]


def test_a_wide_table_has_a_column_per_metric(program, tmp_path):
    generator = np.random.default_rng(0)
    users = generator.random(50).astype(np.float32) + np.float32([[0], [0.001]])
    text = "model: VBPR\ndataset: x\nseeds: 2\n"
    source = "published:\n  - source: one (a)\n    ndcg@20: 0.2\n"
    plain = write(program, tmp_path, "a", text + source, [0.2, 0.2], users)
    gained = users + 0.05 + users * 0.01
    better = write(program, tmp_path, "b", text + "method: amr\n", [0.3, 0.3], gained)
    rows = program.make_rows(read(program, tmp_path, plain, better), ["recall@20", "ndcg@20"])
    header, lines = program.widen(rows)
    assert header == [*program.HEADER[:6], "recall@20", "ndcg@20"]
    assert [line[2:] for line in lines] == [
        ["none", "paper", "", "2", "0.2000 ± 0.0000", "0.1000 ± 0.0000"],
        ["none", "paper", "one (a)", "published", "", "0.2000 (ours -50.0 %)"],
        ["amr", "paper", "", "2", "0.3000 ± 0.0000 (+50.00 %**)", "0.1500 ± 0.0000 (+50.00 %)"],
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
    path = write(program, tmp_path, "c", "model: VBPR\ndataset: x\n", [0.1, 0.1], users)
    (result,) = read(program, tmp_path, path)
    ids, values = result.users("recall@20")
    assert ids.tolist() == [0, 1, 2] and values.tolist() == [[0, 0, 0]] * 2
    assert result.users("ndcg@20") is None  # was not kept
    other = {"user": np.array([0, 1, 3]), "recall@20": np.zeros(3)}
    np.savez(result.files[1].with_suffix(".npz"), **other)
    with pytest.raises(ValueError, match="'c' have other test users"):
        result.users("recall@20")


def test_holm_by_hand(program):
    assert program.holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert program.holm([0.9, 0.8]) == [1.0, 1.0]
    assert program.holm([]) == []


def test_over_users_it_is_the_paired_t_test(program):
    ours, other = np.random.default_rng(1).standard_normal((2, 3, 200))
    for shift in (0.0, 0.1, 0.5):
        p, _ = program.compare(ours + shift, other)
        reference = ttest_rel(ours.mean(0) + shift, other.mean(0)).pvalue
        assert p == pytest.approx(reference, rel=1e-9)


def test_where_users_are_alike_it_is_the_t_test_over_seeds(program):
    generator = np.random.default_rng(2)
    ours, other = 1 + generator.standard_normal(5), generator.standard_normal(3)
    _, p = program.compare(np.tile(ours[:, None], 9), np.tile(other[:, None], 9))
    assert p == pytest.approx(ttest_ind(ours, other).pvalue, rel=1e-9)


def test_a_difference_within_the_spread_of_seeds_is_not_significant(program):
    generator = np.random.default_rng(3)
    users = generator.random(5000)  # who is easy to serve is so in every run
    spread = np.array([-0.03, -0.01, 0.0, 0.01, 0.03])[:, None]
    runs = users + spread + 0.05 * generator.standard_normal((2, 5, 5000))
    p_of_users, p = program.compare(runs[0] + 0.01, runs[1])
    assert p_of_users < 1e-9 and p > 0.3
    p_of_users, p = program.compare(runs[0] + 0.1, runs[1])
    assert p_of_users < 1e-9 and p < 0.001


def test_without_an_effect_few_comparisons_are_significant(program):
    generator = np.random.default_rng(4)
    p_values = []
    for _ in range(1000):
        seeds = 0.02 * generator.standard_normal((2, 3, 1))
        ours, other = generator.random(300) + seeds + 0.2 * generator.standard_normal((2, 3, 300))
        p_values.append(program.compare(ours, other))
    shares = (np.array(p_values) < 0.05).mean(0)
    assert shares[0] > 0.15 and 0.01 < shares[1] < 0.07


def test_a_single_run_says_nothing_of_the_spread_of_seeds(program, tmp_path):
    users = np.random.default_rng(0).random((1, 50)).astype(np.float32)
    text = "model: VBPR\ndataset: x\n"
    plain = write(program, tmp_path, "a", text, [0.2], users)
    better = write(program, tmp_path, "b", text + "method: amr\n", [0.3], users * 1.1 + 0.1)
    rows = program.make_rows(read(program, tmp_path, plain, better), ["recall@20"])
    row = cells(program, rows, method="amr")
    assert float(row["p (users)"]) < 0.01 and row["p (users and seeds)"] == ""
    assert program.widen(rows)[1][1][-1] == "0.3000 (+50.00 %)"


def test_runs_that_are_the_same_count_as_comparisons(program, tmp_path):
    generator = np.random.default_rng(0)
    users = generator.random((2, 50)).astype(np.float32)
    text = "model: VBPR\ndataset: x\nseeds: 2\n"
    paths = {"none": write(program, tmp_path, "none", text, [0.2, 0.2], users)}
    other = users + generator.random((2, 50)).astype(np.float32) / 10
    for method, runs in {"amr": users, "fib": other}.items():
        content = f"{text}method: {method}\n"
        paths[method] = write(program, tmp_path, method, content, [0.2, 0.2], runs)
    rows = program.make_rows(read(program, tmp_path, *paths.values()), ["recall@20"])
    alone = program.make_rows(read(program, tmp_path, paths["none"], paths["fib"]), ["recall@20"])
    for column in ("p (users)", "p (users, bootstrap)", "p (users and seeds)"):
        assert cells(program, rows, method="amr")[column] == "1"
        (p, uncorrected) = (float(cells(program, x, method="fib")[column]) for x in (rows, alone))
        assert p == pytest.approx(2 * uncorrected, rel=0.05) and p < 1


def test_the_bootstrap_is_a_t_test_of_its_own_distribution(load_script):
    comparison = load_script("comparison")
    generator = np.random.default_rng(1)
    for shift in (0.0, 0.05, 0.1):
        difference = generator.normal(shift, 1, 500)
        variance = (float(difference.var(ddof=1)) / 500, 499)
        expected = comparison.p_value(float(difference.mean()), variance)
        assert comparison.bootstrap(difference) == pytest.approx(expected, abs=0.02)
    one = np.zeros(1000)
    assert comparison.bootstrap(one, 1000) == 1
    one[3] = 0.2  # a single user who differs may have been any
    assert comparison.bootstrap(one, 1000) > 0.3
    assert comparison.bootstrap(np.full(50, 0.1), 1000) < 0.01


def test_results_of_another_configuration_are_not_printed_under_this_one(program, tmp_path):
    text = "model: VBPR\ndataset: x\noptions: {model.reg_weight: 1}\n"
    path = write(program, tmp_path, "a", text, [0.1, 0.2])
    assert len(read(program, tmp_path, path)[0].runs) == 2
    path.write_text(text.replace("reg_weight: 1", "reg_weight: 2"))
    with pytest.raises(ValueError, match="seed-0.json' is the result of another configuration"):
        read(program, tmp_path, path)
    path.write_text(text)
    files = sorted((tmp_path / "results" / "a").glob("*.json"))
    files[0].rename(files[1].with_name("seed-2.json"))  # what seed 0 found is not what seed 2 would
    with pytest.raises(ValueError, match="seed-2.json' is the result of another configuration"):
        read(program, tmp_path, path)


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


def test_notes_say_which_rows_they_are_about(program, tmp_path):
    text = "model: LightGCN\ndataset: planted-tiny\nnote: few\n"
    texts = [text, text + "method: dvib-c\n", text + "preset: mmrec\n", text.replace("few", "many")]
    texts.append("model: BPRMF\ndataset: planted-tiny\n")
    paths = [write(program, tmp_path, str(i), text, []) for i, text in enumerate(texts)]
    _, notes = program.show(read(program, tmp_path, *paths), ["recall@20"], False, "markdown")
    assert notes.split() == ["LightGCN,", "LightGCN", "dvib-c:", "few", "LightGCN:", "many"]
