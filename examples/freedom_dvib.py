"""FREEDOM with and without DVIB: the main job of this library.

Trains FREEDOM, FREEDOM with constant noise (DVIB_c) and with adaptive noise (DVIB_a), and prints
one table. Without arguments it takes the embedded data set and runs offline in under two minutes;
``--root data --dataset baby`` takes a folder of your own.
"""

import argparse
import sys

import torch

from pyg_mmrec.cli import parse_settings
from pyg_mmrec.experiment import Experiment
from pyg_mmrec.table import format_table, mean_and_std
from pyg_mmrec.training import tune_process

# reg_weight and edge_dropout: picked by validation Recall@20 of plain FREEDOM, among 9 settings.
# Modality weights and learning rate: set by hand, after runs that had shown test metrics too.
PLANTED_OPTIONS = {
    "model.modality_weights": "image:0.5,text:0.5",
    "model.edge_dropout": "0.5",
    "model.reg_weight": "0.3",
    "train.learning_rate": "0.005",
}
METHODS = {"FREEDOM": "none", "FREEDOM + DVIB_c": "dvib-c", "FREEDOM + DVIB_a": "dvib-a"}
COLUMNS = [f"{name}@{k}" for k in (5, 20) for name in ("recall", "ndcg", "precision", "map")]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", default="data", help="folder of data set folders")
    parser.add_argument("--dataset", default="planted", help="a folder's name, or 'planted'")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, … (default: cpu)")
    parser.add_argument("--seeds", type=int, default=1, help="number of seeds to average over")
    parser.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="SECTION.OPTION=VALUE",
        help="options for all three, e.g. model.reg_weight=0 train.epochs=50",
    )
    arguments = parser.parse_args()
    if arguments.seeds < 1:
        parser.error(f"'--seeds' needs to be a positive integer (got {arguments.seeds})")
    tune_process()
    options = dict(PLANTED_OPTIONS) if arguments.dataset.startswith("planted") else {}

    rows = []
    try:
        options.update(parse_settings(arguments.set))
        for label, method in METHODS.items():
            results = []
            for seed in range(arguments.seeds):
                experiment = Experiment(
                    "FREEDOM",
                    dataset=arguments.dataset,
                    root=arguments.root,
                    method=method,
                    options=options,
                    seed=seed,
                    device=arguments.device,
                )
                print(f"{label}, seed {seed}", file=sys.stderr)
                results.append(experiment.run())
            tests = [result["metrics"]["test"] for result in results]
            seconds = [result["seconds_per_epoch"] for result in results]
            rows.append(
                [label]
                + [f"{mean_and_std([test[key] for test in tests])[0]:.4f}" for key in COLUMNS]
                + [f"{mean_and_std([s['train'] + s['validation'] for s in seconds])[0]:.3f}"]
            )
    except (ValueError, OSError, ImportError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(
        f"\nTest metrics on '{arguments.dataset}' at the best validation epoch, "
        f"{arguments.seeds} seed(s), {torch.get_num_threads()} threads"
    )
    print(format_table(["model", *COLUMNS, "s/epoch"], rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
