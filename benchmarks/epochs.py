"""Seconds per epoch of backbones and methods, in one run: training and validation.

``python benchmarks/epochs.py --root data --dataset baby --set model.reg_weight=0``
``python benchmarks/epochs.py --root data --dataset baby_proxy --runs VBPR:none VBPR:fib``
"""

import argparse
import json
from pathlib import Path
from statistics import median

import torch

from pyg_mmrec.experiment import Experiment, format_table, versions
from pyg_mmrec.training import Trainer, tune_process

RUNS = ["LightGCN:none", "FREEDOM:none", "FREEDOM:dvib-c", "FREEDOM:dvib-a"]


def make_experiments(
    names: list[str], dataset: str, root: str, options: list[str], device: str = "cpu"
) -> dict[str, Experiment]:
    """Backbones with methods, each with those of the given options that they have.

    Raises:
        ValueError: If a name or value is wrong, or no run has an option.
    """
    wanted = dict(text.partition("=")[::2] for text in options)
    taken: set[str] = set()
    experiments = {}
    for name in names:
        model, _, method = name.partition(":")
        where = (model, dataset, root, method or "none")
        own = {}
        for key, value in wanted.items():
            try:
                Experiment(*where, options={key: value})
            except ValueError as error:
                if "there is no option" not in str(error):
                    raise
                reason = str(error)
                continue  # of another run
            own[key] = value
        taken |= set(own)
        experiments[name] = Experiment(*where, options=own, device=device)
    if set(wanted) - taken:
        raise ValueError(reason)
    return experiments


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", default="data", help="folder of data set folders")
    parser.add_argument("--dataset", default="planted", help="a folder's name, or 'planted'")
    parser.add_argument(
        "--runs", nargs="+", default=RUNS, metavar="MODEL:METHOD", help=f"(default: {RUNS})"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=4, help="epochs of a turn, the first unread")
    parser.add_argument("--turns", type=int, default=3, help="turns of every run, interleaved")
    parser.add_argument(
        "--set", nargs="+", default=[], help="options model.x=…, for the runs that have them"
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="raw seconds, as JSON")
    arguments = parser.parse_args()
    try:
        options = [f"train.epochs={arguments.epochs}", *arguments.set]
        runs = make_experiments(arguments.runs, arguments.dataset, arguments.root, options)
    except ValueError as error:
        parser.error(str(error))
    torch.set_num_threads(arguments.threads)
    tune_process()

    seconds: dict[str, list[dict[str, float]]] = {name: [] for name in runs}
    steps: dict[str, int] = {}
    for _ in range(arguments.turns):
        for name, experiment in runs.items():
            data, options = experiment.load(), experiment.training_options()
            trainer = Trainer(experiment.objective(data), data, options, progress=False)
            seconds[name] += [e["seconds"] for e in trainer.fit().epochs[1:]]
            interactions = data["user", "interacts", "item"].edge_index.size(1)
            steps[name] = -(-interactions // options.batch_size)

    def typical(name: str, *parts: str) -> float:
        return median(sum(epoch[part] for part in parts) for epoch in seconds[name])

    rows = []
    for name, experiment in runs.items():
        train, validation = typical(name, "train"), typical(name, "validation")
        row = [name, f"{1000 * train / steps[name]:.1f}", f"{train:.3f}", f"{validation:.3f}"]
        plain = f"{experiment.model}:none"
        for parts in (["train"], ["train", "validation"]):
            known = plain in seconds
            row.append(f"{typical(name, *parts) / typical(plain, *parts):.2f}" if known else "")
        rows.append(row)
    print(f"{arguments.dataset}, {arguments.threads} threads, medians, ratios to no method")
    header = ["model:method", "step ms", "train s", "validation s", "train", "epoch"]
    print(format_table(header, rows))
    if arguments.output is not None:
        content = {"arguments": vars(arguments), "versions": versions(), "seconds": seconds}
        arguments.output.write_text(json.dumps(content, indent=2, default=str) + "\n")


if __name__ == "__main__":
    main()
