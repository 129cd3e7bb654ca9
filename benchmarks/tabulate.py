"""Draws a Markdown table from the result files of ``run.py``, beside published figures.

``python benchmarks/tabulate.py benchmarks/configs/*_baby.yaml``
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from run import HERE, Config

from pyg_mmrec.experiment import mean_and_std
from pyg_mmrec.training.checkpoint import read_json

sys.path.remove(str(HERE))  # torch imports a package that is called like this file

HEADER = ["data", "model", "preset", "options", "seeds", "metric", "ours", "published", "ours is"]


def read_results(config: Config, results: Path) -> tuple[dict[str, str], list[dict[str, Any]]]:
    """The point of the grid that validation picks, among those that have finished, and its runs."""
    points = {
        config.folder(point): (point, sorted(results.glob(f"{config.folder(point)}/seed-*.json")))
        for point in config.points()
    }
    searched = {
        folder: read_json(files[0]) for folder, (_, files) in points.items() if len(files) > 0
    }
    if not searched:
        return {}, []
    metric = config.experiment({}, 0, "").training_options().metric
    best = max(searched, key=lambda folder: searched[folder]["metrics"]["validation"][metric])
    point, files = points[best]
    return point, [read_json(file) for file in files]


def rows(config: Config, results: Path) -> list[list[str]]:
    """Table rows of a configuration: one per published metric, or one per default metric."""
    point, runs = read_results(config, results)
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
            table.append([*first, str(len(runs)), metric, ours, *beside])
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("configs", nargs="+", type=Path, metavar="CONFIG", help="YAML files")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    arguments = parser.parse_args()
    lines = [HEADER, ["---"] * len(HEADER)]
    for path in arguments.configs:
        lines += rows(Config.read(path), arguments.results)
    for line in lines:
        print(f"| {' | '.join(line)} |")
    notes = {Config.read(path).content.get("note") for path in arguments.configs} - {None}
    for note in sorted(map(str, notes)):
        print(f"\n{note}")


if __name__ == "__main__":
    main()
