"""The command ``pyg-mmrec``."""

from __future__ import annotations

import argparse
import logging
import sys
import traceback
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from pyg_mmrec import __version__
from pyg_mmrec.data import statistics
from pyg_mmrec.experiment import BACKBONES, COMBINATIONS, METHODS, PRESETS, Experiment
from pyg_mmrec.table import format_table, mean_and_std
from pyg_mmrec.training import tune_process

#: Files by which a run goes on, or is known to have finished.
KEPT = ("checkpoint.safetensors", "result.json")


def make_parser() -> argparse.ArgumentParser:
    """The arguments of the command."""
    parser = argparse.ArgumentParser(
        prog="pyg-mmrec", description="Multimodal recommendation for PyTorch Geometric."
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser(
        "train", help="train a model, print its metrics, write its results",
        description="Train a model on a data set and measure it on all items.",
        epilog=f"models: {', '.join(sorted(BACKBONES))}; methods: none, "
        f"{', '.join(sorted({**METHODS, **COMBINATIONS}))}, joined by '+'; your own as "
        "module:Class",
    )  # fmt: skip
    train.add_argument("--model", required=True, help="the backbone, e.g. FREEDOM")
    train.add_argument(
        "--dataset", default="planted",
        help="folder below --root, or 'planted' or 'planted-tiny' (default: planted)",
    )  # fmt: skip
    train.add_argument("--root", default="data", help="folder of data sets (default: data)")
    train.add_argument("--method", default="none", help="training method (default: none)")
    train.add_argument("--preset", default="paper", help=f"{' or '.join(PRESETS)}")
    train.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="SECTION.OPTION=VALUE",
        help="options of the classes, e.g. model.num_layers=3 train.batch_size=1024",
    )  # fmt: skip
    seeds = train.add_mutually_exclusive_group()
    seeds.add_argument("--seed", type=int, default=0, help="seed of the run (default: 0)")
    seeds.add_argument("--seeds", type=int, metavar="N", help="run seeds 0 to N - 1")
    train.add_argument(
        "--start-from", metavar="DIR", help="folder of a finished run to take the weights from"
    )
    train.add_argument("--out", type=Path, metavar="DIR", help="folder for the results")
    train.add_argument("--resume", action="store_true", help="go on with the run in --out")
    train.add_argument("--device", default="cpu", help="cpu, cuda, … (default: cpu)")
    train.add_argument("--quiet", action="store_true", help="no progress bar")
    return parser


def parse_settings(settings: Sequence[str]) -> dict[str, str]:
    """What ``--set`` was given, by name.

    Raises:
        ValueError: If a setting is no ``SECTION.OPTION=VALUE``.
    """
    for text in settings:
        if "=" not in text:
            raise ValueError(f"'--set' takes SECTION.OPTION=VALUE (got '{text}')")
    return dict(text.split("=", 1) for text in settings)


def train(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Runs ``pyg-mmrec train``."""
    if arguments.resume and arguments.out is None:
        raise ValueError("'--resume' needs '--out', the folder of the run to go on with")
    if arguments.seeds is not None and arguments.seeds < 1:
        raise ValueError(f"'--seeds' needs to be a positive integer (got {arguments.seeds})")
    options = parse_settings(arguments.set)
    many = arguments.seeds is not None
    results: list[dict[str, Any]] = []
    for seed in range(arguments.seeds) if many else [arguments.seed]:
        experiment = Experiment(
            model=arguments.model,
            dataset=arguments.dataset,
            root=arguments.root,
            method=arguments.method,
            preset=arguments.preset,
            options=options,
            seed=seed,
            start_from=arguments.start_from,
            device=arguments.device,
        )
        out = arguments.out
        if many and out is not None:
            out = out / f"seed-{seed}"
        data = experiment.load()
        if not arguments.quiet:
            if not results:
                print(describe(arguments.dataset, statistics(data)), file=sys.stderr)
            if arguments.resume and not any((out / name).exists() for name in KEPT):
                print(f"nothing to go on with in '{out}': a new run", file=sys.stderr)
        results.append(
            experiment.run(out, arguments.resume, progress=not arguments.quiet, data=data)
        )
    return results


def describe(name: str, counts: Mapping[str, Any]) -> str:
    """What a run is trained on, of :func:`~pyg_mmrec.data.statistics`, in one line."""
    splits = " / ".join(str(counts[split]) for split in ("training", "validation", "test"))
    dropped = counts["dropped"]
    left_out = [f"{n} duplicates" for n in [dropped.get("duplicate_pairs", 0)] if n]
    left_out += [
        f"{n} {split} interactions of users without training"
        for split in ("validation", "test")
        for n in [dropped.get(f"{split}_interactions", 0)]
        if n
    ]
    features = [
        f"{modality} {'without features' if item['dim'] is None else item['dim']}"
        + (f" ({item['missing']} items lack it)" if item["missing"] else "")
        for modality, item in counts["modalities"].items()
    ]
    return (
        f"{name}: {counts['users']} users, {counts['items']} items, {splits} interactions"
        + (f" ({', '.join(left_out)} left out)" if left_out else "")
        + f"; {', '.join(features) or 'no modalities'}"
    )


def summarize(results: Sequence[dict[str, Any]]) -> str:
    """The metrics of one run, or their mean and standard deviation over several, as a table."""
    test = results[0]["metrics"]["test"]
    names = list(dict.fromkeys(key.split("@")[0] for key in test))
    ks = list(dict.fromkeys(key.split("@")[1] for key in test))
    rows = []
    for name in names:
        row = [name]
        for k in ks:
            values = [result["metrics"]["test"].get(f"{name}@{k}") for result in results]
            if None in values:
                row.append("-")
                continue
            mean, std = mean_and_std(values)
            row.append(f"{mean:.4f}" if len(results) == 1 else f"{mean:.4f} ± {std:.4f}")
        rows.append(row)
    config = results[0]["config"]
    parts = f" ({' + '.join(config['methods'])})" if "methods" in config else ""
    lines = [
        f"{config['model']}, method {config['method']}{parts}, preset {config['preset']}, on "
        f"{config['dataset']}: test metrics of the best validation epoch"
        + (f", mean ± standard deviation of {len(results)} seeds" if len(results) > 1 else ""),
        format_table(["metric", *(f"@{k}" for k in ks)], rows),
    ]
    seconds = [result["seconds_per_epoch"] for result in results if result["history"]]
    if seconds:
        epochs = ", ".join(str(len(result["history"])) for result in results)
        best = ", ".join(str(result["best_epoch"]) for result in results)
        train_seconds, _ = mean_and_std([part["train"] for part in seconds])
        validation_seconds, _ = mean_and_std([part["validation"] for part in seconds])
        lines.append(
            f"epochs {epochs}; best epoch {best}; seconds per epoch {train_seconds:.3f} training, "
            f"{validation_seconds:.3f} validation"
        )
    return "\n".join(lines)


def _is_raised_in(error: BaseException | None, modules: Collection[str]) -> bool:
    """Whether an error, or what caused it, came about in a call of these modules."""
    packages = {name.split(".")[0] for name in modules} - {"pyg_mmrec"}
    while error is not None:
        for frame, _ in traceback.walk_tb(error.__traceback__):
            if frame.f_globals.get("__name__", "").split(".")[0] in packages:
                return True
        error = error.__cause__
    return False


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    arguments = make_parser().parse_args(argv)
    tune_process()
    if not arguments.quiet:
        logging.basicConfig(format="%(message)s")
        logging.getLogger("pyg_mmrec").setLevel(logging.INFO)  # which index finds neighbours
    try:
        results = train(arguments)
    except (ValueError, OSError, ImportError, FloatingPointError) as error:
        names = [arguments.model, *arguments.method.split("+")]
        if _is_raised_in(error, {name.split(":")[0] for name in names if ":" in name}):
            traceback.print_exc()  # code of the user's own
        print(f"pyg-mmrec: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        folders = [] if arguments.out is None else [arguments.out, *arguments.out.glob("seed-*")]
        kept = any((folder / name).exists() for folder in folders for name in KEPT)
        hint = "'--resume' goes on from the last checkpoint" if kept else "nothing was kept yet"
        print(f"pyg-mmrec: interrupted; {hint}", file=sys.stderr)
        return 130
    print(summarize(results))
    return 0
