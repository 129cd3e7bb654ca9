"""Compares results of ``run.py`` with those of a first configuration, user by user.

``python benchmarks/compare.py benchmarks/configs/ibmrec/vbpr_lfm2k.yaml
benchmarks/configs/ibmrec/vbpr_ibmrec_lfm2k.yaml``

Every user's metric is averaged over the seeds, then compared between the configurations by a paired
t-test; p-values are corrected for the number of comparisons (Holm).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import numpy.typing as npt
from run import HERE, Config
from safetensors.numpy import load_file
from scipy.stats import ttest_rel
from tabulate import read_results, tabulate

from pyg_mmrec.experiment import mean_and_std

HEADER = ["configuration", "seeds", "metric", "mean ± std", "difference", "p (Holm)"]


def user_means(config: Config, results: Path, metric: str) -> npt.NDArray[np.float64]:
    """Every test user's metric, the mean over the seeds."""
    point, _, _ = read_results(config, results)
    files = sorted(results.glob(f"{config.folder(point)}/seed-*.safetensors"))
    if not files:
        raise FileNotFoundError(f"'{config.path.stem}' has no results of users")
    contents = [load_file(file) for file in files]
    for content in contents:
        if not np.array_equal(content["user"], contents[0]["user"]):
            raise ValueError(f"the seeds of '{config.path.stem}' have other test users")
    return np.mean([content[metric].astype(np.float64) for content in contents], axis=0)


def holm(p_values: list[float]) -> list[float]:
    """Holm's correction for several comparisons."""
    order = np.argsort(p_values)
    corrected = np.empty(len(p_values))
    running = 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = running
    return corrected.tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("configs", nargs="+", type=Path, metavar="CONFIG", help="YAML files")
    parser.add_argument("--metric", nargs="+", default=["recall@20", "ndcg@20"])
    parser.add_argument("--results", type=Path, default=HERE / "results")
    arguments = parser.parse_args()
    base, *others = [Config.read(path) for path in arguments.configs]
    lines = []
    for metric in arguments.metric:
        ours = {
            config: [run["metrics"]["test"][metric] for run in read_results(config, path)[1]]
            for path in [arguments.results]
            for config in (base, *others)
        }
        users = {config: user_means(config, arguments.results, metric) for config in ours}
        p_values = [float(ttest_rel(users[other], users[base]).pvalue) for other in others]
        reference, _ = mean_and_std(ours[base])
        for config, p in zip((base, *others), [None, *holm(p_values)], strict=True):
            mean, std = mean_and_std(ours[config])
            cells = [config.path.stem, str(len(ours[config])), metric, f"{mean:.4f} ± {std:.4f}"]
            cells += (
                ["", ""] if p is None else [f"{100 * (mean / reference - 1):+.1f} %", f"{p:.2g}"]
            )
            lines.append(cells)
    print(tabulate(lines, HEADER))


if __name__ == "__main__":
    main()
