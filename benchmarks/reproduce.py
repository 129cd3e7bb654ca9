"""Reproduces tables and figures: runs what has not run yet, and shows it beside what is published.

``python benchmarks/reproduce.py benchmarks/tables/zhao2025_table6_lfm2k.yaml --root data --jobs 2``

A table (YAML) has a ``title``, the ``configs`` of its rows (files or patterns, seen from its own
folder), maybe the ``metrics`` to show, and maybe a ``figure``: ``dots``, of the first two metrics a
line per configuration; ``normalized``, the same by the best of its model; or, of the first metric,
``convergence`` or ``sweep``, of the configurations that are sweeps, beside the first other one of
the same model. With ``--show``, nothing is run. Stars are for other users and other seeds;
``--long`` gives each metric a row, with the p-values of a t-test and a bootstrap over users too.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from glob import glob
from pathlib import Path

import plot
from result import METRICS, Result
from run import HERE, KNOWN_METRICS, Config, check_names, parse, read_fields, report, run_as_asked
from tabulate import FOR_READERS, FORMATS, show

FIELDS = ("title", "configs", "metrics", "figure")


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
        content = read_fields(path, FIELDS)
        metrics = content.get("metrics")
        for name, value in (("configs", content["configs"]), ("metrics", metrics or [])):
            if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
                raise ValueError(f"'{path}' needs a list of texts for '{name}' (got {value!r})")
        if not content["configs"]:
            raise ValueError(f"'{path}' needs one of 'configs' at least (got none)")
        wrong = sorted(set(metrics or []) - set(KNOWN_METRICS))
        if wrong:
            raise ValueError(f"'{path}' has unknown metrics {wrong}; there are {KNOWN_METRICS}")
        figure = content.get("figure")
        if figure not in (None, *plot.KINDS):
            kinds = list(plot.KINDS)
            raise ValueError(f"'{path}' needs one of {kinds} for 'figure' (got {figure!r})")
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
            kept = [
                name
                for name in self.metrics or METRICS
                if all(f"validation {name}" in run["history"] for run in runs)
            ]
            # Runs of before metrics at 5 were kept show the one that picked their epochs.
            text = plot.convergence(self.configs, results, output, kept)
        else:
            normalize = self.figure == "normalized"
            metrics = (self.metrics or METRICS)[:2]
            text = plot.dots(self.configs, results, metrics, output, normalize)
        return f"{text}\n\n{output}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tables", nargs="+", type=Path, metavar="TABLE", help="YAML files")
    parser.add_argument("--show", action="store_true", help="run nothing, show what there is")
    parser.add_argument("--long", action="store_true", help="a row per metric, with all p-values")
    parser.add_argument("--format", choices=sorted(FORMATS), default="markdown")
    parser.add_argument("--figures", type=Path, default=HERE / "figures")
    arguments = parse(parser)
    try:
        tables = [Table.read(path) for path in arguments.tables]
        rows = {config.path.resolve(): config for table in tables for config in table.configs}
        configs = list(rows.values())
        check_names(configs)
    except (ValueError, FileNotFoundError) as error:
        parser.error(str(error))
    failed = [] if arguments.show else run_as_asked(configs, arguments)
    beside = sys.stdout if arguments.format in FOR_READERS else sys.stderr
    for table in tables:
        try:
            results = [Result.read(config, arguments.results) for config in table.configs]
            text, notes = show(results, table.metrics, not arguments.long, arguments.format)
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
    return report(failed)


if __name__ == "__main__":
    raise SystemExit(main())
