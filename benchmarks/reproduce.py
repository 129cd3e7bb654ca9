"""Reproduces tables and figures: runs what has not run yet, and shows it beside what is published.

``python benchmarks/reproduce.py benchmarks/tables/zhao2025_table6_lfm2k.yaml --root data --jobs 2``

A table (YAML) has a ``title``, the ``configs`` of its rows (files or patterns, seen from its own
folder), maybe the ``metrics`` to show, and maybe a ``figure`` of the first metric: ``dots``, a line
per configuration; ``convergence``; or ``sweep``, of the configurations that are sweeps, beside the
first other one of the same model. With ``--show``, nothing is run.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from glob import glob
from pathlib import Path

import plot
import yaml
from run import HERE, Config, check_names, run
from tabulate import FOR_READERS, FORMATS, METRICS, Result, show

from pyg_mmrec.evaluation import KS

FIELDS = ("title", "configs", "metrics", "figure")
FIGURES = ("dots", "convergence", "sweep")
KNOWN_METRICS = [
    f"{name}@{k}" for name in ("recall", "ndcg", "precision", "map", "hit_ratio") for k in KS
]


@dataclass(frozen=True)
class Table:
    """What a table's file says.

    Args:
        path (pathlib.Path): The file; its stem names the figure.
        title (str): What the table shows.
        configs (list[Config]): Its rows.
        metrics (list[str], optional): Metrics to show.
        figure (str, optional): The kind of its figure.
    """

    path: Path
    title: str
    configs: list[Config]
    metrics: list[str] | None
    figure: str | None

    @classmethod
    def read(cls, path: Path) -> Table:
        """Reads and checks a file.

        Raises:
            ValueError: If it is no table; the message names file and field.
        """
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except yaml.YAMLError as error:
            raise ValueError(f"'{path}' is not YAML ({error})") from error
        if not isinstance(content, dict) or not {"title", "configs"} <= set(content):
            raise ValueError(f"'{path}' needs the fields 'title' and 'configs'")
        unknown = sorted(set(content) - set(FIELDS))
        if unknown:
            raise ValueError(f"'{path}' has unknown fields {unknown}; there are {list(FIELDS)}")
        metrics = content.get("metrics")
        for name, value in (("configs", content["configs"]), ("metrics", metrics or [])):
            if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
                raise ValueError(f"'{path}' needs a list of texts for '{name}' (got {value!r})")
        wrong = sorted(set(metrics or []) - set(KNOWN_METRICS))
        if wrong:
            raise ValueError(f"'{path}' has unknown metrics {wrong}; there are {KNOWN_METRICS}")
        figure = content.get("figure")
        if figure not in (None, *FIGURES):
            raise ValueError(f"'{path}' needs one of {list(FIGURES)} for 'figure' (got {figure!r})")
        files: dict[Path, Config] = {}
        for pattern in content["configs"]:
            found = [Path(name) for name in sorted(glob(str(path.parent / pattern)))]
            if not found:
                raise ValueError(f"'{path}': there is no file '{pattern}'")
            for file in found:
                files.setdefault(file.resolve(), Config.read(file))
        return cls(path, content["title"], list(files.values()), metrics, figure)

    def draw(self, results: Path, folder: Path) -> str:
        """Draws the figure; returns what it shows, as text.

        Raises:
            ValueError: If runs are missing.
        """
        output = folder / f"{self.path.stem}.png"
        metric = (self.metrics or METRICS)[0]
        if self.figure == "sweep":
            sweeps = [config for config in self.configs if config.sweep]
            models = {config.content["model"] for config in sweeps}
            others = [c for c in self.configs if not c.sweep and c.content["model"] in models]
            text = plot.sweep(sweeps, results, metric, others[0] if others else None, output)
        elif self.figure == "convergence":
            runs = [run for result in plot.trained(self.configs, results) for run in result.runs]
            kept = all(f"validation {metric}" in run["history"] for run in runs)
            text = plot.convergence(self.configs, results, output, metric if kept else None)
        else:
            text = plot.dots(self.configs, results, metric, output)
        return f"{text}\n\n{output}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tables", nargs="+", type=Path, metavar="TABLE", help="YAML files")
    parser.add_argument("--root", default="data", help="folder of data set folders")
    parser.add_argument("--seeds", type=int, help="seeds per row (default: as its file says)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time; they share the cores")
    parser.add_argument("--show", action="store_true", help="run nothing, show what there is")
    parser.add_argument("--format", choices=sorted(FORMATS), default="markdown")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--work", type=Path, default=HERE / "work", help="checkpoints and weights")
    parser.add_argument("--figures", type=Path, default=HERE / "figures")
    arguments = parser.parse_args()
    for name in ("seeds", "jobs"):
        if getattr(arguments, name) is not None and getattr(arguments, name) < 1:
            parser.error(f"--{name} needs to be a positive integer")
    try:
        tables = [Table.read(path) for path in arguments.tables]
        rows = {config.path.resolve(): config for table in tables for config in table.configs}
        configs = list(rows.values())
        check_names(configs)
    except (ValueError, FileNotFoundError) as error:
        parser.error(str(error))
    failed: list[str] = []
    if not arguments.show:
        try:
            failed = run(
                configs, arguments.root, arguments.seeds, arguments.jobs, arguments.results,
                arguments.work,
            )  # fmt: skip
        except KeyboardInterrupt:
            print("interrupted; the same command goes on from here", file=sys.stderr)
            return 130
    beside = sys.stdout if arguments.format in FOR_READERS else sys.stderr
    for table in tables:
        try:
            results = [Result.read(config, arguments.results) for config in table.configs]
            text, notes = show(results, table.metrics, True, arguments.format)
        except ValueError as error:
            failed.append(f"{table.path}: {error}")
            continue
        print(f"{table.title}\n", file=beside)
        print(text)
        print(f"{notes}\n", file=beside)
        if table.figure is not None:
            arguments.figures.mkdir(parents=True, exist_ok=True)
            try:
                print(f"{table.draw(arguments.results, arguments.figures)}\n", file=beside)
            except ValueError as error:
                print(f"no figure yet: {error}\n", file=beside)
    for line in failed:
        print(f"failed: {line}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
