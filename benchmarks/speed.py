"""Where the time of a training step goes, beside the common way and beside the machine's limit.

``python benchmarks/speed.py --root data --dataset baby --runs LightGCN:none FREEDOM:none``
``python benchmarks/speed.py --root data --dataset baby_proxy --runs VBPR:none VBPR:fib``
``python benchmarks/speed.py --generate 200000 50000 1000000 --runs LightGCN:none``

Of every backbone and method: milliseconds per step by part, seconds per epoch of training and of
validation, seconds to make the graph, peak memory. Of LightGCN, FREEDOM and LATTICE also

- the *common way*: the same layers, width and batch, written as public toolboxes do, with COO
  products, negative items drawn one by one in Python, raw features as trained parameters, a dense
  item-item similarity and metrics in a loop over users;
- for the first two, the *limit*: the bytes and floating point operations that a step cannot do
  without, over the copy bandwidth and the matrix product rate measured in the same run.

Runs take turns, so that another program on the machine slows all of them alike.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

import torch
from clock import Clock, memory
from common_way import Common
from limits import limits, machine
from ranking import generate_pairs
from torch_geometric.data import HeteroData

from pyg_mmrec.data import Interactions, ModalityFeatures
from pyg_mmrec.data.graph import INTERACTED_BY, INTERACTS
from pyg_mmrec.data.multimodal_dataset import to_hetero_data
from pyg_mmrec.experiment import Experiment, versions
from pyg_mmrec.nn.backbones import EVERY_ROW, Backbone, GatheredTriplets, Triplets
from pyg_mmrec.nn.objectives import Objective
from pyg_mmrec.table import format_table
from pyg_mmrec.training import Trainer, tune_process

RUNS = ["LightGCN:none", "FREEDOM:none", "FREEDOM:dvib-c", "FREEDOM:dvib-a"]
COMMON = ("LightGCN:none", "FREEDOM:none", "LATTICE:none")
PARTS = [
    "sampling", "graph", "project", "propagate", "loss", "method", "backward", "optimizer",
    "second stage",
]  # fmt: skip


# Data --------------------------------------------------------------------------------------------


def load(arguments: argparse.Namespace) -> HeteroData:
    """A data set, or a generated one, maybe with random features."""
    generator = torch.Generator().manual_seed(0)
    widths = dict(text.split(":") for text in arguments.features)
    if arguments.generate is None:
        data = Experiment("MostPop", arguments.dataset, arguments.root).load()
    else:
        num_users, num_items, num_pairs = arguments.generate
        held_out = num_pairs // 20
        train, rest = generate_pairs(num_users, num_items, num_pairs, held_out, generator)
        pairs = torch.cat([train, rest], 1)
        label = torch.zeros(pairs.size(1), dtype=torch.long)
        label[num_pairs:] = 1 + torch.arange(held_out) % 2
        key, order = (pairs[0] * num_items + pairs[1]).sort()
        interactions = Interactions(key // num_items, key % num_items, num_users, num_items)
        features = {
            name: ModalityFeatures(torch.randn(num_items, int(width), generator=generator))
            for name, width in widths.items()
        }
        return to_hetero_data(interactions, label[order], features)
    for name, width in widths.items():
        data[name].x = torch.randn(data["item"].num_nodes, int(width), generator=generator)
    return data


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


# Ours --------------------------------------------------------------------------------------------


class Ours:
    """A backbone with methods, as the library trains it."""

    def __init__(self, experiment: Experiment, data: HeteroData) -> None:
        torch.manual_seed(0)
        objective = experiment.objective(data)
        device = next(objective.parameters()).device
        self.build = Clock(device)
        with self.build.part("graph"):
            self.trainer = Trainer(objective, data, experiment.training_options(), progress=False)
        self.objective: Objective = objective
        self.backbone: Backbone = objective.backbone
        self.device = device
        pairs = data[INTERACTS].edge_index.size(1)
        self.steps = -(-pairs // self.trainer.options.batch_size)

    def epoch_parts(self, steps: int) -> dict[str, float]:
        """Seconds of one step by part, the mean over the first steps of an epoch."""
        trainer, clock = self.trainer, Clock(self.device)
        self.objective.train()
        steps = min(steps, self.steps)
        with clock.part("sampling"):
            batches = list(
                trainer.sampler.epoch(trainer.options.batch_size, trainer.generators["sampler"])
            )
        clock.seconds["sampling"] *= steps / self.steps
        sampling, generator = self.backbone.graph_sampling, trainer.generators["graph"]
        graph = trainer.graph
        for step, batch in enumerate(batches[:steps]):
            draws = sampling == "step" or sampling == "epoch" and step == 0
            before, drawn = generator.get_state(), []
            for scale in self.objective.gradient_scales(step):
                if draws:
                    if sampling == "epoch":  # the same draw, with the present weights
                        generator.set_state(before)
                    with clock.part("graph"):
                        graph = self.backbone.sample_graph(trainer.graph, 0, generator)
                    drawn.append(graph)
                self._step(graph, batch, scale, clock)
            with clock.part("second stage"):
                second = self.objective.second_stage(graph, batch)
                if second:
                    trainer._step("second_adam", second)
            if sampling == "epoch" and draws:
                clock.seconds["graph"] *= steps / self.steps
                graph = drawn[0].detach()
        return {name: value / steps for name, value in clock.seconds.items()}

    def _step(self, graph: Any, batch: Triplets, scale: float, clock: Clock) -> None:
        """What the objective and the trainer do for one factor of the gradient, part by part."""
        backbone, methods = self.backbone, list(self.objective.methods)
        clean_weight = 1.0
        with clock.part("method"):
            for method in methods:
                graph = method.refine(backbone, graph)  # type: ignore[operator]
                clean_weight *= method.clean_weight  # type: ignore[operator]
        few = self.objective._reads_fewer_rows(batch)
        rows = batch.rows if few else EVERY_ROW
        with clock.part("project"):
            by_rows = few and backbone.rowwise
            modality = backbone.project(graph, rows) if by_rows else backbone.project(graph)
        with clock.part("propagate"):
            stages = backbone.forward_from(modality, graph, rows)
        if few:
            batch = GatheredTriplets.of(batch)
        with clock.part("loss"):
            clean = backbone.loss(stages, batch)
            terms = list(clean.values())
            if clean_weight != 1:
                terms = [clean_weight * value for value in terms] if clean_weight != 0 else []
        with clock.part("method"):
            for method in methods:
                more = method.terms(backbone, graph, stages, batch, clean)  # type: ignore[operator]
                terms += more.values()
        with clock.part("backward"):
            (scale * torch.stack(terms).sum()).backward()
        with clock.part("optimizer"):
            self.trainer.optimizers["adam"].step()
            self.trainer._zero_grad()

    def epoch(self, number: int) -> tuple[float, float]:
        """Seconds of training and of validation, as the trainer runs them."""
        seconds = self.trainer._epoch(number)["seconds"]
        return seconds["train"], seconds["validation"]

    def propagation(self) -> tuple[float, float] | None:
        """Seconds of the user-item propagation alone over the full graph, forward and backward."""
        layer = getattr(self.backbone, "propagation", None)
        if layer is None:
            return None
        graph = self.trainer.graph
        tables = [
            getattr(self.backbone, f"{kind}_embedding").weight.detach().clone().requires_grad_()
            for kind in ("user", "item")
        ]
        for _ in range(2):  # the first warms up
            clock = Clock(self.device)
            with clock.part("forward"):
                out = layer(*tables, graph.adjacency[INTERACTS], graph.adjacency[INTERACTED_BY])
            ones = [torch.ones_like(x) for x in out]
            with clock.part("backward"):
                torch.autograd.backward(out, ones)
        return clock.seconds["forward"], clock.seconds["backward"]


# The program -------------------------------------------------------------------------------------


def peak_memory(arguments: argparse.Namespace, name: str, options: Mapping[str, str]) -> float:
    """MiB of a process of its own that trains a few steps and ranks once."""
    command = [sys.executable, __file__, "--peak", name, "--dataset", arguments.dataset]
    command += ["--root", arguments.root, "--device", arguments.device]
    command += ["--threads", str(arguments.threads)]
    if arguments.generate is not None:
        command += ["--generate", *map(str, arguments.generate)]
    if arguments.features:
        command += ["--features", *arguments.features]
    if options:
        command += ["--set", *(f"{key}={value}" for key, value in options.items())]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    return float(done.stdout.split()[-1])


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", default="data", help="folder of data set folders")
    parser.add_argument("--dataset", default="planted", help="a folder's name, or 'planted'")
    parser.add_argument(
        "--generate", nargs=3, type=int, metavar=("USERS", "ITEMS", "PAIRS"),
        help="instead of a data set: training interactions of a long-tailed popularity",
    )  # fmt: skip
    parser.add_argument(
        "--features", nargs="+", default=[], metavar="NAME:WIDTH", help="random features"
    )
    parser.add_argument("--runs", nargs="+", default=RUNS, metavar="MODEL:METHOD")
    parser.add_argument("--set", nargs="+", default=[], help="options, for the runs that have them")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, default=30, help="steps of a breakdown")
    parser.add_argument("--epochs", type=int, default=3, help="epochs of a turn, the first unread")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument(
        "--warm-up", type=int, default=0, metavar="EPOCHS",
        help="epochs to train first: ranking takes longer once held-out items are found",
    )  # fmt: skip
    parser.add_argument(
        "--no-common", action="store_true", help="without the common way, which is on the CPU"
    )
    parser.add_argument("--no-memory", action="store_true", help="without peak memory")
    parser.add_argument("--peak", metavar="MODEL:METHOD", help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, metavar="FILE", help="everything, as JSON")
    return parser


def main() -> None:
    parser = make_parser()
    arguments = parser.parse_args()
    for name, low in (
        ("threads", 1), ("steps", 1), ("epochs", 2), ("turns", 1), ("warm_up", 0),
    ):  # fmt: skip
        value = getattr(arguments, name)
        if value < low:
            option = name.replace("_", "-")
            parser.error(f"'--{option}' needs to be {low} or more (got {value})")
    torch.set_num_threads(arguments.threads)
    tune_process()
    warnings.filterwarnings("ignore", "Sparse invariant checks")  # of the common way's matrices
    names = [arguments.peak.removesuffix(" (common)")] if arguments.peak else arguments.runs
    beside = [] if arguments.no_common or arguments.peak else [n for n in names if n in COMMON]
    if beside and arguments.device != "cpu":
        parser.error(
            f"'--device' needs to be cpu beside the common way (got {arguments.device}): add "
            f"--no-common"
        )
    try:
        experiments = make_experiments(
            names, arguments.dataset, arguments.root, arguments.set, arguments.device
        )
        data = load(arguments)
    except (ValueError, FileNotFoundError) as error:
        parser.error(str(error))
    ours = {name: Ours(experiment, data) for name, experiment in experiments.items()}
    if arguments.peak:
        if arguments.peak in ours:
            ours[arguments.peak].epoch_parts(5)
            ours[arguments.peak].trainer.evaluate("val")
        else:
            Common(ours[names[0]].trainer, data).epoch(0)
        print(memory()[1] / 2**20)
        return
    for run in ours.values():
        for number in range(arguments.warm_up):
            run.epoch(number)
    common = {name: Common(ours[name].trainer, data) for name in beside}
    rates = machine(torch.device(arguments.device))

    parts: dict[str, list[dict[str, float]]] = {name: [] for name in ours}
    epochs: dict[str, list[tuple[float, float]]] = {
        name: [] for name in [*ours, *(f"{name} (common)" for name in common)]
    }
    propagation: dict[str, list[tuple[float, float]]] = {name: [] for name in ours}
    for _ in range(arguments.turns):
        for name, run in ours.items():
            run.epoch_parts(2)
            parts[name].append(run.epoch_parts(arguments.steps))
            numbers = range(arguments.warm_up, arguments.warm_up + arguments.epochs)
            epochs[name] += [run.epoch(number) for number in numbers][1:]
            alone = run.propagation()
            if alone is not None:
                propagation[name].append(alone)
        for name, other in common.items():
            epochs[f"{name} (common)"].append(other.epoch(0))

    def typical(name: str, *which: int) -> float:
        return median(sum(epoch[i] for i in which) for epoch in epochs[name])

    print(f"{arguments.threads} threads, {rates['bandwidth'] / 1e9:.1f} GB/s copied, "
          f"{rates['flops'] / 1e9:.0f} GFLOP/s; milliseconds of a step, by part")  # fmt: skip
    rows = []
    for name in ours:
        values = [median(part.get(key, 0.0) for part in parts[name]) for key in PARTS]
        rows.append([name, *(f"{1000 * v:.2f}" for v in values), f"{1000 * sum(values):.1f}"])
    print(format_table(["model:method", *PARTS, "all"], rows), "\n")

    rows, peaks = [], {}
    for name in epochs:
        bare = name.removesuffix(" (common)")
        plain = f"{experiments[bare].model}:none"
        step = typical(name, 0) / ours[bare].steps
        row = [name, f"{1000 * step:.1f}", f"{typical(name, 0):.3f}", f"{typical(name, 1):.3f}"]
        for which in ((0,), (0, 1)):
            known = plain in epochs
            row.append(f"{typical(name, *which) / typical(plain, *which):.2f}" if known else "")
        if not arguments.no_memory:
            peaks[name] = peak_memory(arguments, name, experiments[bare].options)
        row.append(f"{peaks[name]:.0f}" if name in peaks else "")
        build = ours[name].build.seconds["graph"] if name in ours else None
        row.append("" if build is None else f"{build:.2f}")
        rows.append(row)
    header = [
        "model:method", "step ms", "train s", "validation s", "train", "epoch", "peak MiB",
        "graph s",
    ]  # fmt: skip
    print("Epochs; 'train' and 'epoch', with validation, as ratios to no method")
    print(format_table(header, rows), "\n")

    rows, least = [], {}
    for name in ours:
        if experiments[name].model not in ("LightGCN", "FREEDOM") or ":none" not in name:
            continue
        least[name] = limits(ours[name].trainer, rates)
        step = typical(name, 0) / ours[name].steps
        forward, backward = (median(parts) for parts in zip(*propagation[name], strict=True))
        limit = least[name]
        milliseconds = [limit["propagation"], forward, backward, limit["step"], step]
        cells = [f"{1000 * value:.2f}" for value in milliseconds]
        cells.insert(3, f"{(forward + backward) / limit['propagation']:.2f}")
        rows.append([name, *cells, f"{step / limit['step']:.2f}"])
    if rows:
        header = [
            "model", "propagation limit ms", "forward", "backward", "ratio", "step limit ms",
            "ours", "ratio",
        ]  # fmt: skip
        print("The machine's limit (full graph; FREEDOM propagates a pruned one)")
        print(format_table(header, rows))
    if arguments.output is not None:
        content = {
            "arguments": vars(arguments), "versions": versions(), "machine": rates, "parts": parts,
            "epochs": epochs, "propagation": propagation, "limits": least, "peak_mib": peaks,
        }  # fmt: skip
        arguments.output.write_text(json.dumps(content, indent=2, default=str) + "\n")


if __name__ == "__main__":
    main()
