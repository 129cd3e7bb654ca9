"""Cosine k-nearest-neighbour graphs: seconds, memory, recall.

``python benchmarks/knn.py --items 20000 --features 384 --index flat dense``
``python benchmarks/knn.py --items 1000000 --features 128 --centers 10000 --index auto``

Every index runs in a process of its own on the same vectors, drawn from ``--centers`` Gaussians;
``dense`` makes the matrix of all cosines, as public toolboxes do. Memory is the process's peak
beyond what it held with the vectors alone; of ours, one copy of the vectors is the index. Recall
compares neighbours with the exact ones of a sample of items.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import faiss
import torch
from clock import memory
from torch import Tensor

from pyg_mmrec.experiment import versions
from pyg_mmrec.table import format_table
from pyg_mmrec.transforms import cosine_knn

DENSE = "dense"
SPREAD = 0.5  # of a cluster, beside centres of spread 1


def draw(items: int, features: int, centers: int) -> Tensor:
    """Vectors around random centres; of 0 centres, without clusters."""
    generator = torch.Generator().manual_seed(0)
    x = torch.empty(items, features)
    means = torch.randn(max(centers, 1), features, generator=generator)
    for part in x.split(65536):
        part.normal_(generator=generator)
        if centers:
            part.mul_(SPREAD)
            part += means[torch.randint(centers, (part.size(0),), generator=generator)]
    return x


def dense(x: Tensor, k: int) -> Tensor:
    """Neighbours ``[n, k]`` from the matrix of all cosines."""
    unit = x / x.norm(dim=1, keepdim=True)
    return (unit @ unit.t()).topk(k).indices


def exact(x: Tensor, rows: Tensor, k: int) -> Tensor:
    """Neighbours ``[len(rows), k]`` of some rows, by products with all."""
    unit = x / x.norm(dim=1, keepdim=True)
    return torch.cat([(q @ unit.t()).topk(k).indices for q in unit[rows].split(256)])


def measure(index: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Builds one graph."""
    torch.set_num_threads(arguments.threads)
    faiss.omp_set_num_threads(arguments.threads)
    x = draw(arguments.items, arguments.features, arguments.centers)
    cosine_knn(x[:100], 1)  # warms up: what libraries need for themselves does not count
    before, start = memory()[0], time.perf_counter()
    if index == DENSE:
        neighbor = dense(x, arguments.k)
    else:
        edge_index, _ = cosine_knn(x, arguments.k, index=index)
    seconds, peak = time.perf_counter() - start, memory()[1]
    result = {"seconds": seconds, "bytes": peak - before, "peak": peak}
    generator = torch.Generator().manual_seed(1)
    rows = torch.randperm(len(x), generator=generator)[: arguments.sample]
    if index != DENSE:
        neighbor = torch.full((len(x), arguments.k), -1)
        place = torch.arange(edge_index.size(1)) - torch.searchsorted(edge_index[1], edge_index[1])
        neighbor[edge_index[1], place] = edge_index[0]
    truth = exact(x, rows, arguments.k)
    found = (truth[:, :, None] == neighbor[rows][:, None, :]).any(2)
    return {**result, "recall": float(found.float().mean())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, default=20_000)
    parser.add_argument("--features", type=int, default=128)
    parser.add_argument("--centers", type=int, default=0, help="clusters (default: none)")
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument(
        "--index", nargs="+", default=["flat", DENSE],
        choices=["flat", "ivf", "hnsw", "auto", DENSE],
    )  # fmt: skip
    parser.add_argument("--repeats", type=int, default=1, help="of every index, in turns")
    parser.add_argument("--sample", type=int, default=1000, help="items to measure recall of")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, metavar="FILE", help="raw figures, as JSON")
    arguments = parser.parse_args()

    found: dict[str, list[dict[str, Any]]] = {index: [] for index in arguments.index}
    for _ in range(arguments.repeats):
        for index in arguments.index:  # a process each, since a peak never falls
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                found[index].append(pool.submit(measure, index, arguments).result())
    copy = arguments.items * arguments.features * 4
    rows = []
    for index, results in found.items():
        best = min(results, key=lambda result: result["seconds"])
        beyond = best["bytes"] - (0 if index == DENSE else copy)
        rows.append([
            index, f"{best['seconds']:.2f}", f"{best['bytes'] / 2**20:.0f}",
            f"{beyond / 2**20:.0f}", f"{best['peak'] / 2**30:.2f}", f"{best['recall']:.4f}",
        ])  # fmt: skip
    print(
        f"{arguments.items} items, {arguments.features} features, {arguments.centers} clusters, "
        f"k = {arguments.k}, {arguments.threads} threads; least of {arguments.repeats}"
    )
    header = ["index", "s", "MiB", "MiB beyond an index copy", "process GiB", "recall"]
    print(format_table(header, rows))
    if arguments.output is not None:
        content = {"arguments": vars(arguments), "versions": versions(), "results": found}
        arguments.output.write_text(json.dumps(content, indent=2, default=str) + "\n")


if __name__ == "__main__":
    main()
