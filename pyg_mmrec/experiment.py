"""One run from data to metrics, as the command line, the examples and the benchmarks make it."""

from __future__ import annotations

import inspect
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch_geometric import seed_everything
from torch_geometric.data import HeteroData

from pyg_mmrec.data import MultimodalDataset, PlantedDataset, statistics
from pyg_mmrec.nn import backbones, objectives
from pyg_mmrec.nn.backbones import Backbone
from pyg_mmrec.nn.objectives import Method, Objective
from pyg_mmrec.options import option_types, parse_option
from pyg_mmrec.training import Trainer, TrainingOptions
from pyg_mmrec.training.checkpoint import read_json, save_tensors, write_json
from pyg_mmrec.transforms import ScaleFeatures

BACKBONES: dict[str, type[Backbone]] = {
    name: item
    for name, item in vars(backbones).items()
    if isinstance(item, type) and issubclass(item, Backbone) and not inspect.isabstract(item)
}
METHODS: dict[str, type[Method]] = {"dvib-a": objectives.DVIBa, "dvib-c": objectives.DVIBc}
PLANTED = {"planted": "small", "planted-tiny": "tiny"}
PRESETS = ("paper", "mmrec")


def choose(kind: str, name: str, choices: Mapping[str, Any]) -> Any:
    """The entry called ``name``.

    Raises:
        ValueError: If there is none; the message lists those that are.
    """
    if name not in choices:
        raise ValueError(f"there is no {kind} '{name}'; there are {', '.join(sorted(choices))}")
    return choices[name]


@dataclass
class Experiment:
    r"""What to run: data, a backbone, methods, and how to train.

    Args:
        model (str): Name of the backbone, one of :obj:`BACKBONES`.
        dataset (str): A folder's name below ``root``; or ``planted`` (2,000 users, 1,500 items) or
            ``planted-tiny``, which are generated. (default: ``planted``)
        root (str): Folder of the data set folders. (default: ``data``)
        method (str): ``none``, or names of :obj:`METHODS` joined by ``+``. (default: ``none``)
        preset (str): ``paper``, or ``mmrec`` for what the public toolbox does where it differs.
            (default: ``paper``)
        options (dict[str, str]): Options as text, by names like ``model.num_layers``,
            ``method.std``, ``train.batch_size``, ``data.split``; ``data.scale_features`` is a
            method of :class:`~pyg_mmrec.transforms.ScaleFeatures`.
        seed (int): Seed of weights, sampling and noise. (default: 0)
        device (str): Device of everything. (default: ``cpu``)

    Raises:
        ValueError: If a name or an option is unknown or does not fit; the message lists the right
            ones.
    """

    model: str
    dataset: str = "planted"
    root: str = "data"
    method: str = "none"
    preset: str = "paper"
    options: dict[str, str] = field(default_factory=dict)
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        choose("preset", self.preset, dict.fromkeys(PRESETS))
        if self.device.startswith("cuda") and not torch.cuda.is_available():
            raise ValueError(f"'device' is '{self.device}', but there is no CUDA device here")
        self.backbone_class: type[Backbone] = choose("model", self.model, BACKBONES)
        names = [] if self.method == "none" else self.method.split("+")
        self.method_classes: list[type[Method]] = [choose("method", n, METHODS) for n in names]
        dataset_class = PlantedDataset if self.dataset in PLANTED else MultimodalDataset
        sections: dict[str, list[Any]] = {
            "model": [self.backbone_class],
            "method": list(self.method_classes),
            "train": [TrainingOptions],
            "data": [dataset_class],
        }
        hidden = {
            "model": ("num_users", "num_items", "in_channels", "features"),
            "train": ("seed",),
            "data": ("root", "name", "size", "transform", "pre_transform", "columns"),
        }
        known = {
            section: {
                name: kind
                for item in classes
                for name, kind in option_types(item, hidden.get(section, ())).items()
            }
            for section, classes in sections.items()
        }
        known["data"]["scale_features"] = str | None
        self.parsed: dict[str, dict[str, Any]] = {section: {} for section in sections}
        for key, text in self.options.items():
            section, _, name = key.partition(".")
            if section not in known or name not in known[section]:
                where = known.get(section)
                listed = [f"{s}.{n}" for s, part in known.items() for n in part]
                if where is not None:
                    listed = [f"{section}.{n}" for n in where]
                raise ValueError(
                    f"there is no option '{key}'"
                    + (
                        f"; there are {', '.join(sorted(listed))}"
                        if listed
                        else " without a method"
                    )
                )
            self.parsed[section][name] = parse_option(key, text, known[section][name])

    def load(self) -> HeteroData:
        """Reads or generates the data."""
        options = dict(self.parsed["data"])
        scale = options.pop("scale_features", None)
        transform = None if scale is None else ScaleFeatures(scale)
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
        methods = []
        for item in self.method_classes:
            own = option_types(item)
            methods.append(item(**{k: v for k, v in self.parsed["method"].items() if k in own}))
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
        }

    def run(
        self,
        out: Path | str | None = None,
        resume: bool = False,
        progress: bool = True,
        data: HeteroData | None = None,
    ) -> dict[str, Any]:
        r"""Trains, evaluates on validation and test, and writes the results.

        Args:
            out (pathlib.Path, optional): Folder for ``result.json``, ``weights.safetensors``,
                ``vectors.safetensors`` and, while training, the checkpoint. (default: none is
                written)
            resume (bool, optional): Goes on with the folder's interrupted run, or returns its
                result if it is finished. (default: :obj:`False`)
            progress (bool, optional): Shows a progress bar. (default: :obj:`True`)
            data (HeteroData, optional): The data, if they are loaded already.

        Returns:
            dict: The content of ``result.json``: ``config``, ``versions``, ``data``, ``history``,
            ``best_epoch``, ``seconds_per_epoch``, ``metrics``.

        Raises:
            ValueError: If the folder holds a run and ``resume`` is false, or another run's result.
            FileNotFoundError: If the data are not there.
            FloatingPointError: If the loss becomes NaN or infinite.
        """
        folder = Path(out) if out is not None else None
        if folder is not None:
            finished = self._finished(folder, resume)
            if finished is not None:
                return finished
        data = self.load() if data is None else data
        seed_everything(self.seed)
        objective = self.objective(data)
        trainer = Trainer(objective, data, self.training_options(), folder, progress)
        history = trainer.fit(resume)
        result = {
            "config": self.config(),
            "versions": versions(),
            "data": statistics(data),
            "history": history.epochs,
            "best_epoch": history.best_epoch,
            "seconds_per_epoch": history.seconds_per_epoch(),
            "metrics": {
                "validation": trainer.evaluate("val"),
                "test": trainer.evaluate("test"),
            },
        }
        if folder is not None:
            save_tensors(folder / "weights.safetensors", objective.backbone.state_dict())
            if objective.backbone.has_vectors:
                user, item = trainer.vectors()
                save_tensors(folder / "vectors.safetensors", {"user": user, "item": item})
            write_json(folder / "result.json", result)  # last: it says that the run is finished
        return result

    def _finished(self, folder: Path, resume: bool) -> dict[str, Any] | None:
        result, checkpoint = folder / "result.json", folder / "checkpoint.safetensors"
        if not resume:
            for file in (result, checkpoint):
                if file.exists():
                    raise ValueError(
                        f"'{folder}' holds a run already ('{file.name}'): resume it, or choose "
                        f"another folder"
                    )
            return None
        if not result.exists():
            return None
        content = read_json(result)
        if content.get("config") != self.config():
            raise ValueError(f"'{result}' is the result of another run: {content.get('config')}")
        return content


def versions() -> dict[str, str]:
    """Versions of what computes."""
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for package in ("pyg-mmrec", "torch", "torch-geometric", "numpy", "faiss-cpu", "torch-sparse"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    found["threads"] = str(torch.get_num_threads())
    return found


def mean_and_std(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (0 for a single value)."""
    tensor = torch.tensor(values, dtype=torch.float64)
    return float(tensor.mean()), float(tensor.std()) if len(values) > 1 else 0.0


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns, the first to the left and the others to the right."""
    lines = [list(header), *map(list, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    text = [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    text.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(text)
