"""The bottlenecks find what is planted, on the smallest data and setup that shows it."""

from statistics import fmean

from benchmarks.planted_truth import confidence_interval, run_fib, run_gib

SEEDS = range(5)


def test_fib_lowers_the_dependence_on_irrelevant_columns():
    change = {"taste": [], "irrelevant": []}
    for seed in SEEDS:
        plain, narrowed = (run_fib(seed, "tiny", weight=weight) for weight in (0.0, 10.0))
        for kind, found in change.items():
            before, after = (fmean(row["dependence"][kind].values()) for row in (plain, narrowed))
            found.append(after - before)
    _, _, upper = confidence_interval(change["irrelevant"])
    assert upper < 0
    # What the recommendation needs is not given up.
    assert fmean(change["irrelevant"]) < fmean(change["taste"]) - 0.1


def test_gib_keeps_right_edges_rather_than_wrong_ones():
    rows = [run_gib(seed, "tiny") for seed in SEEDS]
    for name in ("auc", "auc_same_item"):
        _, lower, _ = confidence_interval([row[name] for row in rows])
        assert lower > 0.5
    assert fmean(row["keep_right"] - row["keep_wrong"] for row in rows) > 0.05
    # A mask that has learned nothing is at chance.
    assert abs(fmean(row["untrained"]["auc"] for row in rows) - 0.5) < 0.03
