"""What the result files of ``run.py`` say of a configuration."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from run import Config

from pyg_mmrec.options import option_text

#: Metrics to show where none are published.
METRICS = ["recall@20", "ndcg@20"]
#: What is done to features to see how much of the metrics it takes.
NOISE = "data.feature_noise"
REDUNDANCY = ("data.text_redundancy", "data.visual_redundancy")
PROBES = (NOISE, *REDUNDANCY)

_Array = npt.NDArray[np.float64]


@dataclass
class Result:
    """What there is of a configuration: of its grid, the point that validation picks.

    Args:
        config (Config): The configuration.
        point (dict): The options of that point.
        files (list[pathlib.Path]): Result files of its runs.
        runs (list[dict]): Their contents.
        searched (int): How many points have finished.
    """

    config: Config
    point: dict[str, str] = field(default_factory=dict)
    files: list[Path] = field(default_factory=list)
    runs: list[dict[str, Any]] = field(default_factory=list)
    searched: int = 0

    @classmethod
    def read(cls, config: Config, results: Path) -> Result:
        """Reads a configuration's result files.

        Raises:
            ValueError: If one is the result of another configuration.
        """
        found = cls.of_points(config, results)
        if not found:
            return cls(config)
        best = max(found, key=lambda result: result.mean("validation", config.metric()))
        files = config.results(best.point, results)
        return cls(config, best.point, list(files), list(files.values()), len(found))

    @classmethod
    def of_points(cls, config: Config, results: Path) -> list[Result]:
        """What there is of every point of the grid that has run, of the seeds that all of these
        have: further seeds are given to the point that validation picks.

        Raises:
            ValueError: If one is the result of another configuration.
        """
        all_points = [(point, config.results(point, results)) for point in config.points()]
        found = [(point, files) for point, files in all_points if files]
        names = [{file.name for file in files} for _, files in found]
        shared = set.intersection(*names) if names else set()
        points = []
        for point, files in found:
            kept = {file: run for file, run in files.items() if file.name in shared}
            points.append(cls(config, point, list(kept), list(kept.values()), len(found)))
        return points if shared else []

    @property
    def group(self) -> tuple[str, ...]:
        """What a method's run has to share with the run that it improves: data, backbone, preset,
        and the options that are not the method's.
        """
        content = self.config.content
        options = content.get("options") or {}
        fixed = sorted(f"{k}={v}" for k, v in options.items() if not k.startswith("method."))
        return content["dataset"], content["model"], content.get("preset", "paper"), *fixed

    @property
    def method(self) -> str:
        """Name of the method."""
        return str(self.config.content.get("method", "none"))

    @property
    def variant(self) -> tuple[str, ...]:
        """Name of the method, and its options but those that are searched."""
        options = self.config.content.get("options") or {}
        own = sorted(f"{k}={option_text(v)}" for k, v in options.items() if k.startswith("method."))
        return self.method, *own

    @property
    def probed(self) -> bool:
        """Whether its features were made noisy or redundant."""
        return any(x.startswith(PROBES) for x in self.group)

    @property
    def unprobed(self) -> tuple[str, ...]:
        """What a run has to share with the one on the features as they were: method, its options,
        and all of the group but the probes.
        """
        return *self.variant, *(x for x in self.group if not x.startswith(PROBES))

    def lost(self, original: Result, metric: str) -> str:
        """What the probes took of a test metric, in per cent, of the seeds that both have; nothing
        if it has no value.
        """
        if not set(self.seeds) & set(original.seeds):
            return ""
        before = original.of_seeds(self.seeds).mean("test", metric)
        after = self.of_seeds(original.seeds).mean("test", metric)
        redundant = any(x.startswith(REDUNDANCY) for x in self.group)
        whole = after if redundant else before
        return f"{100 * (before - after) / whole:.1f} %" if whole > 0 else ""

    @property
    def seeds(self) -> list[int]:
        """The seed of every run."""
        return [int(file.stem.removeprefix("seed-")) for file in self.files]

    def of_seeds(self, seeds: Collection[int]) -> Result:
        """The same with the runs of some seeds alone."""
        kept = [i for i, seed in enumerate(self.seeds) if seed in seeds]
        files, runs = ([items[i] for i in kept] for items in (self.files, self.runs))
        return replace(self, files=files, runs=runs)

    def metrics(self) -> list[str]:
        """Published metrics, or those that are mostly read."""
        entries = self.config.content.get("published") or []
        named = {key: None for entry in entries for key in entry if key != "source"}
        return list(named) or METRICS

    def published(self) -> dict[tuple[str, str], float]:
        """What is published, by source and metric."""
        entries = self.config.content.get("published") or []
        return {
            (entry["source"], metric): value
            for entry in entries
            for metric, value in entry.items()
            if metric != "source"
        }

    def mean(self, split: str, metric: str) -> float:
        """A metric of a split, the mean over the runs."""
        return float(np.mean([run["metrics"][split][metric] for run in self.runs]))

    def values(self, metric: str) -> list[float]:
        """A test metric of every run.

        Raises:
            ValueError: If there is no such metric.
        """
        for run in self.runs:
            if metric not in run["metrics"]["test"]:
                known = sorted(run["metrics"]["test"])
                raise ValueError(f"there is no metric '{metric}'; there are {', '.join(known)}")
        return [run["metrics"]["test"][metric] for run in self.runs]

    def users(self, metric: str) -> tuple[npt.NDArray[np.int32], _Array] | None:
        """Test users ``[users]`` and a metric of theirs in every run ``[runs, users]``; None if a
        run lacks it.

        Raises:
            ValueError: If the runs have other test users.
        """
        paths = [file.with_suffix(".npz") for file in self.files]
        if not paths or not all(path.exists() for path in paths):
            return None
        contents = [np.load(path, allow_pickle=False) for path in paths]
        if not all(metric in content for content in contents):
            return None
        ids = contents[0]["user"]
        if not all(np.array_equal(content["user"], ids) for content in contents):
            raise ValueError(f"the runs of '{self.config.path.stem}' have other test users")
        return ids, np.stack([content[metric].astype(np.float64) for content in contents])
