"""The contract of a method."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar
from unittest.mock import patch

import torch
from torch import Tensor, nn

from pyg_mmrec.data import Graph
from pyg_mmrec.nn.backbones import Backbone, Stages, Triplets
from pyg_mmrec.nn.objectives import Method, Objective
from pyg_mmrec.testing.check import (
    Check,
    Snapshot,
    check_types,
    close,
    different,
    finite,
    forked_random_state,
    some_batch,
)

_STEPS = 12  # in which a method may step otherwise than in the first


def check_method(
    method_factory: Callable[[], Method],
    backbone: Backbone,
    graph: Graph,
    *,
    batch: Triplets | None = None,
    unused_parameters: Sequence[str] = (),
) -> None:
    r"""Checks that a method wraps a backbone without editing it, also in a second stage, and leaves
    its ranking alone.

    The backbone is copied first and left as it is; random states too.

    Args:
        method_factory (Callable): Makes a new method at every call, for instance the class.
        backbone (Backbone): A backbone that the method can take.
        graph (Graph): What it computes on, usually ``backbone.graph(data)``.
        batch (Triplets, optional): A batch for the loss. (default: some training interactions,
            with sampled negatives)
        unused_parameters (list[str], optional): Names of the method's parameters that rightly get
            no gradient. (default: none)

    Raises:
        AssertionError: If a rule is broken; the message says which, and how to fix it.
        ValueError: If an argument is of another kind, or ``unused_parameters`` names something that
            is no parameter of the method.
    """
    check_types(backbone, graph)
    if isinstance(method_factory, Method) or not callable(method_factory):
        raise ValueError(
            f"'method_factory' needs to make a new method at every call, as a class does (got "
            f"{type(method_factory).__name__})"
        )
    with forked_random_state(graph):
        batch = some_batch(graph) if batch is None else batch
        check = _MethodCheck(method_factory, copy.deepcopy(backbone), graph, batch)
        check.wraps()
        check.terms()
        check.gradients(unused_parameters)
        check.second_stage()
        check.gradient_scales()
        check.ranking()
        check.refuses()


_HOW_TO_READ = (
    "rows are read by 'batch.at(key, tensor)' or 'batch.map'; what reads all has 'reads_all_rows'"
)


class _Bare(Backbone):
    """A backbone that declares nothing: no sites, modalities, item graph or embeddings by name."""

    sites: ClassVar[dict[str, int]] = {}  # type: ignore[assignment]

    def __init__(self, num_users: int, num_items: int) -> None:
        super().__init__(num_users, num_items)
        self.users, self.items = nn.Embedding(num_users, 4), nn.Embedding(num_items, 4)

    def fuse(
        self, modality: dict[str, Tensor], graph: Graph
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return {}, {"user": self.users.weight, "item": self.items.weight}

    def encode(
        self,
        hidden: dict[str, Tensor],
        context: dict[str, Any],
        graph: Graph,
        delta: dict[str, Tensor] | None = None,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
        return {}, dict(context), {}

    def loss(self, stages: Stages, batch: Triplets) -> dict[str, Tensor]:
        user = batch.at("user", stages.output["user"])
        return {"loss": (user * batch.at("item", stages.output["item"]).chunk(2)[0]).mean()}


class _MethodCheck(Check):
    """The rules of a method, one method each."""

    def __init__(
        self,
        method_factory: Callable[[], Method],
        backbone: Backbone,
        graph: Graph,
        batch: Triplets,
    ) -> None:
        super().__init__(backbone, graph, batch)
        self.factory = method_factory
        self.scores = self.rank(backbone, graph)
        self.state = copy.deepcopy(backbone.state_dict())
        alone = copy.deepcopy(backbone)
        alone(graph)
        #: What a pass of the backbone alone changes, such as a batch normalization's averages.
        self.moving = {k for k, x in alone.state_dict().items() if not x.equal(self.state[k])}
        self.before = Snapshot(self.kept_state())
        method = method_factory()
        self.subject = f"{type(method).__name__} over {type(backbone).__name__}"
        self.require(isinstance(method, Method), "'method_factory' needs to make a Method")
        self.require(
            method_factory() is not method, "'method_factory' needs to make a new method each time"
        )
        torch.manual_seed(0)
        self.objective = Objective(backbone, method)
        self.method = method

    def kept_state(self) -> dict[str, Tensor]:
        state = self.backbone.state_dict()
        return {key: x for key, x in state.items() if key not in self.moving}

    def require_unedited(self, when: str) -> None:
        self.require(
            self.before.holds(self.kept_state()),
            f"{when} changes the backbone's state dict; a method keeps its own state and never "
            f"writes the backbone's",
        )

    def draw(self, seed: int = 0) -> dict[str, Tensor]:
        torch.manual_seed(seed)
        try:
            return self.objective(self.graph, self.batch)
        except (IndexError, AttributeError, TypeError, ValueError) as error:
            raise AssertionError(
                f"{self.subject}: a forward pass fails with {error!r}; 'refine' needs to return a "
                f"Graph and 'terms' a dict, and {_HOW_TO_READ}"
            ) from error

    def call(self, name: str, *arguments: Any, make: Callable[[Any], Any] = lambda x: x) -> Any:
        """What a function of the method returns, with the seed of :meth:`draw`."""
        torch.manual_seed(0)
        try:
            return make(getattr(self.method, name)(*arguments))
        except Exception as error:
            raise AssertionError(f"{self.subject}: '{name}' fails with {error!r}") from error

    def wraps(self) -> None:
        self.require_unedited("building the objective")
        self.draw()
        self.require_unedited("a forward pass")
        self.require_unwritten("a forward pass")

    def terms(self) -> None:
        terms = self.draw()
        self.require_terms(terms, "the objective")
        self.require(bool(terms), "the objective has no loss term")
        self.require_alike(self.draw(), terms)
        if different(self.draw(1), terms):
            return  # with random numbers, drawn for as many rows as there are
        with patch.object(type(self.objective), "_reads_fewer_rows", lambda *_: False):
            every = self.draw()
        self.require(
            not different(every, terms),
            f"the terms {different(every, terms)} differ between stages of the batch's rows alone "
            f"and of all rows; {_HOW_TO_READ}",
        )

    def require_alike(self, again: dict[str, Tensor], terms: dict[str, Tensor]) -> None:
        self.require(
            not different(again, terms),
            f"the terms {different(again, terms)} differ between two calls under the same "
            f"'torch.manual_seed'; draw from torch's generator only and keep nothing between calls",
        )

    def gradients(self, unused: Sequence[str]) -> None:
        own = dict(self.method.named_parameters())
        for name in unused:
            if name not in own:
                raise ValueError(
                    f"'unused_parameters' names '{name}', but the method's parameters are "
                    f"{list(own)}"
                )
        trained = {k: p for k, p in own.items() if p.requires_grad and k not in unused}
        self.objective.zero_grad()
        loss = torch.stack(list(self.draw().values())).sum()
        if loss.requires_grad:
            loss.backward()
        without = [name for name, p in trained.items() if p.grad is None]
        self.require(
            not without,
            f"the method's parameters {without} get no gradient; use them in a term, or name them "
            f"in 'unused_parameters' if that is right",
        )
        self.require_finite_gradients("the gradients")
        self.require_unedited("a backward pass")
        self.require_unwritten("a backward pass")

    def require_finite_gradients(self, subject: str) -> None:
        wrong = [
            name
            for name, p in self.objective.named_parameters()
            if p.grad is not None and not finite(p.grad)
        ]
        self.require(not wrong, f"{subject} of {wrong} are not finite")
        self.objective.zero_grad()

    def second_stage(self) -> None:
        arguments = self.backbone, self.graph, self.batch
        terms = self.call("second_terms", *arguments)
        self.require_terms(terms, "'second_terms'")
        self.require_unedited("'second_terms'")
        self.require_unwritten("'second_terms'")
        self.require_alike(self.call("second_terms", *arguments), terms)
        trained = self.call("second_parameters", self.backbone, make=list)
        own = set(map(id, self.backbone.parameters()))
        self.require(
            all(id(parameter) in own for parameter in trained),
            "'second_parameters' needs to yield parameters of the backbone, and yields others",
        )
        if not terms:
            return
        loss = torch.stack(list(terms.values())).sum()
        if loss.requires_grad:
            loss.backward()
        self.require(
            any(parameter.grad is not None for parameter in trained),
            "no gradient of 'second_terms' reaches what 'second_parameters' yields, so nothing is "
            "trained on them",
        )
        self.require_finite_gradients("the gradients that 'second_terms' give")
        self.require_unedited("a backward pass of the second stage")

    def gradient_scales(self) -> None:
        for step in range(_STEPS):
            scales = self.call("gradient_scales", step)
            self.require(
                isinstance(scales, tuple)
                and bool(scales)
                and all(isinstance(x, (int, float)) and math.isfinite(x) for x in scales),
                f"'gradient_scales' needs to return a tuple of one or more finite numbers (got "
                f"{scales!r} in step {step})",
            )
        self.require_unedited("'gradient_scales'")

    def ranking(self) -> None:
        self.backbone.load_state_dict(self.state)
        self.objective.eval()
        refined = self.objective.inference_graph(self.graph)
        scores = self.rank(self.backbone, refined)
        self.objective.train()
        self.require(
            isinstance(refined, Graph) and finite(scores),
            "'inference_graph' needs to return a Graph on which the bare backbone ranks",
        )
        if self.given.holds(refined):
            self.require(
                close(scores, self.scores),
                "the bare backbone ranks differently than before the method came; never replace "
                "the backbone's functions or register hooks",
            )
        self.require_unwritten("'inference_graph'")

    def refuses(self) -> None:
        bare = _Bare(self.graph.num_users, self.graph.num_items)
        bare.to(next(self.backbone.parameters(), None))
        try:
            objective = Objective(bare, self.factory())
        except ValueError:
            return
        except Exception as error:
            raise AssertionError(
                f"{self.subject}: 'attach' fails on a backbone that declares nothing with "
                f"{error!r}; raise a ValueError that names what is missing"
            ) from error
        try:
            terms = objective(self.graph, self.batch) | objective.second_stage(
                self.graph, self.batch
            )
        except Exception as error:
            raise AssertionError(
                f"{self.subject}: 'attach' takes a backbone that declares nothing, but "
                f"training on it fails with {error!r}; raise a ValueError in 'attach' that names "
                f"what is missing"
            ) from error
        self.require_terms(terms, "the objective over a backbone that declares nothing")
