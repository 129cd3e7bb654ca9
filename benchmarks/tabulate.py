"""Draws a Markdown table from the result files of ``run.py``, beside published figures.

``python benchmarks/tabulate.py benchmarks/configs/*_baby.yaml``
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from run import HERE, Config

from pyg_mmrec.experiment import mean_and_std
from pyg_mmrec.training.checkpoint import read_json

HEADER = ["data", "model", "preset", "options", "seeds", "metric", "ours", "published", "ours is"]


def read_results(config: Config, results: Path) -> tuple[dict[str, str], list[dict[str, Any]], int]:
    """The point of the grid that validation picks, among those that have finished, its runs, and
    how many have finished.
    """
    points = {
        config.folder(point): (point, sorted(results.glob(f"{config.folder(point)}/seed-*.json")))
        for point in config.points()
    }
    searched = {
        folder: read_json(files[0]) for folder, (_, files) in points.items() if len(files) > 0
    }
    if not searched:
        return {}, [], 0
    metric = config.metric()
    best = max(searched, key=lambda folder: searched[folder]["metrics"]["validation"][metric])
    point, files = points[best]
    return point, [read_json(file) for file in files], len(searched)


def rows(config: Config, results: Path) -> list[list[str]]:
    """Table rows of a configuration: one per published metric, or one per default metric."""
    point, runs, finished = read_results(config, results)
    content = config.content
    options = {**(content.get("options") or {}), **point}
    first = [
        content["dataset"],
        content["model"],
        content.get("preset", "paper"),
        ", ".join(f"{name.split('.', 1)[1]} {value}" for name, value in options.items()),
    ]
    if not runs:
        return [[*first, "0", "", "not run", "", ""]]
    count = str(len(runs))
    if len(runs) < config.seeds:
        count += f" of {config.seeds}"
    if finished < len(config.points()):
        count += f", {finished} of {len(config.points())} points searched"
    entries = content.get("published") or [{"source": "", "recall@20": None, "ndcg@20": None}]
    table = []
    for entry in entries:
        for metric, published in entry.items():
            if metric == "source":
                continue
            mean, std = mean_and_std([run["metrics"]["test"][metric] for run in runs])
            ours = f"{mean:.4f}" + (f" ± {std:.4f}" if len(runs) > 1 else "")
            beside = ["", ""]
            if published is not None:
                beside = [
                    f"{published:.4f} ({entry['source']})", f"{100 * (mean / published - 1):+.1f} %"
                ]  # fmt: skip
            table.append([*first, count, metric, ours, *beside])
    return table


def tabulate(rows: Sequence[Sequence[str]], headers: Sequence[str]) -> str:
    """A Markdown table.

    It has the name and arguments that torch expects of a module called ``tabulate``, which it takes
    this file for when a benchmark that compiles something ends.
    """
    lines = [headers, ["---"] * len(headers), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("configs", nargs="+", type=Path, metavar="CONFIG", help="YAML files")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    arguments = parser.parse_args()
    lines = [
        row for path in arguments.configs for row in rows(Config.read(path), arguments.results)
    ]
    print(tabulate(lines, HEADER))
    notes = {Config.read(path).content.get("note") for path in arguments.configs} - {None}
    for note in sorted(map(str, notes)):
        print(f"\n{note}")


if __name__ == "__main__":
    main()
