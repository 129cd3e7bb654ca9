"""Searches hyper-parameters within a budget, picked on validation.

``python benchmarks/search.py benchmarks/configs/freedom_baby.yaml --root data --trials 20``

The space is the configuration's ``grid``: all of it (``--sampler grid``), or points drawn at random
or by the tree-structured Parzen estimator; a point drawn again is not trained again. Trials that
fall behind the median of the others at the same epoch are given up (``--prune``). Everything is
kept in a file, so that the same command goes on after an interrupt, drawing anew; a file holds one
search of a configuration, with one sampler and seed. The report names the best point on validation,
and how much picking on test, as public toolboxes do, would have added.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import optuna
from run import HERE, Config

from pyg_mmrec.options import option_text
from pyg_mmrec.table import format_table
from pyg_mmrec.training import tune_process
from pyg_mmrec.training.checkpoint import differences
from pyg_mmrec.transforms.seeding import seed_of

SAMPLERS = ("grid", "random", "tpe")


def space(config: Config) -> dict[str, list[str]]:
    """The values of every option in the grid, as text."""
    grid = config.content["grid"]
    return {name: [option_text(value) for value in values] for name, values in grid.items()}


def make_study(
    config: Config, sampler: str, storage: Path, seed: int, prune: int | None
) -> optuna.Study:
    """The search of a configuration, new or as far as it has come.

    Raises:
        ValueError: If the file holds one of other options, another sampler or another seed.
    """
    pruner: optuna.pruners.BasePruner = optuna.pruners.NopPruner()
    if prune is not None:
        pruner = optuna.pruners.MedianPruner(n_startup_trials=3, n_warmup_steps=prune)
    storage.parent.mkdir(parents=True, exist_ok=True)
    backend = optuna.storages.journal.JournalFileBackend(str(storage))
    study = optuna.create_study(
        study_name=config.path.stem,
        storage=optuna.storages.JournalStorage(backend),
        pruner=pruner,
        direction="maximize",
        load_if_exists=True,
    )
    _check_identity(config, study, sampler, storage, seed)
    drawn = seed_of(f"after {len(study.trials)} trials", seed)  # not those that were drawn before
    samplers: dict[str, optuna.samplers.BaseSampler] = {
        "grid": optuna.samplers.RandomSampler(seed=drawn),  # its points wait in line, see below
        "random": optuna.samplers.RandomSampler(seed=drawn),
        "tpe": optuna.samplers.TPESampler(seed=drawn),
    }
    study.sampler = samplers[sampler]
    for trial in study.get_trials(states=[optuna.trial.TrialState.RUNNING]):  # was interrupted
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        study.enqueue_trial(trial.params)
    for point in config.points() if sampler == "grid" else []:
        study.enqueue_trial(point, skip_if_exists=True)
    return study


def _check_identity(
    config: Config, study: optuna.Study, sampler: str, storage: Path, seed: int
) -> None:
    """Notes what is searched, or compares it with what the file notes."""
    ours = {**config.experiment({}, seed, "").config(), "grid": space(config), "sampler": sampler}
    if not study.trials:
        study.set_user_attr("identity", ours)
    changed = differences(study.user_attrs.get("identity", {}), ours)
    if changed:
        raise ValueError(
            f"'{storage}' holds another search of '{config.path.stem}' ({'; '.join(changed)}): "
            f"give this one another file by --storage"
        )


def search(
    config: Config, study: optuna.Study, root: str, trials: int, seed: int, device: str = "cpu"
) -> None:
    """Runs trials until there are so many, finished or given up.

    Args:
        config (Config): The configuration.
        study (optuna.Study): Its search.
        root (str): Folder of the data set folders.
        trials (int): Number of trials, with those that draw a point again.
        seed (int): Seed of the runs.
        device (str, optional): Device of everything.
    """
    grid = space(config)
    metric = config.metric()
    data = config.experiment({}, seed, root).load() if not _depends_on_data(grid) else None
    done = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)

    def objective(trial: optuna.Trial) -> float:
        point = {name: trial.suggest_categorical(name, values) for name, values in grid.items()}

        for other in study.get_trials(states=done):
            if other.params != point:
                continue
            if other.state == optuna.trial.TrialState.PRUNED:
                for epoch, value in other.intermediate_values.items():
                    trial.report(value, epoch)
                raise optuna.TrialPruned
            for name, value in other.user_attrs.items():
                trial.set_user_attr(name, value)
            return float(other.value or 0.0)

        def report(epoch: int, record: dict[str, Any]) -> None:
            trial.report(record["validation"][metric], epoch)
            if trial.should_prune():
                raise optuna.TrialPruned

        result = config.experiment(point, seed, root, device).run(
            progress=False, data=data, callback=report
        )
        trial.set_user_attr("test", result["metrics"]["test"])
        trial.set_user_attr("best_epoch", result["best_epoch"])
        return float(result["metrics"]["validation"][metric])

    left = trials - len(study.get_trials(states=done))
    if left > 0:
        study.optimize(
            objective,
            n_trials=left,
            catch=(FloatingPointError,),  # NaN: the trial failed, the others go on
            show_progress_bar=True,
        )


def _depends_on_data(grid: dict[str, list[str]]) -> bool:
    """Whether points of the grid read the data differently."""
    return any(name.startswith("data.") or name == "model.modalities" for name in grid)


def report(config: Config, study: optuna.Study, select_on: str) -> str:
    """What was found."""
    metric = config.metric()
    finished = study.get_trials(states=[optuna.trial.TrialState.COMPLETE])
    trials = list({str(sorted(trial.params.items())): trial for trial in finished}.values())
    given_up = len(study.get_trials(states=[optuna.trial.TrialState.PRUNED]))
    failed = len(study.get_trials(states=[optuna.trial.TrialState.FAIL]))
    if not trials:
        return "no trial has finished"
    by_validation = max(trials, key=lambda trial: trial.value or 0.0)
    by_test = max(trials, key=lambda trial: trial.user_attrs["test"][metric])
    rows = [
        [
            ", ".join(f"{name.split('.', 1)[1]} {value}" for name, value in trial.params.items()),
            f"{trial.value:.4f}",
            f"{trial.user_attrs['test'][metric]:.4f}",
        ]
        for trial in sorted(trials, key=lambda trial: -(trial.value or 0.0))
    ]
    fair, best = (t.user_attrs["test"][metric] for t in (by_validation, by_test))
    lines = [
        f"{config.path.stem}: {len(trials)} points finished; trials given up early {given_up}, "
        f"failed or interrupted {failed}",
        format_table(["point", f"validation {metric}", f"test {metric}"], rows),
        f"picked on validation: {by_validation.params}, test {metric} {fair:.4f}",
        f"picking on test would have added {best - fair:.4f} ({100 * (best / fair - 1):+.1f} %)",
    ]
    if select_on == "test":
        lines.append(f"PICKED ON TEST, no clean estimate: {by_test.params}, {metric} {best:.4f}")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", type=Path, metavar="CONFIG", help="YAML file with a grid")
    parser.add_argument("--root", default="data", help="folder of data set folders")
    parser.add_argument("--sampler", choices=SAMPLERS, default="tpe")
    parser.add_argument("--trials", type=int, help="(default: the number of points of the grid)")
    parser.add_argument("--seed", type=int, default=0, help="of the runs and of the sampler")
    parser.add_argument(
        "--prune", type=int, metavar="EPOCH", help="give trials up, from this epoch on"
    )
    parser.add_argument(
        "--select-on", choices=("validation", "test"), default="validation",
        help="'test' reports the best point on test too, labelled as such",
    )  # fmt: skip
    parser.add_argument("--device", default="cpu", help="cpu, cuda, … (default: cpu)")
    parser.add_argument("--storage", type=Path, help="(default: benchmarks/work/CONFIG.journal)")
    arguments = parser.parse_args()
    try:
        config = Config.read(arguments.config)
    except (ValueError, FileNotFoundError) as error:
        parser.error(str(error))
    if not config.content.get("grid"):
        parser.error(f"'{arguments.config}' has no 'grid' to search")
    trials = len(config.points()) if arguments.trials is None else arguments.trials
    if trials < 1:
        parser.error("--trials needs to be a positive integer")
    tune_process()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = arguments.storage or HERE / "work" / f"{config.path.stem}.journal"
    try:
        study = make_study(config, arguments.sampler, storage, arguments.seed, arguments.prune)
        search(config, study, arguments.root, trials, arguments.seed, arguments.device)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    except (ValueError, FileNotFoundError) as error:
        parser.error(str(error))
    print(report(config, study, arguments.select_on))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
