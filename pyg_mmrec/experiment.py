"""One run from data to metrics, as the command line, the examples and the benchmarks make it."""

from __future__ import annotations

import copy
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import torch
from safetensors.torch import load_file
from torch_geometric import seed_everything
from torch_geometric.data import HeteroData
from torch_geometric.transforms import BaseTransform, Compose

from pyg_mmrec.data import MultimodalDataset, PlantedDataset, fingerprints, statistics
from pyg_mmrec.nn import objectives
from pyg_mmrec.nn.backbones import BACKBONES, Backbone
from pyg_mmrec.nn.objectives import Method, Objective
from pyg_mmrec.options import choose, find_option, option_text, option_types, parse_option
from pyg_mmrec.training import Trainer, TrainingOptions
from pyg_mmrec.training.checkpoint import (
    differences,
    load_weights,
    read_json,
    save_tensors,
    write_json,
)
from pyg_mmrec.transforms import (
    AddFeatureNoise,
    AddTextRedundancy,
    AddVisualRedundancy,
    ScaleFeatures,
)
from pyg_mmrec.transforms.seeding import seed_of

METHODS: dict[str, type[Method]] = {
    "amr": objectives.AMR,
    "dvib-a": objectives.DVIBa,
    "dvib-c": objectives.DVIBc,
    "fib": objectives.FIB,
    "gib": objectives.GIB,
    "mg": objectives.MirrorGradient,
    "second-stage": objectives.SecondStage,
}
#: Names for several methods at once, of :obj:`METHODS`, as they go with a backbone.
COMBINATIONS: dict[str, Callable[[type[Backbone]], list[Method]]] = {"ibmrec": objectives.ibmrec}
#: What may be done to the features of data, in this order, as a transform and the option of it
#: whose value asks for it.
FEATURE_TRANSFORMS: dict[str, tuple[type[BaseTransform], str]] = {
    "scale_features": (ScaleFeatures, "method"),
    "feature_noise": (AddFeatureNoise, "std"),
    "visual_redundancy": (AddVisualRedundancy, "modality"),
    "text_redundancy": (AddTextRedundancy, "modality"),
}
PLANTED = {"planted": "small", "planted-tiny": "tiny"}
PRESETS = ("paper", "mmrec")


@dataclass
class Experiment:
    r"""What to run: data, a backbone, methods, and how to train.

    Args:
        model (str): Name of the backbone, one of :obj:`BACKBONES`, or ``module:Class``, one of your
            own.
        dataset (str): A folder's name below ``root``; or ``planted`` (2,000 users, 1,500 items) or
            ``planted-tiny``, which are generated. (default: ``planted``)
        root (str): Folder of the data set folders. (default: ``data``)
        method (str): ``none``, or names of :obj:`METHODS` and :obj:`COMBINATIONS`, or
            ``module:Class``, joined by ``+``. (default: ``none``)
        preset (str): ``paper``, or ``mmrec`` for what the public toolbox does where it differs.
            (default: ``paper``)
        options (dict): Options, as values or as text, by names like ``model.num_layers``,
            ``method.std``, ``train.batch_size``, ``data.split``; of several methods that share one,
            ``method.gib.weight``. Features change in this order by ``data.scale_features``, a
            method of :class:`~pyg_mmrec.transforms.ScaleFeatures`; ``data.feature_noise``, the
            ``std`` of :class:`~pyg_mmrec.transforms.AddFeatureNoise`; ``data.visual_redundancy``
            and ``data.text_redundancy``, the modality that
            :class:`~pyg_mmrec.transforms.AddVisualRedundancy` and
            :class:`~pyg_mmrec.transforms.AddTextRedundancy` (on bare features) change; their other
            options are ``data.feature_noise.modalities`` and so on.
        seed (int): Seed of weights, sampling and noise. (default: 0)
        start_from (str, optional): A finished run's folder, whose weights the backbone starts from;
            of several seeds, that of the same seed below it.
        device (str): Device of everything. (default: ``cpu``)

    Raises:
        ValueError: If a name or an option is unknown or does not fit; the message lists the right
            ones. Or if the seed is none.
    """

    model: str
    dataset: str = "planted"
    root: str = "data"
    method: str = "none"
    preset: str = "paper"
    options: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    start_from: str | None = None
    device: str = "cpu"

    def __post_init__(self) -> None:
        choose("preset", self.preset, dict.fromkeys(PRESETS))
        if not isinstance(self.seed, int) or not 0 <= self.seed < 2**32:
            raise ValueError(f"'seed' needs to be an integer from 0 to 2^32 - 1 (got {self.seed})")
        self.options = {name: option_text(value) for name, value in self.options.items()}
        try:
            torch.zeros(1, device=self.device).tolist()
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"'device' is '{self.device}', which is not here ({reason})") from None
        self.backbone_class: type[Backbone] = choose("model", self.model, BACKBONES, Backbone)
        self.methods = self._methods()
        dataset_class = PlantedDataset if self.dataset in PLANTED else MultimodalDataset
        data_hidden = ("root", "name", "size", "transform", "pre_transform")
        known: dict[str, dict[str, Any]] = {
            "model": self._model_options(),
            "train": option_types(TrainingOptions, ("seed",)),
            "data": {
                **option_types(dataset_class, data_hidden),
                **{
                    name: option_types(transform)[main] | None
                    for name, (transform, main) in FEATURE_TRANSFORMS.items()
                },
            },
        }
        for name, (transform, main) in FEATURE_TRANSFORMS.items():
            hidden = (main, "seed", "generator", "texts", "encoder")
            known[f"data.{name}"] = option_types(transform, hidden)
        for method, item in self.methods.items():
            known[f"method.{method}"] = option_types(item)
        self.parsed: dict[str, dict[str, Any]] = {section: {} for section in known}
        for key, text in self.options.items():
            section, name = find_option(key, known)
            self.parsed[section][name] = parse_option(key, text, known[section][name])
        self._feature_transform()  # refuses what is out of range now

    def _model_options(self) -> dict[str, Any]:
        """The backbone's options with their types, also those that a constructor hands on."""
        found: dict[str, Any] = {}
        for base in self.backbone_class.__mro__:
            if issubclass(base, Backbone) and "__init__" in vars(base):
                for name, kind in option_types(base).items():
                    if found.get(name, Any) is Any:
                        found[name] = kind
        return {name: found[name] for name in self.backbone_class.options()}

    def _feature_transform(self) -> Compose:
        """What the options do to the features; no draw depends on another."""
        transforms: list[BaseTransform] = []
        for name, (transform, main) in FEATURE_TRANSFORMS.items():
            value, options = self.parsed["data"].get(name), self.parsed[f"data.{name}"]
            if value is not None:
                drawn = "seed" in option_types(transform)
                seed = {"seed": seed_of(name, self.seed)} if drawn else {}
                transforms.append(transform(**{main: value}, **options, **seed))
            elif options:
                raise ValueError(
                    f"'data.{name}.{next(iter(options))}' goes with 'data.{name}', which is not set"
                )
        return Compose(transforms)

    @property
    def _parts(self) -> list[str]:
        return [] if self.method == "none" else self.method.split("+")

    def _methods(self) -> dict[str, type[Method]]:
        """The methods by name, combinations resolved."""
        found: list[tuple[str, type[Method]]] = []
        for name in self._parts:
            if name == "none":
                raise ValueError(f"method 'none' stands alone (got '{self.method}')")
            item = choose("method", name, {**METHODS, **COMBINATIONS}, Method)
            if name not in COMBINATIONS:
                found.append((name, item))
                continue
            classes = [type(method) for method in item(self.backbone_class)]
            found += [pair for pair in METHODS.items() if pair[1] in classes]
        if len({item.name for _, item in found}) < len(found):
            names = "+".join(name for name, _ in found)
            raise ValueError(
                f"each method goes in once, in one form (got {names}); no two have one 'name'"
            )
        return dict(found)

    def load(self) -> HeteroData:
        """Reads or generates the data."""
        options = {k: v for k, v in self.parsed["data"].items() if k not in FEATURE_TRANSFORMS}
        transform = self._feature_transform()
        if self.dataset in PLANTED:
            return PlantedDataset(PLANTED[self.dataset], transform=transform, **options)[0]
        if "modalities" in self.parsed["model"]:
            options.setdefault("modalities", self.parsed["model"]["modalities"])
        return MultimodalDataset(self.root, self.dataset, transform=transform, **options)[0]

    def objective(self, data: HeteroData) -> Objective:
        """Builds backbone and methods."""
        options = dict(self.parsed["model"])
        if "batch_size" in self.backbone_class.options():
            options.setdefault("batch_size", self.training_options().batch_size)
        backbone = self.backbone_class.from_data(data, preset=self.preset, **options)
        methods = [item(**self.parsed[f"method.{name}"]) for name, item in self.methods.items()]
        return Objective(backbone, *methods).to(self.device)

    def training_options(self) -> TrainingOptions:
        """How to train."""
        options = TrainingOptions.presets[self.preset] | self.backbone_class.training_defaults
        return TrainingOptions(**{**options, **self.parsed["train"]}, seed=self.seed)

    def config(self) -> dict[str, Any]:
        """What identifies the run, as JSON can hold it."""
        return {
            "model": self.model,
            "dataset": self.dataset,
            "method": self.method,
            "preset": self.preset,
            "seed": self.seed,
            "options": {k: v for k, v in sorted(self.options.items())},
            **({} if self.start_from is None else {"start_from": str(self.start_from)}),
            **({"methods": list(self.methods)} if set(self._parts) & set(COMBINATIONS) else {}),
        }

    def run(
        self,
        out: Path | str | None = None,
        resume: bool = False,
        progress: bool = True,
        data: HeteroData | None = None,
        callback: Callable[[int, dict[str, Any]], None] | None = None,
    ) -> dict[str, Any]:
        r"""Trains, evaluates on validation and test, and writes the results.

        Args:
            out (pathlib.Path, optional): Folder for ``result.json``, ``weights.safetensors``,
                ``vectors.safetensors``, ``users.safetensors`` with the test metrics of every user,
                ``methods.safetensors`` with what methods have learned, and, while training, the
                checkpoint. (default: none is written)
            resume (bool, optional): Goes on with the folder's interrupted run, or returns its
                result if it is finished. (default: :obj:`False`)
            progress (bool, optional): Shows a progress bar. (default: :obj:`True`)
            data (HeteroData, optional): What :meth:`load` returned, if it was called already.
            callback (Callable, optional): As of :meth:`~pyg_mmrec.training.Trainer.fit`.

        Returns:
            dict: The content of ``result.json``: ``config``, ``versions``, ``data``, ``history``,
            ``best_epoch``, ``seconds_per_epoch``, ``metrics``.

        Raises:
            ValueError: If the folder holds a run and ``resume`` is false, or another run's result;
                or if ``start_from`` holds other weights or learned from other splits.
            OSError: If the data are not there, or the folder cannot be written to.
            FloatingPointError: If the loss becomes NaN or infinite.
        """
        folder = Path(out) if out is not None else None
        if folder is not None and not resume:
            self._check_free(folder)
        data = self.load() if data is None else data
        # What only the end needs is made now: nothing that is wrong is found after hours.
        described = {**statistics(data), "fingerprints": fingerprints(data)}
        if folder is not None:
            finished = self._finished(folder, described["fingerprints"])
            if finished is not None:
                return finished
        seed_everything(self.seed)
        objective = self.objective(data)
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            TemporaryFile(dir=folder).close()  # it can be written to
        identity = {}
        if self.start_from is not None:
            start = self._start(objective.backbone, described["fingerprints"])
            identity["start_from"] = str(start)
        trainer = self._trainer(objective, data, folder, progress, identity)
        ranking = trainer.ranking("test")
        history = trainer.fit(resume, callback)
        test, of_users = ranking(trainer.scorer(), per_user=True)
        result = {
            "config": self.config(),
            "versions": versions(self.device),
            "data": described,
            "history": history.epochs,
            "best_epoch": history.best_epoch,
            "seconds_per_epoch": history.seconds_per_epoch(),
            "metrics": {"validation": trainer.evaluate("val"), "test": test},
        }
        if folder is not None:
            save_tensors(folder / "weights.safetensors", objective.backbone.state_dict())
            if objective.backbone.has_vectors:
                user, item = trainer.vectors()
                save_tensors(folder / "vectors.safetensors", {"user": user, "item": item})
            learned = objective.methods.state_dict()
            if learned:  # such as GIB's mask, which ranking needs
                save_tensors(folder / "methods.safetensors", learned)
            save_tensors(folder / "users.safetensors", {"user": ranking.users, **of_users})
            write_json(folder / "result.json", result)  # it says that the run is finished
            (folder / "checkpoint.safetensors").unlink(missing_ok=True)
        return result

    def _trainer(self, objective: Objective, data: HeteroData, *arguments: Any) -> Trainer:
        if next(objective.parameters(), None) is None:  # then the data tell where
            data = copy.copy(data).to(self.device)
        return Trainer(objective, data, self.training_options(), *arguments)

    def _start(self, backbone: Backbone, ours: dict[str, str]) -> Path:
        """Loads the weights of another run, with several seeds that of the same seed."""
        folder = Path(self.start_from or "")
        own = folder / f"seed-{self.seed}"
        folder = own if own.is_dir() else folder
        if (folder / "result.json").exists():
            result = read_json(folder / "result.json")
            model, theirs = result["config"]["model"], result["data"].get("fingerprints", {})
            if model != self.model:
                raise ValueError(f"'{folder}' holds the weights of {model}, not of {self.model}")
            if any(theirs.get(name) != ours[name] for name in ours if name.endswith("pairs")):
                raise ValueError(
                    f"'{folder}' learned from other splits than these, so its weights may know "
                    f"what is held out here"
                )
        load_weights(backbone, folder / "weights.safetensors")
        return folder

    @staticmethod
    def _check_free(folder: Path) -> None:
        if folder.exists() and not folder.is_dir():
            raise NotADirectoryError(f"'{folder}' is a file, but a run needs a folder")
        for name in ("result.json", "checkpoint.safetensors"):
            if (folder / name).exists():
                raise ValueError(
                    f"'{folder}' holds a run already ('{name}'): resume it, or choose another "
                    f"folder"
                )

    def _finished(self, folder: Path, data: dict[str, str]) -> dict[str, Any] | None:
        """The folder's result if there is one; ``data`` are the fingerprints of ours."""
        path = folder / "result.json"
        if not path.exists():
            return None
        result = read_json(path)
        theirs = {**_flat(result["config"]), **result["data"].get("fingerprints", data)}
        changed = differences(theirs, {**_flat(self.config()), **data})
        if changed:
            raise ValueError(f"'{path}' is the result of another run ({'; '.join(changed)})")
        return result


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """The content of :meth:`Experiment.config` with its options one by one."""
    return {**{k: v for k, v in config.items() if k != "options"}, **config.get("options", {})}


def load_run(folder: Path | str, root: Path | str = "data", device: str = "cpu") -> Trainer:
    """A finished run as it ended: data, backbone and methods, with the weights that it was
    evaluated with.

    Args:
        folder (pathlib.Path): What the run wrote to.
        root (pathlib.Path, optional): Folder of the data set folders. (default: ``data``)
        device (str, optional): Device of everything. (default: ``cpu``)

    Returns:
        Trainer: Its ``scorer()`` ranks, ``vectors()`` are those in ``vectors.safetensors``.

    Raises:
        FileNotFoundError: If the folder holds no finished run, or the data are not there.
        ValueError: If the data are not those of the run; the message names what differs. Or if
            another version has written it, with settings unknown here, or the model gives other
            vectors than it did.

    Example:
        .. code-block:: python

            scores, items = top_k(load_run("runs/baby/seed-0").scorer(), users, k=10)
    """
    folder = Path(folder)
    if not (folder / "result.json").exists():
        seeds = sorted(path.parent.name for path in folder.glob("seed-*/result.json"))
        inside = f"in its folders {seeds} there are" if seeds else "no 'result.json'"
        raise FileNotFoundError(f"there is no finished run in '{folder}' itself ({inside})")
    config = read_json(folder / "result.json").get("config")
    if not isinstance(config, dict):
        raise ValueError(f"'{folder / 'result.json'}' is not the result of a run (no 'config')")
    config.pop("methods", None)  # which follow from the others
    unknown = sorted(set(config) - set(Experiment.__dataclass_fields__))
    if unknown:
        raise ValueError(f"'{folder / 'result.json'}' is not of this version: unknown {unknown}")
    experiment = Experiment(**config, root=str(root), device=device)
    data = experiment.load()
    experiment._finished(folder, fingerprints(data))  # raises if the data are others
    objective = experiment.objective(data)
    load_weights(objective.backbone, folder / "weights.safetensors")
    if objective.methods.state_dict():
        load_weights(objective.methods, folder / "methods.safetensors")
    trainer = experiment._trainer(objective, data, None, False)
    if (folder / "vectors.safetensors").exists():
        kept = load_file(folder / "vectors.safetensors")
        for name, x in zip(("user", "item"), trainer.vectors(), strict=True):
            scale = float(kept[name].abs().max())
            if not torch.allclose(x.cpu(), kept[name], rtol=1e-3, atol=1e-3 * scale):
                raise ValueError(
                    f"'{folder}' gives other {name} vectors than it ended with: "
                    f"{experiment.model} has changed since, or learns what is not in its weights"
                )
    return trainer


def versions(device: str = "cpu") -> dict[str, str]:
    """Versions of what computes, and the device."""
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for package in ("pyg-mmrec", "torch", "torch-geometric", "numpy", "faiss-cpu", "torch-sparse"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    found["threads"] = str(torch.get_num_threads())
    found["device"] = torch.cuda.get_device_name(device) if device.startswith("cuda") else device
    return found
