"""Tells whether the bottlenecks of IBMRec find what is planted in generated data.

FIB should lower how much the projected modalities depend on feature columns that have nothing to do
with taste, GIB should give wrong item-item edges a lower keep probability than right ones. In both
cases the truth is known, see ``PlantedDataset``::

    python benchmarks/planted_truth.py --output benchmarks/results/planted_truth.json

The output file is written after every seed; seeds that it has are not run again.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from scipy.stats import mannwhitneyu, t
from torch import Tensor
from torch_geometric import seed_everything
from torch_geometric.data import HeteroData

from pyg_mmrec.data import Adjacency, PlantedDataset
from pyg_mmrec.data.graph import SIMILAR
from pyg_mmrec.nn.backbones import FREEDOM, VBPR, ContentBackbone, VLightGCN
from pyg_mmrec.nn.losses import hsic
from pyg_mmrec.nn.objectives import FIB, GIB, Objective
from pyg_mmrec.training import Trainer, TrainingOptions

COLUMNS = ("taste", "irrelevant", "noise")  # as `column_kind` counts them
BACKBONES: dict[str, type[ContentBackbone]] = {"VLightGCN": VLightGCN, "VBPR": VBPR}
FIB_WEIGHTS = (1.0, 10.0, 100.0)
# Item graph, and epochs of the backbone alone before those with GIB.
GIB_CASES = (("planted", 10), ("planted", 0), ("own", 10))
GIB_EPOCHS = 12
# Chosen on the seeds 100, 101 and 102.
TRAINING: dict[str, dict[str, dict[str, Any]]] = {
    "small": {
        "fib": {"batch_size": 1024, "learning_rate": 2e-3, "epochs": 20},
        "gib": {"batch_size": 1024, "learning_rate": 2e-3},
    },
    "tiny": {
        "fib": {"batch_size": 256, "learning_rate": 5e-3, "epochs": 30},
        "gib": {"batch_size": 256, "learning_rate": 3e-3},
    },
}


def dependence(z: Tensor, x: Tensor) -> float:
    """HSIC, unbiased and divided by what both have with themselves: 0 if independent, at most 1.

    Columns are centred first: the kernel compares directions of rows, as seen from the mean.
    """
    z, x = z - z.mean(0), x - x.mean(0)
    with_itself = hsic(z, z, unbiased=True) * hsic(x, x, unbiased=True)
    return float(hsic(z, x, unbiased=True) / with_itself.sqrt())


@torch.no_grad()
def dependence_by_columns(trained: Trainer) -> dict[str, dict[str, float]]:
    """Dependence of each modality's projection on each kind of its columns."""
    data, projected = trained.data, trained.backbone.content(trained.graph)
    return {
        kind: {
            name: dependence(z, data[name].x[:, data[name].column_kind == number])
            for name, z in projected.items()
        }
        for number, kind in enumerate(COLUMNS)
    }


def known_edges(data: HeteroData, k: int = 5, seed: int = 0) -> tuple[Adjacency, Tensor]:
    """An item graph of ``k`` right and ``k`` wrong edges into every item, with equal weights: from
    the nearest by taste, and from random ones whose taste has a cosine below 0.3.

    Returns:
        tuple: The graph, and which of its edges are right, ``[num_edges]``.
    """
    taste = data["item"].taste
    n = taste.size(0)
    cosine = (taste @ taste.t()).fill_diagonal_(-2.0)
    near = cosine.topk(k).indices
    order = torch.rand(n, n, generator=torch.Generator().manual_seed(seed))
    far = order.masked_fill(cosine >= 0.3, -1.0).fill_diagonal_(-1.0).topk(k).indices
    source = torch.cat([near, far], 1).flatten()
    edge_index = torch.stack([source, torch.arange(n).repeat_interleave(2 * k)])
    weight = torch.full((source.numel(),), 1 / (2 * k))
    graph = Adjacency.from_edge_index(edge_index, weight, size=(n, n))
    source, target = graph.edge_index
    return graph, (near[target] == source[:, None]).any(1)


def edge_auc(keep: Tensor, right: Tensor, target: Tensor) -> dict[str, float]:
    """How often a right edge has a higher keep probability than a wrong one, ties counted half: of
    all pairs, and of the pairs that lead to the same item, whose weights compete.
    """
    good, bad = keep[right], keep[~right]
    total = float(mannwhitneyu(good.numpy(), bad.numpy()).statistic)
    i, j = (target[right][:, None] == target[~right]).nonzero().t()
    higher = (good[i] > bad[j]).double() + (good[i] == bad[j]).double() / 2
    return {
        "auc": total / (good.numel() * bad.numel()),
        "auc_same_item": float(higher.mean()),
        "keep_right": float(good.mean()),
        "keep_wrong": float(bad.mean()),
        "share_right": float(right.double().mean()),
    }


def trainer(
    objective: Objective, data: HeteroData, item_graph: Adjacency | None = None, **options: Any
) -> Trainer:
    """A trainer that keeps the best epoch of all, maybe on another item graph."""
    options = {"patience": options["epochs"], **options}
    made = Trainer(objective, data, TrainingOptions(**options), progress=False)
    if item_graph is not None:
        adjacency = {**made.graph.adjacency, SIMILAR: item_graph}
        made.graph = made.graph.replace(adjacency=adjacency)
    return made


def ranking(trained: Trainer) -> dict[str, float]:
    metrics = trained.evaluate("test")
    return {name: metrics[name] for name in ("recall@20", "ndcg@20")}


def run_fib(
    seed: int, size: str = "small", backbone: str = "VLightGCN", weight: float = 100.0
) -> dict[str, Any]:
    """Trains with FIB, at weight 0 without, and measures on what the projections depend."""
    data = PlantedDataset(size, seed=seed)[0]
    seed_everything(seed)
    model = BACKBONES[backbone].from_data(data)
    objective = Objective(model, *([FIB(weight)] if weight else []))
    training = trainer(objective, data, seed=seed, **TRAINING[size]["fib"])
    untrained = dependence_by_columns(training)
    history = training.fit()
    return {
        "seed": seed,
        "backbone": backbone,
        "weight": weight,
        "untrained": untrained,
        "dependence": dependence_by_columns(training),
        "best_epoch": history.best_epoch,
        **ranking(training),
    }


def run_gib(
    seed: int, size: str = "small", item_graph: str = "planted", warm_epochs: int = 10
) -> dict[str, Any]:
    """Trains FREEDOM alone, then with GIB, and compares the keep probabilities of right and wrong
    edges; beside it FREEDOM without GIB for as many epochs.

    The item graph is that of :func:`known_edges`, or FREEDOM's own; of the latter, edges are right
    if the tastes of their ends have a cosine above 0.5.
    """
    data = PlantedDataset(size, seed=seed)[0]
    seed_everything(seed)
    backbone = FREEDOM.from_data(data)
    known, right = known_edges(data, seed=seed) if item_graph == "planted" else (None, None)
    options = {"seed": seed, **TRAINING[size]["gib"]}
    if warm_epochs:
        trainer(Objective(backbone), data, known, epochs=warm_epochs, **options).fit()
    plain = trainer(Objective(copy.deepcopy(backbone)), data, known, epochs=GIB_EPOCHS, **options)
    gib = GIB()
    training = trainer(Objective(backbone, gib), data, known, epochs=GIB_EPOCHS, **options)

    def measure() -> dict[str, float]:
        with torch.no_grad():
            (source, target), keep = gib.keep_probability(backbone, training.graph)
        taste = data["item"].taste
        is_right = (taste[source] * taste[target]).sum(1) > 0.5 if right is None else right
        other = source != target
        return edge_auc(keep[other], is_right[other], target[other])

    untrained = measure()
    history = training.fit()
    plain.fit()
    return {
        "seed": seed,
        "item_graph": item_graph,
        "warm_epochs": warm_epochs,
        "untrained": untrained,
        **measure(),
        "best_epoch": history.best_epoch,
        **ranking(training),
        "without": ranking(plain),
    }


def run_seed(seed: int, size: str) -> dict[str, list[dict[str, Any]]]:
    """All runs of a seed."""
    fib = [
        timed(run_fib, seed, size, backbone, weight)
        for backbone in BACKBONES
        for weight in (0.0, *FIB_WEIGHTS)
    ]
    return {"fib": fib, "gib": [timed(run_gib, seed, size, *case) for case in GIB_CASES]}


def timed(run: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    start = time.perf_counter()
    return {**run(*arguments), "seconds": time.perf_counter() - start}


def confidence_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float, float]:
    """Mean, lower and upper end of the t interval."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, -math.inf, math.inf
    half = t.ppf((1 + level) / 2, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return mean, mean - half, mean + half


def shown(values: Sequence[float]) -> str:
    return "{:.3f} [{:.3f}, {:.3f}]".format(*confidence_interval(values))


def fib_table(rows: list[dict[str, Any]]) -> list[str]:
    """Dependence, mean of the modalities, without FIB and what FIB changes, seed by seed."""
    lines = [
        "| backbone | weight | taste columns | irrelevant columns | noise columns | recall@20 |",
        "| --- | --- | --- | --- | --- | --- |",
    ]

    def by_column(row: dict[str, Any], state: str = "dependence") -> list[float]:
        return [statistics.fmean(row[state][kind].values()) for kind in COLUMNS]

    for backbone in dict.fromkeys(row["backbone"] for row in rows):
        ours = [row for row in rows if row["backbone"] == backbone]
        plain = {row["seed"]: row for row in ours if row["weight"] == 0}
        untrained = zip(*(by_column(row, "untrained") for row in plain.values()), strict=True)
        lines.append(f"| {backbone} | untrained | {' | '.join(map(shown, untrained))} | |")
        for weight in dict.fromkeys(row["weight"] for row in ours):
            found = []
            for row in ours:
                if row["weight"] == weight:
                    values = [*by_column(row), row["recall@20"]]
                    base = [*by_column(plain[row["seed"]]), plain[row["seed"]]["recall@20"]]
                    if weight:
                        values = [a - b for a, b in zip(values, base, strict=True)]
                    found.append(values)
            label = f"{weight:g}, change" if weight else "0"
            lines.append(
                f"| {backbone} | {label} | {' | '.join(map(shown, zip(*found, strict=True)))} |"
            )
    return lines


def gib_table(rows: list[dict[str, Any]]) -> list[str]:
    """Of every case the AUC of the mask, and what GIB changes in ranking, seed by seed."""
    lines = [
        "| item graph | epochs before GIB | right edges | AUC, untrained mask | AUC "
        "| AUC, edges of an item | keep right | keep wrong | recall@20 without | change |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for case in dict.fromkeys((row["item_graph"], row["warm_epochs"]) for row in rows):
        ours = [row for row in rows if (row["item_graph"], row["warm_epochs"]) == case]
        cells = [
            f"{statistics.fmean(row['share_right'] for row in ours):.3f}",
            shown([row["untrained"]["auc"] for row in ours]),
            shown([row["auc"] for row in ours]),
            shown([row["auc_same_item"] for row in ours]),
            f"{statistics.fmean(row['keep_right'] for row in ours):.3f}",
            f"{statistics.fmean(row['keep_wrong'] for row in ours):.3f}",
            shown([row["without"]["recall@20"] for row in ours]),
            shown([row["recall@20"] - row["without"]["recall@20"] for row in ours]),
        ]
        lines.append(f"| {case[0]} | {case[1]} | {' | '.join(cells)} |")
    return lines


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", choices=list(TRAINING), default="small")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(10)))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path, help="keep the result in this JSON file")
    options = parser.parse_args(arguments)

    torch.set_num_threads(options.threads)
    config = {
        "size": options.size,
        "training": TRAINING[options.size],
        "fib_weights": list(FIB_WEIGHTS),
        "gib_epochs": GIB_EPOCHS,
    }
    result: dict[str, Any] = {
        "config": config,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "fib": [],
        "gib": [],
    }
    if options.output and options.output.exists():
        result = json.loads(options.output.read_text(encoding="utf-8"))
        if result["config"] != config:
            parser.error(f"'{options.output}' is the result of another configuration")
    done = {row["seed"] for row in result["gib"]}
    for seed in options.seeds:
        if seed in done:
            continue
        for name, rows in run_seed(seed, options.size).items():
            result[name] += rows
        if options.output:
            partial = options.output.with_suffix(".partial")
            partial.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
            partial.replace(options.output)
        print(f"seed {seed} is done", flush=True)
    tables = [*fib_table(result["fib"]), "", *gib_table(result["gib"])]
    seeds = sorted({row["seed"] for row in result["gib"]})
    print(f"\n{options.size}, seeds {seeds}, mean and 95 % interval\n", *tables, sep="\n")
    return result


if __name__ == "__main__":
    main()
