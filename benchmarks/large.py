"""LightGCN on a generated graph of a large shop's size: seconds and peak memory of every stage.

``python benchmarks/large.py``
``python benchmarks/large.py --users 100000 --items 20000 --interactions 2000000``
"""

from __future__ import annotations

import argparse
from statistics import median

import torch
from clock import Clock, memory
from ranking import generate_pairs
from torch_geometric.data import HeteroData

from pyg_mmrec.evaluation import FullRanking
from pyg_mmrec.nn.backbones import LightGCN
from pyg_mmrec.nn.objectives import Objective
from pyg_mmrec.retrieval import InnerProduct, top_k
from pyg_mmrec.table import format_table
from pyg_mmrec.training import TripletSampler, tune_process


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--users", type=int, default=1_000_000)
    parser.add_argument("--items", type=int, default=200_000)
    parser.add_argument("--interactions", type=int, default=20_000_000)
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=5, help="after one that is not timed")
    parser.add_argument("--ranked", type=int, default=10_000, help="users evaluated, and exported")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu", help="memory is the host's (default: cpu)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    tune_process()
    device = torch.device(arguments.device)
    clock, rows = Clock(device), []

    def tell(stage: str, seconds: float) -> None:
        rows.append([stage, f"{seconds:.2f}", f"{memory()[1] / 2**30:.2f}"])
        print(f"{stage}: {seconds:.2f} s", flush=True)

    sizes = (arguments.users, arguments.items)
    generator = torch.Generator().manual_seed(0)
    draws = torch.Generator(device).manual_seed(0)
    start = clock.now()
    train, held_out = generate_pairs(
        *sizes, arguments.interactions, arguments.interactions // 20, generator
    )
    held_out = held_out[:, held_out[0].argsort(stable=True)]
    ranked = held_out[0].unique_consecutive()[: arguments.ranked]
    held_out = held_out[:, held_out[0] <= ranked[-1]]
    train, held_out, ranked = (ids.to(device) for ids in (train, held_out, ranked))
    data = HeteroData()
    data["user"].num_nodes, data["item"].num_nodes = sizes
    data["user", "interacts", "item"].edge_index = train
    tell("generating interactions", clock.now() - start)

    with clock.part("graph"):
        backbone = LightGCN(*sizes, arguments.channels, arguments.layers).to(device)
        graph = backbone.graph(data)
    tell("building the normalised graph", clock.seconds["graph"])
    with clock.part("sampler"):
        batches = TripletSampler(train, *sizes).epoch(arguments.batch_size, draws)
    tell("drawing all negatives of an epoch", clock.seconds["sampler"])

    objective = Objective(backbone)
    optimizer = torch.optim.Adam(objective.parameters(), fused=True)
    seconds = []
    for _ in range(1 + arguments.steps):
        start = clock.now()
        sum(objective(graph, next(batches)).values()).backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(clock.now() - start)
    tell("a training step on the full graph", median(seconds[1:]))

    objective.eval()
    with clock.part("vectors"), torch.no_grad():
        score = InnerProduct(*backbone.vectors(backbone(graph)))
    tell("all final vectors", clock.seconds["vectors"])
    with clock.part("evaluator"):
        ranking = FullRanking(held_out, train, *sizes)
    tell("preparing the evaluation", clock.seconds["evaluator"])
    with clock.part("evaluate"):
        ranking(score)
    tell(f"ranking all items for {ranked.numel()} users", clock.seconds["evaluate"])
    del ranking
    with clock.part("export"):
        top_k(score, ranked, 20, exclude=train)
    tell(f"top 20 unseen items of {ranked.numel()} users", clock.seconds["export"])
    print("\n", format_table(["stage", "seconds", "peak GiB so far"], rows), sep="")


if __name__ == "__main__":
    main()
