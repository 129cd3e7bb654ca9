"""The training loop."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch_geometric.data import HeteroData
from tqdm.auto import tqdm

from pyg_mmrec.data import Graph, fingerprints
from pyg_mmrec.evaluation import FORMULAS, KS, FullRanking
from pyg_mmrec.nn.backbones import Backbone, Triplets
from pyg_mmrec.nn.objectives import Objective
from pyg_mmrec.retrieval import InnerProduct
from pyg_mmrec.training.checkpoint import differences, load_checkpoint, save_checkpoint
from pyg_mmrec.training.early_stopping import EarlyStopping
from pyg_mmrec.training.history import History
from pyg_mmrec.training.training_options import TrainingOptions
from pyg_mmrec.training.triplet_sampler import TripletSampler
from pyg_mmrec.transforms.seeding import seed_of

#: An epoch that ends later than this after a checkpoint leaves one, too.
_CHECKPOINT_SECONDS = 60


class Trainer:
    r"""Trains an objective, keeps its best epoch, and can stop and go on at any time.

    Adam steps over batches of interactions in random order, each with a sampled negative item.
    After every epoch all items are ranked for the validation users, as far down as the metric
    looks, and coverage is not measured; the epoch with the best metric is kept. With a ``folder``,
    checkpoints hold weights, optimiser, random states and history, so that a resumed run ends
    bit-identical to an undisturbed one.

    Args:
        objective (Objective): Backbone and methods. Its device is where everything happens, but
            for making the graph, which happens where the data are.
        data (HeteroData): Interactions and modalities, with held-out label indices.
        options (TrainingOptions, optional): How to train. (default: ``TrainingOptions()``)
        folder (pathlib.Path, optional): Where the checkpoint is kept. (default: none is)
        progress (bool, optional): Shows a progress bar. (default: :obj:`True`)
        identity (dict, optional): What else a run has to agree in with the checkpoint that it goes
            on from, such as where its first weights come from; plain values by name.

    Raises:
        ValueError: If ``objective``, ``data`` or ``options`` is something else, the data are of
            other sizes than the backbone, or lack held-out interactions, or the metric or the
            backbone's ``graph_sampling`` is unknown.

    .. note::
        ``options.seed`` covers what the trainer draws. Weights drawn by the backbone's constructor
        and noise drawn by methods come from the global generator: call
        :func:`torch_geometric.seed_everything` before building the objective.
    """

    def __init__(
        self,
        objective: Objective,
        data: HeteroData,
        options: TrainingOptions | None = None,
        folder: Path | str | None = None,
        progress: bool = True,
        identity: dict[str, Any] | None = None,
    ) -> None:
        if not isinstance(objective, Objective):
            raise ValueError(
                f"'objective' needs to be an Objective, as 'Objective(backbone, *methods)' makes "
                f"it (got {type(objective).__name__})"
            )
        if not isinstance(options, TrainingOptions | None):
            raise ValueError(
                f"'options' needs to be TrainingOptions (got {type(options).__name__})"
            )
        self.objective = objective
        self.backbone: Backbone = objective.backbone
        self.options = options or TrainingOptions()
        self.checkpoint = Path(folder) / "checkpoint.safetensors" if folder else None
        self.progress = progress
        self.history = History()

        graph = self.backbone.graph(data)  # made where the data are
        sizes = (graph.num_users, graph.num_items)
        needed = (self.backbone.num_users, self.backbone.num_items)
        if sizes != needed:
            raise ValueError(
                f"the backbone needs data of {needed[0]} users and {needed[1]} items (got "
                f"{sizes[0]} and {sizes[1]}): make it with 'from_data' of the same data"
            )
        parameters = list(objective.parameters())
        edges = data["user", "interacts", "item"].edge_index
        self.device = parameters[0].device if parameters else edges.device
        self.graph = graph.to(self.device)
        data = copy.copy(data).to(self.device)  # `to` moves a HeteroData in place
        self.data = data
        names = [f"{formula}@{k}" for formula in FORMULAS for k in KS]
        if parameters and self.options.metric not in names:
            raise ValueError(f"'metric' needs to be one of {names} (got '{self.options.metric}')")
        depth = int(self.options.metric.split("@")[1]) if parameters else max(KS)
        # An epoch ranks no further than its metric looks.
        ks = [k for k in KS if k <= depth]
        self.validation = FullRanking.from_hetero(data, "val", ks, coverage=False)
        if self.backbone.graph_sampling not in ("never", "epoch", "step"):
            raise ValueError(
                f"'graph_sampling' of {type(self.backbone).__name__} needs to be 'never', 'epoch' "
                f"or 'step' (got {self.backbone.graph_sampling!r})"
            )
        self._loss: Callable[..., dict[str, Tensor]] = objective
        self._second_loss: Callable[..., dict[str, Tensor]] = objective.second_stage
        if self.options.compile:
            self._loss = torch.compile(objective)
            self._second_loss = torch.compile(objective.second_stage)
        self._trainable = bool(parameters)
        if not self._trainable:
            return
        self.sampler = TripletSampler(
            data["user", "interacts", "item"].edge_index,
            self.backbone.num_users,
            self.backbone.num_items,
        )
        fused = self.device.type in ("cpu", "cuda")
        self.optimizers = {
            name: torch.optim.Adam(trained, lr=self.options.learning_rate, fused=fused)
            for name, trained in (
                ("adam", parameters), ("second_adam", objective.second_parameters())
            )
            if trained
        }  # fmt: skip
        self.stopping = EarlyStopping(self.options.patience, self.options.decimals)
        # Separate streams: what one of them draws does not depend on the others.
        self.generators = {
            name: torch.Generator(self.device).manual_seed(seed_of(name, self.options.seed))
            for name in ("sampler", "graph")
        }
        self._best: dict[str, Tensor] = {}
        if self.checkpoint is not None:  # before a step: what a backbone counts is no difference
            self._identity = self._identify(identity or {})

    def fit(
        self, resume: bool = False, callback: Callable[[int, dict[str, Any]], None] | None = None
    ) -> History:
        """Trains until the metric stops rising, and loads the best epoch's weights.

        Args:
            resume (bool, optional): Goes on from the folder's checkpoint if there is one.
                (default: :obj:`False`)
            callback (Callable, optional): Called after every epoch with its number and what the
                history says about it; what it raises ends the training.

        Raises:
            FloatingPointError: If a loss term becomes NaN or infinite; the message names epoch,
                batch and term, and the last checkpoint stays.
            ValueError: If the checkpoint belongs to other options, another objective or other
                data; the message names what differs. Or if there is a checkpoint, and ``resume``
                is false.
        """
        if not self._trainable:
            return self.history
        if self.checkpoint is not None and self.checkpoint.exists():
            if resume:
                self._restore()
            elif not self.history.epochs:
                raise ValueError(
                    f"'{self.checkpoint}' is the checkpoint of another run: resume that run, or "
                    f"choose another folder"
                )
        saved, saved_at = True, time.monotonic()
        bar = tqdm(
            total=self.options.epochs,
            initial=len(self.history.epochs),
            unit="epoch",
            desc=type(self.backbone).__name__,
            disable=not self.progress,
            mininterval=0.5,
        )
        with bar:
            while len(self.history.epochs) < self.options.epochs and not self.stopping.should_stop:
                record = self._epoch(len(self.history.epochs))
                bar.set_postfix(
                    {
                        "loss": f"{sum(record['loss'].values()):.4f}",
                        self.options.metric: f"{record['validation'][self.options.metric]:.4f}",
                        "best": f"{self.stopping.best_value:.4f}",
                    },
                    refresh=False,
                )
                bar.update()
                if callback is not None:
                    callback(len(self.history.epochs) - 1, record)
                saved = (
                    len(self.history.epochs) % self.options.checkpoint_epochs == 0
                    or time.monotonic() - saved_at > _CHECKPOINT_SECONDS
                )
                if saved:
                    self._save()
                    saved_at = time.monotonic()
        if not saved:  # without a new epoch, the present weights may be the best, not the last
            self._save()
        self.objective.load_state_dict(self._best)
        return self.history

    def evaluate(self, split: Literal["val", "test"] = "test") -> dict[str, float]:
        """Ranks all items with the present weights for the users of a split.

        Args:
            split (str, optional): :obj:`"val"` or :obj:`"test"`. (default: :obj:`"test"`)
        """
        return self.ranking(split)(self.scorer())

    def ranking(self, split: Literal["val", "test"] = "test") -> FullRanking:
        """The evaluator of a split, for instance to measure :meth:`scorer` user by user."""
        masked = split == "test" and self.options.mask_validation
        return FullRanking.from_hetero(self.data, split, mask_validation=masked)

    @torch.no_grad()
    def vectors(self) -> tuple[Tensor, Tensor]:
        """Final user and item vectors of the present weights, as copies.

        Raises:
            ValueError: If the backbone has none.
        """
        self.objective.eval()
        stages = self.backbone(self.objective.inference_graph(self.graph))
        user, item = self.backbone.vectors(stages)
        return user.detach().clone(), item.detach().clone()

    @torch.no_grad()
    def scorer(self) -> Callable[[Tensor], Tensor]:
        """A function from user ids ``[n]`` to scores ``[n, num_items]``."""
        self.objective.eval()
        graph = self.objective.inference_graph(self.graph)
        stages = self.backbone(graph)
        if self.backbone.has_vectors:
            return InnerProduct(*self.backbone.vectors(stages))
        return partial(self.backbone.scores, stages, graph)

    def _epoch(self, epoch: int) -> dict[str, Any]:
        start = time.perf_counter()
        options = self.options
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = options.learning_rate * options.lr_decay ** (
                    epoch / options.lr_decay_epochs
                )
        self.objective.train()
        self._zero_grad()  # an interrupted step leaves its gradients
        losses = []
        for step, (batch, draw_graph) in enumerate(self._batches(epoch)):
            first: dict[str, Tensor] = {}
            for scale in self.objective.gradient_scales(step):
                graph = draw_graph()
                with self._autocast():
                    terms = self._loss(graph, batch)
                self._step("adam", terms, scale)
                first = first or terms
            with self._autocast():
                second = self._second_loss(graph, batch)
            if second:
                if "second_adam" not in self.optimizers:
                    raise ValueError(
                        f"the second stage has the loss terms {list(second)} and nothing to "
                        f"train: the 'second_parameters' of its methods yield none"
                    )
                self._step("second_adam", second)
            terms = first | second
            losses.append(torch.stack(list(terms.values())).detach())
        loss = torch.stack(losses)  # read once per epoch: steps do not wait for it
        self._check_finite(loss, list(terms), epoch)
        self._check_finite_weights(epoch)
        trained = time.perf_counter()

        validation = self.validation(self.scorer())
        if self.stopping.update(validation[options.metric]):
            self._best = {
                name: tensor.clone() for name, tensor in self.objective.state_dict().items()
            }
            self.history.best_epoch = epoch
        record = {
            "loss": dict(zip(terms, loss.double().mean(0).tolist(), strict=True)),
            "validation": validation,
            "seconds": {"train": trained - start, "validation": time.perf_counter() - trained},
        }
        self.history.epochs.append(record)
        return record

    def _autocast(self) -> torch.autocast:
        reduced = self.options.precision == "bf16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=reduced)

    def _step(self, name: str, terms: dict[str, Tensor], scale: float = 1.0) -> None:
        (scale * torch.stack(list(terms.values())).sum()).backward()
        self.optimizers[name].step()
        self._zero_grad()

    def _zero_grad(self) -> None:
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none=True)

    def _batches(self, epoch: int) -> Iterator[tuple[Triplets, Callable[[], Graph]]]:
        """Batches, each with a function that makes the graph for one computation of the loss."""
        draw = partial(self.backbone.sample_graph, self.graph, epoch, self.generators["graph"])
        sampling = self.backbone.graph_sampling
        graph = self.graph
        batches = self.sampler.epoch(self.options.batch_size, self.generators["sampler"])
        if sampling == "epoch":
            # In its first step the graph may carry gradient: computing the loss again, after the
            # weights have changed, needs the same draw made anew. Later it is a constant.
            before = self.generators["graph"].get_state()
            made: list[Graph] = []

            def draw_again() -> Graph:
                self.generators["graph"].set_state(before)
                made.append(draw())
                return made[-1]

            yield next(batches), draw_again
            graph = made[0].detach()
            del made[:]
        for batch in batches:
            yield batch, draw if sampling == "step" else lambda: graph

    @staticmethod
    def _check_finite(loss: Tensor, names: list[str], epoch: int) -> None:
        bad = ~loss.isfinite()
        if bool(bad.any()):
            batch, term = bad.nonzero()[0].tolist()
            raise FloatingPointError(
                f"the loss term '{names[term]}' became {loss[batch, term].item()} in batch "
                f"{batch} of epoch {epoch}; a lower learning rate may help"
            )

    def _check_finite_weights(self, epoch: int) -> None:
        # The last step's weights are in no loss of this epoch.
        names, parameters = zip(*self.objective.named_parameters(), strict=True)
        finite = torch.stack([parameter.detach().isfinite().all() for parameter in parameters])
        if not bool(finite.all()):
            name = names[int(finite.int().argmin())]
            raise FloatingPointError(
                f"the weights '{name}' became NaN or infinite in epoch {epoch}, with a finite "
                f"loss; a lower learning rate may help"
            )

    # Stopping and going on ---------------------------------------------------------------------

    def _identify(self, more: dict[str, Any]) -> dict[str, Any]:
        """What a checkpoint has to agree in to be resumed."""
        identity: dict[str, Any] = asdict(self.options)
        for free in ("epochs", "checkpoint_epochs", "mask_validation"):
            del identity[free]
        identity["device"] = self.device.type  # random states are of its kind
        for path, module in self.objective.named_modules():
            where = path or "objective"
            identity[where] = type(module).__name__
            for name, value in vars(module).items():
                if name != "training" and not name.startswith("_") and _is_plain(value):
                    identity[f"{where}.{name}"] = value
        for name, weights in self.objective.state_dict().items():
            identity[f"shape of {name}"] = list(weights.shape)
        identity["not trained"] = [
            name for name, x in self.objective.named_parameters() if not x.requires_grad
        ]
        return json.loads(json.dumps({**identity, **fingerprints(self.data), **more}))

    def _names(self) -> dict[Tensor, str]:
        return {parameter: name for name, parameter in self.objective.named_parameters()}

    def _save(self) -> None:
        if self.checkpoint is None:
            return
        tensors = {f"weights/{k}": v for k, v in self.objective.state_dict().items()}
        tensors |= {f"best/{k}": v for k, v in self._best.items()}
        names = self._names()
        for name, optimizer in self.optimizers.items():
            for parameter, slots in optimizer.state.items():
                path = f"{name}/{names[parameter]}"
                tensors |= {f"{path}/{k}": v for k, v in slots.items()}
        tensors |= {f"random/{k}": g.get_state() for k, g in self.generators.items()}
        tensors["random/cpu"] = torch.get_rng_state()
        if self.device.type == "cuda":
            tensors["random/cuda"] = torch.cuda.get_rng_state(self.device)
        save_checkpoint(
            self.checkpoint,
            tensors,
            {
                "identity": self._identity,
                "history": asdict(self.history),
                "stopping": asdict(self.stopping),
            },
        )

    def _restore(self) -> None:
        assert self.checkpoint is not None
        tensors, state = load_checkpoint(self.checkpoint)
        changed = differences(state["identity"], self._identity)
        if changed:
            more = f"; and {len(changed) - 5} more" if len(changed) > 5 else ""
            raise ValueError(
                f"the checkpoint '{self.checkpoint}' belongs to another run "
                f"({'; '.join(changed[:5])}{more})"
            )

        def part(prefix: str) -> dict[str, Tensor]:
            cut = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            return {name: tensor.to(self.device) for name, tensor in cut.items()}

        self.objective.load_state_dict(part("weights/"))
        self._best = part("best/")
        names = self._names()
        for name, optimizer in self.optimizers.items():
            groups = optimizer.state_dict()["param_groups"]
            slots: dict[int, dict[str, Tensor]] = {}
            for index, parameter in enumerate(optimizer.param_groups[0]["params"]):
                slot = part(f"{name}/{names[parameter]}/")
                if slot:  # the fused step reads memory as it lies: moments lie as their parameter
                    slots[index] = {
                        key: torch.empty_like(parameter, requires_grad=False).copy_(value)
                        if value.shape == parameter.shape
                        else value
                        for key, value in slot.items()
                    }
            optimizer.load_state_dict({"state": slots, "param_groups": groups})
        for name, generator in self.generators.items():
            generator.set_state(tensors[f"random/{name}"])
        torch.set_rng_state(tensors["random/cpu"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(tensors["random/cuda"], self.device)
        self.history = History(**state["history"])
        self.stopping = EarlyStopping(**state["stopping"])


def _is_plain(value: Any) -> bool:
    """Whether JSON can hold the value."""
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True
