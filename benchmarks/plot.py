"""Draws figures from the result files of ``run.py``, and prints what they show.

``python benchmarks/plot.py sweep benchmarks/configs/methods/vlattice_gib_sweep_ku.yaml``
``python benchmarks/plot.py convergence benchmarks/configs/methods/vbpr_{none,dvib-a}_ku.yaml``
``python benchmarks/plot.py dots benchmarks/configs/methods/vlattice_{none,fib_gib,ibmrec}_ku.yaml``

``sweep`` shows a test metric at every point of a configuration's grid: a line over one option, a
heat map over two; with ``--baseline``, stars say where the difference is more than other users and
seeds may give. ``convergence`` shows a validation metric of seed 0 over epochs and over
seconds of training, and how long each configuration takes to the best value of the first. ``dots``
shows a test metric of every configuration, a line each, beside what is published; ``normalized``
shows it divided by the model's best, as DVIB's Figure 6. What does not train is left out of these.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # files only

import matplotlib.pyplot as plt
import numpy as np
from comparison import compare, holm, stars
from matplotlib.backend_bases import FigureCanvasBase
from result import Result
from run import HERE, Config

from pyg_mmrec.options import option_text
from pyg_mmrec.table import format_table, mean_and_std

Point = tuple[str, ...]
#: The kinds of figures.
KINDS = ("sweep", "convergence", "dots", "normalized")
#: The share of the baseline's best value that a run has to reach to be near it.
NEAR = 0.95
# Told apart by the colour-blind (Okabe and Ito's colours) and, by line and marker, without colours.
LINES = [
    {"color": color, "linestyle": line, "marker": marker}
    for color, line, marker in zip(
        ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"),
        ("-", "--", "-.", ":", "-", "--", "-."),
        "osD^vPX",
        strict=True,
    )
]


def label(config: Config) -> str:
    """What a configuration is, in a few words."""
    method = config.content.get("method", "none")
    return f"{config.content['model']}{'' if method == 'none' else f' + {method}'}"


def labels(configs: Sequence[Config]) -> list[str]:
    """A name for each configuration: what it is, where several are the same with the options in
    which these differ, or its file's name where that does not tell them apart.
    """
    names = [label(config) for config in configs]
    options = [
        {key: option_text(value) for key, value in (config.content.get("options") or {}).items()}
        for config in configs
    ]
    told = list(names)
    for i, (name, own) in enumerate(zip(names, options, strict=True)):
        same = [other for key, other in zip(names, options, strict=True) if key == name]
        differ = [key for key in own if len({other.get(key) for other in same}) > 1]
        words = [f"{key.split('.', 1)[1]} {own[key]}" for key in differ]
        told[i] = ", ".join([name, *words])
    return told if len(set(told)) == len(told) else [config.path.stem for config in configs]


def check_same_data(configs: Sequence[Config]) -> None:
    """Raises a :class:`ValueError` if configurations are of different data sets."""
    names = list(dict.fromkeys(config.content["dataset"] for config in configs))
    if len(names) > 1:
        raise ValueError(f"what is compared needs to be of one data set (got {', '.join(names)})")


def swept(config: Config) -> dict[str, list[str]]:
    """Options of the grid that have several values, with these.

    Raises:
        ValueError: If they are not one or two.
    """
    grid = config.content.get("grid") or {}
    options = {
        name: [option_text(x) for x in values] for name, values in grid.items() if len(values) > 1
    }
    if len(options) not in (1, 2):
        raise ValueError(
            f"a sweep is drawn over one or two options, and the 'grid' of '{config.path}' has "
            f"{list(options) or 'none'} with several values"
        )
    return options


def read_points(config: Config, results: Path) -> dict[Point, Result]:
    """What there is, by the values of the options that are swept.

    Raises:
        ValueError: If these are not one or two, or no run has finished.
    """
    options = swept(config)
    found = {
        tuple(result.point[name] for name in options): result
        for result in Result.of_points(config, results)
    }
    if not found:
        raise ValueError(f"no run of '{config.path.stem}' has finished")
    return found


def significance(
    points: Mapping[Point, Result], reference: Result, metric: str
) -> dict[Point, str]:
    """Stars at the points that differ from the reference over users and seeds, by p-values that are
    corrected for the number of points (Holm); none where users were not kept or seeds are single.
    """
    found = {}
    theirs = reference.users(metric)
    for point, result in points.items():
        ours = result.users(metric)
        if ours and theirs and np.array_equal(ours[0], theirs[0]):
            found[point] = compare(ours[1], theirs[1])[1]
    p_values = {point: p for point, p in found.items() if p is not None}
    return dict(zip(p_values, map(stars, holm(list(p_values.values()))), strict=True))


def sweep(
    configs: Sequence[Config], results: Path, metric: str, baseline: Config | None, output: Path
) -> str:
    """Draws one picture per configuration, side by side; returns the numbers as tables.

    Args:
        configs (list[Config]): Their grids have one or two options of several values.
        results (pathlib.Path): Folder of the result files.
        metric (str): The test metric.
        baseline (Config, optional): What the points are compared with.
        output (pathlib.Path): The figure's file; its suffix says the format.
    """
    reference = None
    if baseline is not None:
        check_same_data([*configs, baseline])
        reference = Result.read(baseline, results)
    if reference is not None and not reference.runs:
        raise ValueError(f"no run of '{reference.config.path.stem}' has finished")
    all_points = [read_points(config, results) for config in configs]
    all_values = [
        {point: result.values(metric) for point, result in points.items()} for points in all_points
    ]
    figure, all_axes = plt.subplots(
        1, len(configs), figsize=(4.5 * len(configs), 3.5), squeeze=False, layout="constrained"
    )
    texts = []
    for config, points, values, axes in zip(
        configs, all_points, all_values, all_axes[0], strict=True
    ):
        options = swept(config)
        names, ticks = [name.split(".", 1)[1] for name in options], list(options.values())
        seeds = max(map(len, values.values()))
        shown = [f"{label(config)} on {config.content['dataset']}, {metric}, {seeds} seed(s)"]
        marks: dict[Point, str] = {}
        if reference is not None:
            mean, text = reference.mean("test", metric), _text(reference.values(metric))
            shown.append(f"{label(reference.config)}: {text}, {len(reference.runs)} seed(s)")
            marks = significance(points, reference, metric)
            if len(names) == 1:
                axes.axhline(mean, color="0.4", linestyle="--", label=label(reference.config))
        cells = {
            point: _text(values[point]) + marks.get(point, "") if point in values else "not run"
            for point in itertools.product(*ticks)
        }
        if len(names) == 1:
            _draw_line(axes, ticks[0], values)
            header, rows = [names[0], metric], [[tick, cells[tick,]] for tick in ticks[0]]
            if reference is not None:
                axes.legend()
        else:
            _draw_heat_map(figure, axes, ticks, values, marks)
            axes.set_ylabel(names[0])
            header = [rf"{names[0]} \ {names[1]}", *ticks[1]]
            rows = [[first, *(cells[first, second] for second in ticks[1])] for first in ticks[0]]
        axes.set_xlabel(names[-1])
        axes.set_title("\n".join(shown), fontsize="medium")
        texts.append("\n".join([*shown, format_table(header, rows)]))
        if marks:
            note = f"over users and seeds (Holm, {len(marks)} points)"
            texts[-1] += f"\n* p < 0.05, ** p < 0.01 {note}"
    figure.savefig(output, dpi=200)
    plt.close(figure)
    return "\n\n".join(texts)


def _text(values: list[float], digits: int = 4) -> str:
    """Mean and, of several seeds, standard deviation."""
    mean, std = mean_and_std(values)
    return f"{mean:.{digits}f}" + (f" ± {std:.{digits}f}" if len(values) > 1 else "")


def _draw_line(axes: Any, ticks: list[str], values: Mapping[Point, list[float]]) -> None:
    """Means with standard deviations over evenly spaced values of an option."""
    place = [i for i, tick in enumerate(ticks) if (tick,) in values]
    mean, std = np.array([mean_and_std(values[ticks[i],]) for i in place]).T
    axes.errorbar(place, mean, std if std.any() else None, capsize=3, **LINES[1])
    axes.set_xticks(range(len(ticks)), ticks)
    axes.margins(x=0.1)


def _draw_heat_map(
    figure: Any,
    axes: Any,
    ticks: list[list[str]],
    values: Mapping[Point, list[float]],
    marks: Mapping[Point, str],
) -> None:
    """Means as colours, light to dark also in print, and as numbers."""
    points = [[(first, second) for second in ticks[1]] for first in ticks[0]]
    mean = np.array([[np.mean(values.get(point, np.nan)) for point in row] for row in points])
    image = axes.imshow(mean, cmap="cividis", aspect="auto")
    middle = (np.nanmin(mean) + np.nanmax(mean)) / 2
    for (i, j), value in np.ndenumerate(mean):
        color = "black" if np.isnan(value) or value > middle else "white"
        text = "not run" if np.isnan(value) else f"{value:.4f}{marks.get(points[i][j], '')}"
        axes.text(j, i, text, ha="center", va="center", color=color, fontsize="small")
    axes.set_yticks(range(len(ticks[0])), ticks[0])
    axes.set_xticks(range(len(ticks[1])), ticks[1])
    figure.colorbar(image, ax=axes)


def epochs_to(curve: Sequence[float], target: float) -> int | None:
    """Epochs until a curve reaches a value."""
    return next((i + 1 for i, value in enumerate(curve) if value >= target), None)


def convergence(
    configs: Sequence[Config], results: Path, output: Path, metrics: Sequence[str] = ()
) -> str:
    """Draws validation over epochs and over seconds, of the first seed, two pictures a metric;
    returns, by the first metric and over all seeds, what it took to the best of the first
    configuration with the same seed, and near it.

    Args:
        configs (list[Config]): The baseline, then others; of grids, the point validation picks.
        results (pathlib.Path): Folder of the result files.
        output (pathlib.Path): The figure's file; its suffix says the format.
        metrics (list[str], optional): Validation metrics. (default: the one that picked the epoch)
    """
    found = trained(configs, results)
    if len(found) > len(LINES):
        raise ValueError(f"a figure tells {len(LINES)} lines apart (got {len(found)})")
    names, seed = labels([result.config for result in found]), min(found[0].seeds)
    metrics = metrics or [found[0].config.metric()]
    of_metrics = [[_curves(result, metric) for result in found] for metric in metrics]
    figure, all_axes = plt.subplots(
        len(metrics), 2, figsize=(9, 1 + 2.5 * len(metrics)), sharex="col", sharey="row",
        squeeze=False, layout="constrained",
    )  # fmt: skip
    for metric, curves, axes in zip(metrics, of_metrics, all_axes, strict=True):
        for runs, name, line in zip(curves, names, LINES, strict=False):
            if seed in runs:
                curve, seconds = runs[seed]
                epoch = np.arange(1, len(curve) + 1)
                style = {**line, "markevery": max(1, len(curve) // 8), "label": name}
                axes[0].plot(epoch, curve, **style)
                axes[1].plot(epoch * seconds, curve, **style)
        for each in axes:
            each.axhline(max(curves[0][seed][0]), color="0.4", linewidth=0.8)
        axes[0].set_ylabel(f"validation {metric}")
    all_axes[-1, 0].set_xlabel("epochs")
    all_axes[-1, 1].set_xlabel("seconds of training")
    title = f"{found[0].config.content['dataset']}, seed {seed}"
    all_axes[0, 0].set_title(title, fontsize="medium")
    all_axes[0, 0].legend()
    figure.savefig(output, dpi=200)
    plt.close(figure)

    rows, curves = [], of_metrics[0]
    for runs, name in zip(curves, names, strict=True):
        both = sorted(runs.keys() & curves[0].keys())
        row = [
            name, _text([max(curve) for curve, _ in runs.values()]),
            _text([len(curve) for curve, _ in runs.values()], 0),
            _text([seconds for _, seconds in runs.values()], 3),
        ]  # fmt: skip
        for share in (NEAR, 1.0):
            counts = {n: epochs_to(runs[n][0], share * max(curves[0][n][0])) for n in both}
            reached = [(k, k * runs[n][1]) for n, k in counts.items() if k is not None]
            row.append(f"{len(reached)} of {len(both)}")
            row += [_text(list(values), 0) for values in zip(*reached, strict=True)] or ["", ""]
        rows.append(row)
    header = [
        "run", f"best {metrics[0]}", "epochs", "seconds an epoch",
        f"seeds that reach {NEAR:.0%} of the first's best", "epochs to it", "seconds to it",
        "seeds that reach all of it", "epochs to it", "seconds to it",
    ]  # fmt: skip
    return format_table(header, rows)


def _curves(result: Result, metric: str) -> dict[int, tuple[list[float], float]]:
    """Of every seed, a validation metric by epoch, and the seconds of an epoch's training."""
    curves = {}
    for seed, run in zip(result.seeds, result.runs, strict=True):
        history = run["history"]
        if f"validation {metric}" not in history:
            raise ValueError(
                f"the result of '{result.config.path.stem}' holds no {metric} of its epochs, only "
                f"{sorted(name for name in history if name != 'epochs')}"
            )
        curves[seed] = history[f"validation {metric}"], run["seconds_per_epoch"]["train"]
    return curves


def trained(configs: Sequence[Config], results: Path) -> list[Result]:
    """What there is of the configurations that train, of one data set.

    Raises:
        ValueError: If no run of one has finished, none trains, or data sets differ.
    """
    found = [Result.read(config, results) for config in configs]
    for result in found:
        if not result.runs:
            raise ValueError(f"no run of '{result.config.path.stem}' has finished")
    found = [result for result in found if result.runs[0]["history"]["epochs"]]
    if not found:
        raise ValueError("none of the configurations trains")
    check_same_data([result.config for result in found])
    return found


def dots(
    configs: Sequence[Config],
    results: Path,
    metrics: Sequence[str],
    output: Path,
    normalize: bool = False,
) -> str:
    """Draws test metrics of every configuration, each in a picture of its own, with their standard
    deviations and what is published; returns the numbers as a table. They are of the seeds that all
    configurations of a model have.

    Args:
        configs (list[Config]): Configurations of one data set; of grids, the point that validation
            picks.
        results (pathlib.Path): Folder of the result files.
        metrics (list[str]): The test metrics.
        output (pathlib.Path): The figure's file; its suffix says the format.
        normalize (bool, optional): Whether to divide by the best mean of a model's configurations;
            nothing published is then shown. (default: :obj:`False`)
    """
    found = trained(configs, results)
    names = labels([result.config for result in found])
    models = [str(result.config.content["model"]) for result in found]
    order = list(dict.fromkeys(models))
    for model in order:
        places = [i for i, other in enumerate(models) if other == model]
        seeds = set.intersection(*(set(found[i].seeds) for i in places))
        if not seeds:
            raise ValueError(f"the configurations of {model} have no seed in common")
        for i in places:
            found[i] = found[i].of_seeds(seeds)
    width = 0.08 * max(map(len, names)) + 3.5 * len(metrics)
    figure, all_axes = plt.subplots(
        1, len(metrics), figsize=(width, 1 + 0.3 * len(found)), sharey=True, squeeze=False,
        layout="constrained",
    )  # fmt: skip
    header = ["run", "seeds"]
    rows = [[name, str(len(result.runs))] for name, result in zip(names, found, strict=True)]
    for metric, axes in zip(metrics, all_axes[0], strict=True):
        values = [result.values(metric) for result in found]
        published = [
            [b[metric] for b in result.config.content.get("published") or [] if metric in b]
            for result in found
        ]
        shown = metric
        if normalize:
            published = [[] for _ in found]
            shown = f"{metric} / best"
            best = dict.fromkeys(models, 0.0)
            for model, ours in zip(models, values, strict=True):
                best[model] = max(best[model], mean_and_std(ours)[0])
            values = [[x / best[m] for x in ours] for m, ours in zip(models, values, strict=True)]
        for place, (model, ours, theirs) in enumerate(zip(models, values, published, strict=True)):
            mean, std = mean_and_std(ours)
            style = LINES[order.index(model) % len(LINES)]
            axes.errorbar(
                mean, place, xerr=std or None, capsize=3, color=style["color"],
                marker=style["marker"],
            )  # fmt: skip
            axes.plot(theirs, [place] * len(theirs), "k|", markersize=12)
            rows[place] += [_text(ours), ", ".join(f"{value:.4f}" for value in theirs)]
        header += [shown, "published"]
        axes.grid(axis="x", color="0.85")
        axes.set_axisbelow(True)
        axes.set_xlabel(shown + ("\n(upright lines: published)" if any(published) else ""))
    all_axes[0, 0].set_yticks(range(len(names)), names)
    all_axes[0, 0].invert_yaxis()
    figure.suptitle(str(found[0].config.content["dataset"]), fontsize="medium")
    figure.savefig(output, dpi=200)
    plt.close(figure)
    return format_table(header, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("configs", nargs="+", type=Path, metavar="CONFIG", help="YAML files")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument(
        "--metric", nargs="+", metavar="METRIC",
        help="several but for a sweep (default: the one that picks of a convergence, else ndcg@20)",
    )  # fmt: skip
    parser.add_argument("--baseline", type=Path, metavar="CONFIG", help="beside a sweep")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="figure, .pdf, .png or .svg (default: KIND.pdf)"
    )
    arguments = parser.parse_args()
    output = arguments.output or Path(f"{arguments.kind}.pdf")
    if not output.parent.is_dir():
        parser.error(f"there is no folder '{output.parent}'")
    if output.suffix[1:].lower() not in FigureCanvasBase.get_supported_filetypes():
        parser.error(f"--output needs a suffix such as .pdf, .png or .svg (got '{output}')")
    if arguments.kind != "sweep" and arguments.baseline:
        parser.error("--baseline is of a sweep")
    metrics = arguments.metric or ["ndcg@20"]
    if arguments.kind == "sweep" and len(metrics) > 1:
        parser.error(f"a sweep shows one metric (got {', '.join(metrics)})")
    try:
        configs = [Config.read(path) for path in arguments.configs]
        if arguments.kind == "sweep":
            base = Config.read(arguments.baseline) if arguments.baseline else None
            print(sweep(configs, arguments.results, metrics[0], base, output))
        elif arguments.kind == "convergence":
            print(convergence(configs, arguments.results, output, arguments.metric or []))
        else:
            normalize = arguments.kind == "normalized"
            print(dots(configs, arguments.results, metrics, output, normalize))
    except (ValueError, FileNotFoundError) as error:
        parser.error(str(error))
    print(f"\n{output}")


if __name__ == "__main__":
    main()
