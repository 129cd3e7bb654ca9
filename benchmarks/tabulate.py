"""Draws a table from the result files of ``run.py``, beside published figures.

``python benchmarks/tabulate.py benchmarks/configs/*_baby.yaml``

One row per configuration and metric: mean ± standard deviation over the seeds; what is published,
and how far ours is from it; and, where a configuration without a method is given too for the same
data, backbone and preset, the improvement on it, ours and that in the published figures, with the
averages over the backbones below, of every method and its options apart. Of features that were made
noisy or redundant, ``lost`` is what that took, where the same configuration with the features as
they were is given too: relative to the value before, as in DVIB's Table 2, or, where columns were
added, to the value after, as in its Table 3. All of these compare the seeds that both sides have.

Its p-values are corrected for the number of comparisons in the table (Holm). ``p (users)`` is a
paired t-test over users, every user's metric averaged over the seeds, ``p (users, bootstrap)`` a
paired bootstrap: they say what other users would have made of these runs, and do not see the spread
of seeds. ``p (users and seeds)`` sees both, other users and other seeds, and is empty where either
configuration has run only once.
What is equal in all rows stands above the table; ``--wide`` gives each metric a column, with stars
for ``p (users and seeds)``. ``--test-picking`` shows instead, for configurations with a grid, what
picking its point on test would have added to picking it on validation; ``--false-alarms`` how often
the tests tell two halves of the seeds of one and the same setting apart.
"""

from __future__ import annotations

import argparse
import csv
import io
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from comparison import bootstrap, compare, holm, stars
from result import Result
from run import HERE, UNTRAINED, Config

from pyg_mmrec.options import option_text
from pyg_mmrec.table import format_table, mean_and_std

HEADER = [
    "data", "model", "method", "preset", "options", "seeds", "metric", "ours", "published",
    "ours is", "published improvement", "lost", "improvement", "p (users)",
    "p (users, bootstrap)", "p (users and seeds)",
]  # fmt: skip


def make_rows(
    results: list[Result], metrics: Sequence[str] | None = None, resample: bool = True
) -> list[list[str]]:
    """The table's rows.

    Args:
        results (list[Result]): What was found.
        metrics (list[str], optional): Metrics to show. (default: those of each result)
        resample (bool): Whether to make the bootstrap, which takes seconds. (default: True)
    """
    plain: dict[tuple[str, ...], Result] = {}
    for result in results:
        if result.method == "none" and result.runs:
            other = plain.setdefault(result.group, result)
            if other is not result:
                raise ValueError(
                    f"'{other.config.path.stem}' and '{result.config.path.stem}' differ in their "
                    f"grids only: give one of them, to say what improvements are measured against"
                )
    clean: dict[tuple[str, ...], Result] = {}
    for result in results:
        if result.runs and not result.probed:  # the first, as others may differ in their grids
            clean.setdefault(result.unprobed, result)
    theirs: dict[tuple[str, ...], dict[tuple[str, str], float]] = {}  # without a method
    for result in results:
        if result.method == "none":
            theirs.setdefault(result.group, result.published())
    rows: list[list[str]] = []
    compared: list[tuple[list[str], tuple[float | None, ...]]] = []
    gains: dict[tuple[str, str, tuple[str, ...]], dict[str, list[float]]] = {}
    published_gains: dict[tuple[str, str, tuple[str, ...]], dict[str, float]] = {}
    for result in results:
        content = result.config.content
        points = result.config.points()
        point = result.point or (points[0] if len(points) == 1 else {})
        options = {**(content.get("options") or {}), **point}
        text = ", ".join(f"{k.split('.', 1)[1]} {option_text(v)}" for k, v in options.items())
        first = [result.group[0], result.group[1], result.method, result.group[2], text]
        data = result.group[0].removesuffix("_proxy")
        improved = {
            (source, metric): value / theirs[result.group][source, metric] - 1
            for (source, metric), value in result.published().items()
            if result.method != "none" and (source, metric) in theirs.get(result.group, {})
        }
        for (_, metric), gain in improved.items():
            models_gain = published_gains.setdefault((data, metric, result.variant), {})
            models_gain.setdefault(result.group[1], gain)
        printed_gain = {key: f"{100 * gain:+.2f} %" for key, gain in improved.items()}
        if not result.runs:
            shown = {
                key: value
                for key, value in result.published().items()
                if metrics is None or key[1] in metrics
            }
            for (source, metric), value in shown.items():
                beside = [f"{value:.4f} ({source})", "", printed_gain.get((source, metric), "")]
                rows.append([*first, "not run", metric, "", *beside, "", "", "", "", ""])
            if not shown:
                rows.append([*first, "not run", *[""] * 10])
            continue
        count = str(len(result.runs))
        if len(result.runs) < result.config.seeds:
            count += f" of {result.config.seeds}"
        if result.searched < len(points):
            count += f", {result.searched} of {len(points)} points searched"
        published = content.get("published") or [{}]
        for metric in metrics or result.metrics():
            mean, std = mean_and_std(result.values(metric))
            ours = f"{mean:.4f}" + (f" ± {std:.4f}" if len(result.runs) > 1 else "")
            entries = [entry for entry in published if metric in entry] or [{}]
            for place, entry in enumerate(entries):
                beside = ["", "", ""]
                if entry:
                    source = entry["source"]
                    beside = [
                        f"{entry[metric]:.4f} ({source})",
                        f"{100 * (mean / entry[metric] - 1):+.1f} %",
                        printed_gain.get((source, metric), ""),
                    ]
                row = [*first, count, metric, ours, *beside, "", "", "", "", ""]
                rows.append(row)
                if place > 0:
                    continue
                if result.probed and result.unprobed in clean:
                    row[-5] = result.lost(clean[result.unprobed], metric)
                base = plain.get(result.group)
                if base is result:
                    continue
                if base is None:
                    row[-4] = "" if result.method == "none" else "nothing to compare with"
                    continue
                same, base = result.of_seeds(base.seeds), base.of_seeds(result.seeds)
                if not same.runs:
                    row[-4] = "no seed in common"
                    continue
                without_method = base.mean("test", metric)
                if without_method == 0:
                    continue
                gain = same.mean("test", metric) / without_method - 1
                row[-4] = f"{100 * gain:+.2f} %"
                models = gains.setdefault((data, metric, result.variant), {})
                models.setdefault(result.group[1], []).append(gain)
                with_method, without = same.users(metric), base.users(metric)
                if with_method and without and np.array_equal(with_method[0], without[0]):
                    p_of_users, p = compare(with_method[1], without[1])
                    difference = with_method[1].mean(0) - without[1].mean(0)
                    resampled = bootstrap(difference) if resample else None
                    compared.append((row, (p_of_users, resampled, p)))
    for column in (-3, -2, -1):
        family = [(row, p[column]) for row, p in compared if p[column] is not None]
        for (row, _), p in zip(family, holm([p for _, p in family]), strict=True):
            row[column] = f"{p:.2g}"
    for (dataset, metric, (method, *own)), models in gains.items():
        if len(models) > 1:
            means = [sum(values) / len(values) for values in models.values()]
            average = f"{100 * sum(means) / len(means):+.2f} %"
            name = f"average over {len(models)} models"
            text = ", ".join(option.split(".", 1)[1].replace("=", " ", 1) for option in own)
            known = published_gains.get((dataset, metric, (method, *own)), {})
            printed = ""
            if set(models) <= set(known):
                printed = f"{100 * sum(known[model] for model in models) / len(models):+.2f} %"
            first = [dataset, name, method, "", text, "", metric]
            rows.append([*first, "", "", "", printed, "", average, "", "", ""])
    return rows


def compare_picking(configs: Sequence[Config], results: Path) -> tuple[list[str], list[list[str]]]:
    """What picking a point of a grid on test, as public toolboxes do, would have added to picking
    it on validation: header and one row per configuration of which two points or more have
    finished, the means over the seeds that all of them have.

    Raises:
        ValueError: If there is none, or a file is the result of another configuration.
    """
    rows = []
    for config in configs:
        metric = config.metric()
        found = Result.of_points(config, results)
        if len(found) < 2:
            continue
        fair, best = (
            max(found, key=lambda result: result.mean(split, metric)).mean("test", metric)
            for split in ("validation", "test")
        )
        cells = [config.path.stem, str(len(found)), f"test {metric}", f"{fair:.4f}", f"{best:.4f}"]
        rows.append([*cells, f"{100 * (best / fair - 1):+.1f} %"])
    if not rows:
        raise ValueError("none of the configurations has a grid of which two points have finished")
    header = ["configuration", "points", "metric", "picked on validation", "picked on test"]
    return [*header, "test-picking adds"], rows


def count_false_alarms(
    configs: Sequence[Config], results: Path, metric: str
) -> tuple[list[str], list[list[str]]]:
    """How often the first two seeds of a setting differ from the next two at p < 0.05: header and
    one row per data set and for all of them.

    Raises:
        ValueError: If no setting has four seeds with the metric of every user, or a file is the
            result of another configuration.
    """
    alarms: dict[str, list[tuple[bool, ...]]] = {}
    for config in configs:
        points = Result.of_points if config.sweep else lambda *where: [Result.read(*where)]
        for result in points(config, results):
            users = result.users(metric)
            if users is not None and len(users[1]) >= 4:
                p_values = compare(users[1][:2], users[1][2:4])
                group = alarms.setdefault(str(config.content["dataset"]), [])
                group.append(tuple(p is not None and p < 0.05 for p in p_values))
    if not alarms:
        raise ValueError(f"no setting has four seeds with the {metric} of every user")
    alarms["all"] = [found for group in alarms.values() for found in group]
    rows = []
    for name, group in alarms.items():
        shares = [f"{100 * share:.1f} %" for share in np.mean(group, axis=0)]
        rows.append([name, str(len(group)), *shares])
    header = ["data", "settings", f"{metric}, p (users) < 0.05", "p (users and seeds) < 0.05"]
    return header, rows


def widen(rows: Sequence[Sequence[str]]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a table with a column per metric. It holds ours, in brackets the
    improvement, with one star for p < 0.05 and two for p < 0.01 over users and seeds, and what
    noisy or redundant features lost; below, in a row per source, what is published, and in brackets
    how far ours is from it, and by how much the method improves on what the source has without.
    """
    first, options, seeds = HEADER.index("metric"), HEADER.index("options"), HEADER.index("seeds")
    blocks: dict[tuple[str, ...], dict[str, dict[str, str]]] = {}  # by source, "" is ours
    for row in rows:
        cell = dict(zip(HEADER, row, strict=True))
        sources = blocks.setdefault(tuple(row[:first]), {"": {}})
        if not cell["published"] and cell["metric"] in sources[""]:
            raise ValueError(
                f"two configurations agree in {HEADER[:first]} ({', '.join(row[:first])}): a wide "
                f"table cannot tell them apart"
            )
        gain = cell["improvement"] + stars(float(cell["p (users and seeds)"] or 1))
        lost = f"[lost {cell['lost']}]" if cell["lost"] else ""
        printed = cell["published improvement"]
        average = f"[published {printed}]" if printed and not cell["published"] else ""
        ours = [text for text in (cell["ours"], f"({gain})" if gain else "", lost, average) if text]
        sources[""].setdefault(cell["metric"], " ".join(ours))
        value, _, source = cell["published"].removesuffix(")").partition(" (")
        if source:
            said = [
                cell["ours is"] and f"ours {cell['ours is']}",
                printed and f"improves {printed}",
            ]
            beside = ", ".join(text for text in said if text)
            sources.setdefault(source, {})[cell["metric"]] = value + (beside and f" ({beside})")
    metrics = list(dict.fromkeys(row[first] for row in rows if row[first]))
    lines = []
    for place, sources in blocks.items():
        for source, cells in sources.items():
            line = list(place)
            if source:
                line[options], line[seeds] = source, "published"
            lines.append([*line, *(cells.get(metric, "") for metric in metrics)])
    return [*HEADER[:first], *metrics], lines


def common_cells(
    header: Sequence[str], rows: Sequence[Sequence[str]]
) -> tuple[str, list[str], list[list[str]]]:
    """What describes all rows alike but averages, to stand above the table, and the table without
    it.
    """
    describing = {*HEADER[: HEADER.index("metric") + 1]}
    single = [row for row in rows if not any(cell.startswith("average over") for cell in row)]
    same = [
        len(single) > 1 and name in describing and len({row[i] for row in single}) == 1
        for i, name in enumerate(header)
    ]
    shared = ", ".join(
        f"{name} {cell}" for name, cell, drop in zip(header, rows[0], same, strict=True) if drop
    )
    left = [i for i, drop in enumerate(same) if not drop]
    return shared, [header[i] for i in left], [[row[i] for i in left] for row in rows]


def common_options(rows: Sequence[Sequence[str]]) -> tuple[str, list[list[str]]]:
    """The options that the rows of all models that train share, but averages, to stand above the
    table, and the rows without them.
    """
    model, preset, column = map(HEADER.index, ("model", "preset", "options"))
    single = [
        row[column].split(", ") for row in rows if row[preset] and row[model] not in UNTRAINED
    ]
    if len(single) < 2:
        return "", [list(row) for row in rows]
    shared = [word for word in single[0] if word and all(word in words for words in single)]
    left = []
    for row in rows:
        drop = [] if row[model] in UNTRAINED else shared
        words = ", ".join(word for word in row[column].split(", ") if word not in drop)
        left.append([*row[:column], words, *row[column + 1 :]])
    return ", ".join(shared), left


def tabulate(rows: Sequence[Sequence[str]], headers: Sequence[str]) -> str:
    """A Markdown table.

    It has the name and arguments that torch expects of a module called ``tabulate``, which it takes
    this file for when a benchmark that compiles something ends.
    """
    lines = [headers, ["---"] * len(headers), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def latex(rows: Sequence[Sequence[str]], headers: Sequence[str]) -> str:
    """A LaTeX table, for the package ``booktabs``."""

    def line(cells: Sequence[str]) -> str:
        text = " & ".join(cell.replace("&", r"\&") for cell in cells)
        for plain, escaped in (("_", r"\_"), ("%", r"\%"), ("#", r"\#"), ("±", r"$\pm$")):
            text = text.replace(plain, escaped)
        return text + r" \\"

    body = [line(row) for row in rows]
    return "\n".join(
        [rf"\begin{{tabular}}{{{'l' * len(headers)}}}", r"\toprule", line(headers), r"\midrule"]
        + [*body, r"\bottomrule", r"\end{tabular}"]
    )


def comma_separated(rows: Sequence[Sequence[str]], headers: Sequence[str]) -> str:
    """Comma-separated values."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([headers, *rows])
    return text.getvalue().rstrip("\n")


FORMATS: dict[str, Callable[[Sequence[Sequence[str]], Sequence[str]], str]] = {
    "markdown": tabulate,
    "terminal": lambda rows, headers: format_table(headers, rows),
    "csv": comma_separated,
    "latex": latex,
}
#: Formats that say above the table what its rows share.
FOR_READERS = ("markdown", "terminal")


def notes_of(configs: Sequence[Config]) -> list[str]:
    """What configurations say beside their figures, each once, with the rows that it is about."""
    about: dict[str, list[str]] = {}
    for config in configs:
        note, method = config.content.get("note"), config.content.get("method", "none")
        row = config.content["model"] + ("" if method == "none" else f" {method}")
        if note is not None and row not in about.setdefault(note, []):
            about[note].append(row)
    return [f"{', '.join(rows)}: {note}" for note, rows in about.items()]


def show(
    results: list[Result], metrics: Sequence[str] | None, wide: bool, form: str
) -> tuple[str, str]:
    """The table of some results, as text, and the notes of their configurations.

    Args:
        results (list[Result]): What was found.
        metrics (list[str], optional): Metrics to show. (default: those of each result)
        wide (bool): Whether each metric has a column.
        form (str): One of :obj:`FORMATS`.
    """
    rows = make_rows(results, metrics, resample=not wide)
    options, rows = common_options(rows) if form in FOR_READERS else ("", rows)
    header, lines = widen(rows) if wide else (HEADER, rows)
    used = [i for i in range(len(header)) if any(line[i] for line in lines)]  # no empty columns
    header, lines = [header[i] for i in used], [[line[i] for i in used] for line in lines]
    shared = ""
    if form in FOR_READERS:
        shared, header, lines = common_cells(header, lines)
    notes = notes_of([result.config for result in results])
    shared = "; ".join(text for text in (shared, options and f"where it trains: {options}") if text)
    table = FORMATS[form](lines, header)
    if wide and "%*" in table:
        notes.insert(0, "* p < 0.05, ** p < 0.01 over users and seeds (Holm, this table)")
    return f"{shared}\n\n{table}" if shared else table, "\n".join(f"\n{x}" for x in notes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("configs", nargs="+", type=Path, metavar="CONFIG", help="YAML files")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument(
        "--metrics", nargs="+", help="(default: the published ones, or recall@20 and ndcg@20)"
    )
    parser.add_argument("--format", choices=sorted(FORMATS), default="markdown")
    parser.add_argument(
        "--wide", action="store_true",
        help="a column per metric: ours, and the improvement with * for p < 0.05, ** for p < 0.01 "
        "over users and seeds",
    )  # fmt: skip
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument(
        "--test-picking", action="store_true",
        help="instead: what picking points of the grids on test would have added",
    )  # fmt: skip
    instead.add_argument(
        "--false-alarms", action="store_true",
        help="instead: how often two halves of a setting's seeds are told apart",
    )  # fmt: skip
    arguments = parser.parse_args()
    if not arguments.results.is_dir():
        parser.error(f"there is no folder '{arguments.results}'")
    try:
        configs = [Config.read(path) for path in arguments.configs]
        if arguments.test_picking:
            header, lines = compare_picking(configs, arguments.results)
            print(FORMATS[arguments.format](lines, header))
            return
        if arguments.false_alarms:
            metric = (arguments.metrics or ["recall@20"])[0]
            header, lines = count_false_alarms(configs, arguments.results, metric)
            print(FORMATS[arguments.format](lines, header))
            return
        results = [Result.read(config, arguments.results) for config in configs]
        table, notes = show(results, arguments.metrics, arguments.wide, arguments.format)
    except (ValueError, FileNotFoundError) as error:
        parser.error(str(error))
    print(table)
    print(notes, file=sys.stdout if arguments.format in FOR_READERS else sys.stderr)


if __name__ == "__main__":
    main()
