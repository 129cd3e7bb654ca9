"""Runs benchmark configurations, on any number of seeds, and keeps one result file per run.

``python benchmarks/run.py benchmarks/configs/lightgcn_baby.yaml --root data --seeds 5 --jobs 2``

A configuration (YAML) names ``model``, ``dataset``, ``method``, ``preset`` and ``options`` as
``pyg-mmrec train`` knows them, and maybe a ``grid`` of further options: then every point of it is
trained with seed 0, the best validation metric picks one, and only that gets the other seeds; with
``sweep: true`` every point gets them.
Finished runs are never repeated or overwritten, an interrupted one continues at its checkpoint, and
one that another ``run.py`` is training is left out.
"""

from __future__ import annotations

import argparse
import itertools
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from safetensors.numpy import load_file
from tqdm.auto import tqdm

from pyg_mmrec.evaluation import KS
from pyg_mmrec.experiment import Experiment
from pyg_mmrec.options import option_text
from pyg_mmrec.training.checkpoint import read_json, write_json

HERE = Path(__file__).resolve().parent
#: Test metrics that are kept of every user, beside the published ones; those at 5 are also kept of
#: every epoch, on validation, beside the one that picks.
KEPT = [f"{name}@{k}" for name in ("recall", "ndcg", "precision", "map") for k in (5, 20)]
#: Every metric of users' lists.
KNOWN_METRICS = [
    f"{name}@{k}" for name in ("recall", "ndcg", "precision", "map", "hit_ratio") for k in KS
]
#: Models that do not train, nor draw anything: every seed of theirs gives the same.
UNTRAINED = ("MostPop", "ItemKNN")
FIELDS = (
    "model", "dataset", "method", "preset", "options", "grid", "sweep", "seeds", "note",
    "published",
)  # fmt: skip


#: Types of fields, in YAML's words.
KINDS = (
    ("model", str, "a name"), ("dataset", str, "a name"), ("method", str, "a name or 'none'"),
    ("options", dict | None, "values by name"), ("grid", dict | None, "lists of values by name"),
    ("published", list | None, "a list"), ("note", str, "a text"),
)  # fmt: skip


def read_fields(path: Path, known: Sequence[str]) -> dict[str, Any]:
    """The fields of a YAML file.

    Args:
        path (pathlib.Path): The file.
        known (list[str]): What there is, the first two of which are needed.

    Raises:
        ValueError: If the file is not YAML, or has not the right fields.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except IsADirectoryError as error:
        raise ValueError(f"'{path}' is a folder: name its files") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"'{path}' is not YAML ({error})") from error
    if not isinstance(content, dict) or not set(known[:2]) <= set(content):
        raise ValueError(f"'{path}' needs the fields '{known[0]}' and '{known[1]}'")
    unknown = sorted(set(content) - set(known))
    if unknown:
        raise ValueError(f"'{path}' has unknown fields {unknown}; there are {list(known)}")
    return content


@dataclass(frozen=True)
class Config:
    """What a configuration file says.

    Args:
        path (pathlib.Path): The file; its stem names the results.
        content (dict): Its content.
    """

    path: Path
    content: dict[str, Any] = field(hash=False)

    @classmethod
    def read(cls, path: Path) -> Config:
        """Reads and checks a file.

        Raises:
            ValueError: If it is no configuration; the message names file and field.
        """
        content = read_fields(path, FIELDS)
        for name, kind, what in KINDS:
            if name in content and not isinstance(content[name], kind):
                raise ValueError(f"'{path}' needs {what} for '{name}' (got {content[name]!r})")
        for entry in content.get("published") or []:
            values = dict(entry) if isinstance(entry, dict) else {}
            if not isinstance(values.pop("source", None), str) or not all(
                isinstance(value, (int, float)) for value in values.values()
            ):
                raise ValueError(
                    f"'{path}' needs a 'source' and numbers by metric in 'published' (got {entry})"
                )
            for metric, value in values.items():
                if metric not in KNOWN_METRICS or value <= 0:
                    raise ValueError(
                        f"'{path}' needs positive numbers of metrics such as 'recall@20' in "
                        f"'published' (got {metric}: {value})"
                    )
        for name, values in (content.get("grid") or {}).items():
            if not isinstance(values, list) or not values:
                raise ValueError(f"'{path}' needs a list of values for '{name}' in 'grid'")
        seeds = content.get("seeds", 1)
        if type(seeds) is not int or seeds < 1:
            raise ValueError(f"'{path}' needs a positive integer for 'seeds' (got {seeds!r})")
        if type(content.get("sweep", False)) is not bool:
            raise ValueError(f"'{path}' needs true or false for 'sweep' (got {content['sweep']!r})")
        config = cls(path, content)
        for point in config.points():
            try:
                config.experiment(point, 0, "")
            except (ValueError, ImportError) as error:  # of a class of one's own
                raise ValueError(f"'{path}': {error}") from error
        return config

    def points(self) -> list[dict[str, str]]:
        """The points of the grid; a single empty one without a grid."""
        grid = self.content.get("grid") or {}
        texts = [[option_text(value) for value in values] for values in grid.values()]
        return [dict(zip(grid, values, strict=True)) for values in itertools.product(*texts)]

    def experiment(
        self, point: dict[str, str], seed: int, root: str, device: str = "cpu"
    ) -> Experiment:
        """The run at a point of the grid."""
        content = self.content
        return Experiment(
            model=content["model"],
            dataset=content["dataset"],
            root=root,
            method=content.get("method", "none"),
            preset=content.get("preset", "paper"),
            options={**(content.get("options") or {}), **point},
            seed=seed,
            device=device,
        )

    def metric(self, root: str = "") -> str:
        """The validation metric that picks a point of the grid."""
        return self.experiment({}, 0, root).training_options().metric

    @property
    def seeds(self) -> int:
        """Number of seeds of the point that is picked, or of every point of a sweep."""
        return int(self.content.get("seeds", 1))

    @property
    def sweep(self) -> bool:
        """Whether every point of the grid gets all seeds."""
        return bool(self.content.get("sweep", False))

    def folder(self, point: dict[str, str]) -> Path:
        """Where the results of a point lie, below a folder of results."""
        words = [f"{name.split('.', 1)[1]}={value}" for name, value in point.items()]
        return Path(self.path.stem, ",".join(words))

    def results(self, point: dict[str, str], results: Path) -> dict[Path, dict[str, Any]]:
        """The contents of a point's result files, in a folder of results.

        Raises:
            ValueError: If one is the result of another configuration.
        """
        files = sorted((results / self.folder(point)).glob("seed-*.json"))
        return {file: self.result(file, point) for file in files}

    def result(self, file: Path, point: dict[str, str]) -> dict[str, Any]:
        """The content of a point's result file, ``seed-NUMBER.json``.

        Raises:
            ValueError: If it is the result of another configuration.
        """
        content = read_json(file)
        seed = int(file.stem.removeprefix("seed-"))
        if content.get("config") != self.experiment(point, seed, "").config():
            raise ValueError(
                f"'{file}' is the result of another configuration, {content.get('config')}; "
                f"results are never overwritten: give the changed configuration another name"
            )
        return content


@contextmanager
def locked(folder: Path) -> Iterator[int]:
    """Has a folder to itself, and gives the lock's file descriptor, for the process that trains
    there: it may outlive this one.

    Raises:
        RuntimeError: If another process has it.
    """
    import fcntl  # Windows has none, and imports this file to draw tables

    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RuntimeError(
                f"left out, since another run.py is training it in '{folder}'; when that has "
                f"finished, the same command goes on from here"
            ) from error
        yield file.fileno()


@dataclass(frozen=True)
class Surroundings:
    """What all runs of a queue share.

    Args:
        root (str): Folder of the data set folders.
        results (pathlib.Path): Folder of the result files.
        work (pathlib.Path): Folder of checkpoints and weights.
        threads (int, optional): Threads of a run.
        device (str, optional): Device of everything.
    """

    root: str
    results: Path
    work: Path
    threads: int = 1
    device: str = "cpu"


def run_one(
    config: Config, point: dict[str, str], seed: int, around: Surroundings
) -> dict[str, Any]:
    """Trains once, in a process of its own, or reads the result that is there."""
    name = config.folder(point) / f"seed-{seed}"
    file = around.results / f"{name}.json"
    if not file.exists():
        folder = around.work / name
        with locked(folder) as lock:
            experiment = config.experiment(point, seed, around.root, around.device)
            result = train(experiment, folder, around.threads, lock)
            if not file.exists():  # another may have trained it in another folder
                keep(result, config, folder, file)
    return config.result(file, point)


def train(experiment: Experiment, folder: Path, threads: int, lock: int) -> dict[str, Any]:
    """Trains in a process of its own, and returns the result with the most memory that it held."""
    memory = folder / "peak_memory_bytes"
    command = [
        sys.executable, str(HERE / "clock.py"), str(memory), "pyg_mmrec", "train",
        "--model", experiment.model, "--dataset", experiment.dataset, "--root", experiment.root,
        "--method", experiment.method, "--preset", experiment.preset,
        "--device", experiment.device, "--seed", str(experiment.seed), "--out", str(folder),
        "--resume", "--quiet",
    ]  # fmt: skip
    if experiment.options:
        command += ["--set", *(f"{key}={value}" for key, value in experiment.options.items())]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    finished = (folder / "result.json").exists()
    done = subprocess.run(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        pass_fds=[lock],
    )  # fmt: skip
    if done.returncode != 0:
        errors = folder / "errors.txt"
        errors.write_text(done.stderr)
        last = (done.stderr.strip().splitlines() or ["it was killed"])[-1]
        raise RuntimeError(f"{last} (all it said: '{errors}')")
    result = read_json(folder / "result.json")
    if not finished and memory.exists():
        result["peak_memory_bytes"] = int(memory.read_text())
    if not finished:
        result["versions"]["commit"] = commit()
    return result


def commit() -> str | None:
    """The commit of this program, which tells the defaults of all options; with a plus if files
    were changed since, None outside of a repository.
    """
    words = ("describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+")
    git = ["git", "-C", str(HERE), *words]
    try:
        done = subprocess.run(git, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def keep(result: dict[str, Any], config: Config, folder: Path, file: Path) -> None:
    """Writes a result file, and beside it some metrics of every user."""
    history = result["history"]
    curves = {config.metric(), *(name for name in KEPT if name.endswith("@5"))}
    result["history"] = {
        "epochs": len(history),
        **{
            f"validation {name}": [epoch["validation"][name] for epoch in history]
            for name in sorted(curves)
            if history  # there is none of what does not train
        },
    }
    of_users = folder / "users.safetensors"
    if of_users.exists():
        values = load_file(of_users)
        names = set(KEPT).union(*config.content.get("published") or [])
        kept = {name: values[name].astype(np.float16) for name in sorted(names & set(values))}
        user = values["user"].astype(np.int32)
        file.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(file.with_suffix(".npz"), user=user, **kept)
    write_json(file, result)


def check_names(configs: Sequence[Config]) -> None:
    """Raises a :class:`ValueError` if two files have the same name: their results would, too."""
    stems = [config.path.stem for config in configs]
    for stem in stems:
        if stems.count(stem) > 1:
            raise ValueError(
                f"two configurations are called '{stem}', and so would be their results"
            )


def run(
    configs: list[Config], around: Surroundings, seeds: int | None = None, jobs: int = 1
) -> list[str]:
    """Works the queue off; returns what failed.

    Args:
        configs (list[Config]): Configurations.
        around (Surroundings): What their runs share.
        seeds (int, optional): Number of seeds of models that train; without it, what the
            configuration says, or 1.
        jobs (int, optional): Runs at a time.
    """
    failed: list[str] = []
    pool = ThreadPoolExecutor(jobs)
    bar = tqdm(total=0, unit="run")
    waiting: dict[Future[dict[str, Any]], tuple[Config, dict[str, str], int]] = {}
    searches: dict[Config, dict[Path, float]] = {config: {} for config in configs}

    def number(config: Config) -> int:
        return 1 if config.content["model"] in UNTRAINED else seeds or config.seeds

    def submit(config: Config, points: list[dict[str, str]], numbers: Iterable[int]) -> None:
        for seed, point in itertools.product(numbers, points):
            future = pool.submit(run_one, config, point, seed, around)
            waiting[future] = (config, point, seed)
            bar.total += 1

    try:
        for config in configs:
            submit(config, config.points(), range(number(config)) if config.sweep else [0])
        while waiting:
            future = next(as_completed(waiting))
            config, point, seed = waiting.pop(future)
            name = f"{config.folder(point) / f'seed-{seed}'}"
            bar.update()
            try:
                result = future.result()
            except Exception as error:  # the others go on; it is told at the end
                failed.append(f"{name}: {type(error).__name__}: {error}")
                bar.write(f"failed: {failed[-1]}")
                continue
            value = result["metrics"]["validation"][config.metric(around.root)]
            bar.write(f"{name}: validation {value:.4f}")
            if seed > 0 or config.sweep:
                continue
            found, points = searches[config], config.points()
            found[config.folder(point)] = value
            if len(found) == len(points):  # no search is concluded without all of its points
                best = max(points, key=lambda point: found[config.folder(point)])  # ties: the first
                submit(config, [best], range(1, number(config)))
    finally:
        pool.shutdown(cancel_futures=True)  # after an interrupt nothing new begins
        bar.close()
    return failed


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The arguments of a program that works a queue off: its own and the queue's."""
    parser.add_argument("--root", default="data", help="folder of data set folders")
    parser.add_argument("--seeds", type=int, help="seeds per configuration (default: as it says)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time; they share the cores")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--work", type=Path, default=HERE / "work", help="checkpoints and weights")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, … (default: cpu)")
    arguments = parser.parse_args()
    for name in ("seeds", "jobs"):
        if getattr(arguments, name) is not None and getattr(arguments, name) < 1:
            parser.error(f"--{name} needs to be a positive integer")
    return arguments


def run_as_asked(configs: list[Config], arguments: argparse.Namespace) -> list[str]:
    """Works the queue off as :func:`parse` understood it; an interrupt ends the program."""
    around = Surroundings(
        arguments.root, arguments.results, arguments.work,
        max(1, (os.cpu_count() or 1) // arguments.jobs), arguments.device,
    )  # fmt: skip
    try:
        return run(configs, around, arguments.seeds, arguments.jobs)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        raise SystemExit(130) from None


def report(failed: Sequence[str]) -> int:
    """Says what failed; returns the exit status."""
    for line in failed:
        print(f"failed: {line}", file=sys.stderr)
    return 1 if failed else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("configs", nargs="+", type=Path, metavar="CONFIG", help="YAML files")
    arguments = parse(parser)
    paths = list({path.resolve(): path for path in arguments.configs}.values())
    try:
        configs = [Config.read(path) for path in paths]
        check_names(configs)
    except (ValueError, FileNotFoundError) as error:
        parser.error(str(error))
    return report(run_as_asked(configs, arguments))


if __name__ == "__main__":
    raise SystemExit(main())
