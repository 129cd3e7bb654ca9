"""The contract of the stages that a backbone computes in."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyg_mmrec.nn.backbones import EVERY_ROW, Rows, Stages
from pyg_mmrec.nn.backbones.stages import node_type
from pyg_mmrec.testing.check import Check, Snapshot, close, different

_UNKNOWN_SITE = "item/a_site_that_no_backbone_has"


class StageCheck(Check):
    """The rules of the stages, one method each; random draws in training are seeded alike."""

    def forward(self, rows: Rows = EVERY_ROW) -> Stages:
        """All stages, of every row or of some."""
        torch.manual_seed(0)
        return self.backbone(self.graph) if rows is EVERY_ROW else self.backbone(self.graph, rows)

    @staticmethod
    def noise(x: Tensor) -> Tensor:
        """Noise as large as the tensor itself, so that it shows in what is computed from it."""
        return torch.randn_like(x) * x.std().clamp(min=1e-3)

    @torch.no_grad()
    def stages(self) -> None:
        """``forward`` runs the stages in turn, and their tensors have the rows of their names."""
        self.require(
            isinstance(self.backbone.sites, dict),
            "'sites' needs to be a property that gives numbers of channels by site, a dict",
        )
        torch.manual_seed(0)
        modality = self.backbone.project(self.graph)
        self.require_dicts((modality,), 1, "'project' needs to return one dict, by modality")
        fused = self.backbone.fuse(modality, self.graph)
        self.require_dicts(fused, 2, "'fuse' needs to return two dicts, hidden layers and context")
        hidden, context = fused
        encoded = self.backbone.encode(hidden, context, self.graph)
        self.require_dicts(
            encoded, 3, "'encode' needs to return three dicts, hidden layers, output and compared"
        )
        reached, output, compared = encoded
        stages = self.forward()
        self.require(
            isinstance(stages, Stages), "'forward' needs to return 'Stages' (do not override it)"
        )
        apart = Stages(modality, reached, context, output, compared)
        self.require(
            set(self.backbone.sites) == set(reached),
            f"'sites' declares {list(self.backbone.sites)}, but 'encode' returns the hidden layers "
            f"{list(reached)}; return each site's hidden layer as it was reached",
        )
        for part in ("modality", "hidden", "context", "output", "compared"):
            keys = different(getattr(stages, part), getattr(apart, part))
            self.require(
                not keys,
                f"'forward' differs from 'project', 'fuse' and 'encode' in {part} {keys}; draw "
                f"random numbers in 'fuse' and hand them on in the context, and do all other work "
                f"in the three stages",
            )
        self.require_unwritten("'forward'")
        for name, z in stages.modality.items():
            self.require(
                z.dim() == 2 and z.size(0) == self.graph.num_items,
                f"'project' needs to return one row per item for '{name}' (got {list(z.shape)})",
            )
        rows = {"user": self.graph.num_users, "item": self.graph.num_items}
        by_rows = ["hidden", "compared"]
        if self.backbone.rowwise:  # else context and output may hold anything else, too
            by_rows += ["context", "output"]
        for part in by_rows:
            for key, x in getattr(stages, part).items():
                if part in ("context", "output") and isinstance(x, Tensor) and x.dim() == 0:
                    continue
                self.require(
                    isinstance(x, Tensor),
                    f"{part} '{key}' needs to be a tensor, to be read by rows",
                )
                try:
                    kind = node_type(key)
                except ValueError as error:
                    raise AssertionError(
                        f"{self.subject}: a key of '{part}' is wrong: {error}"
                    ) from error
                self.require(
                    x.dim() > 0 and x.size(0) == rows[kind],
                    f"{part} '{key}' is named for {kind}s and needs {rows[kind]} rows "
                    f"(got shape {list(x.shape)})",
                )
        self.require(
            bool(stages.compared) or not self.backbone.sites,
            "'encode' returns nothing in 'compared', though there are sites; name the final "
            "tensors that a perturbation changes",
        )

    def require_dicts(self, returned: Any, number: int, needed: str) -> None:
        """A stage returns dicts."""
        parts = returned if isinstance(returned, tuple) else (returned,)
        self.require(
            len(parts) == number and all(isinstance(part, dict) for part in parts),
            f"{needed} (got {', '.join(type(part).__name__ for part in parts)})",
        )

    def require_same(self, encoded: Any, other: Any, broken: str) -> None:
        """``encode`` returned the same twice; ``broken`` has places for what differs."""
        for part, x, y in zip(("hidden", "output", "compared"), encoded, other, strict=True):
            keys = different(x, y)
            self.require(not keys, broken.format(part=part, keys=keys))

    @torch.no_grad()
    def encode(self) -> None:
        """``encode`` is pure, and adds noise to what ``fuse`` made and to nothing else."""
        stages = self.forward()
        torch.manual_seed(0)
        first, _ = self.backbone.fuse(self.backbone.project(self.graph), self.graph)
        arguments = (stages.hidden, stages.context)
        before = Snapshot(arguments)
        torch.manual_seed(1)
        one = self.backbone.encode(*arguments, self.graph)
        torch.manual_seed(2)
        two = self.backbone.encode(*arguments, self.graph)
        self.require_same(
            one,
            two,
            "'encode' is not pure: {part} {keys} differ between two calls with the same "
            "arguments; draw random numbers in 'fuse' and keep nothing between calls",
        )
        zero = {site: torch.zeros_like(x) for site, x in stages.hidden.items()}
        for kind, delta in (("an empty", {}), ("a zero", zero)):
            self.require_same(
                self.backbone.encode(*arguments, self.graph, delta),
                one,
                f"'encode' with {kind} delta differs from 'encode' without one in {{part}} "
                f"{{keys}}; only add delta[site] to the site",
            )
        delta = {site: self.noise(x) for site, x in stages.hidden.items()}
        given = Snapshot(delta)
        from_all = self.backbone.encode(*arguments, self.graph, delta)
        self.require(
            before.holds(arguments) and given.holds(delta),
            "'encode' writes into its arguments; make new dicts and tensors",
        )
        self.require_same(
            from_all,
            self.backbone.encode(first, stages.context, self.graph, delta),
            "'encode' reads hidden layers that 'fuse' does not make ({part} {keys} differ); "
            "compute later sites anew, so that noise adds up",
        )
        self.require_unwritten("'encode'")

    @torch.no_grad()
    def hidden(self) -> None:
        """``encode`` reads the hidden layers that it gets."""
        first, context = self.backbone.fuse(self.backbone.project(self.graph), self.graph)
        delta = {site: self.noise(x) for site, x in first.items()}
        moved = {site: x + delta[site] for site, x in first.items()}
        given = self.backbone.encode(moved, context, self.graph)
        added = self.backbone.encode(first, context, self.graph, delta)
        # The output may keep the clean layer, say for a norm penalty.
        for part, x, y in (("hidden", given[0], added[0]), ("compared", given[2], added[2])):
            self.require(
                not different(x, y),
                f"'encode' does not read the hidden layers that it gets: {part} {different(x, y)} "
                f"differ between moved ones and a delta as large; compute it from 'hidden', not "
                f"from what 'fuse' made that of",
            )

    @torch.no_grad()
    def sites(self) -> None:
        """A delta at a site is added there, changes what is compared, and nothing before it."""
        backbone, graph = self.backbone, self.graph
        stages = self.forward()
        sites = backbone.sites
        for site, channels in sites.items():
            shape = list(stages.hidden[site].shape)
            self.require(
                len(shape) == 2 and shape[1] == channels,
                f"'sites' declares {channels} channels for '{site}' (its shape is {shape})",
            )
        changed: set[str] = set()
        for index, site in enumerate(sites):
            delta = {site: self.noise(stages.hidden[site])}
            hidden, _, compared = backbone.encode(stages.hidden, stages.context, graph, delta)
            self.require(
                close(hidden[site], stages.hidden[site] + delta[site]),
                f"a delta at '{site}' is not added there; return hidden + delta as the site's "
                f"hidden layer",
            )
            earlier = list(sites)[:index]
            moved = [k for k in earlier if not close(hidden[k], stages.hidden[k])]
            self.require(
                not moved,
                f"a delta at '{site}' changes the hidden layers {moved}, which 'sites' declares "
                f"before it; declare sites in the order in which they are reached",
            )
            affected = different(compared, stages.compared)
            self.require(
                bool(affected),
                f"a delta at '{site}' changes none of the compared tensors; compute them from it",
            )
            changed.update(affected)
        constant = sorted(set(stages.compared) - changed)
        self.require(
            not constant,
            f"'compared' names {constant}, which no delta changes; leave them out, or they water "
            f"down the mean",
        )
        if sites:
            rows = next(iter(stages.hidden.values()))
            unknown = {_UNKNOWN_SITE: torch.ones_like(rows)}
            try:
                _, output, _ = backbone.encode(stages.hidden, stages.context, graph, unknown)
            except (KeyError, ValueError):
                return
            self.require(
                not different(output, stages.output),
                "a delta at a site that was never declared changes the output; ignore it or "
                "raise a ValueError",
            )

    @torch.no_grad()
    def rows(self) -> None:
        """The stages of some rows are these rows of all, where that is declared."""
        if not (self.backbone.rowwise or self.backbone.gathers_output):
            return
        fact, parts = "gathers_output", ["output", "compared"]
        if self.backbone.rowwise:
            fact, parts = "rowwise", ["hidden", "context", *parts]
        self.backbone.eval()  # in training, as many random numbers are drawn as there are rows
        wanted = self.batch.rows
        full = self.forward()
        try:
            rows = self.forward(wanted)
        except TypeError as error:
            raise AssertionError(
                f"{self.subject}: '{fact}' is declared, but the stages fail with {error!r}; give "
                f"'project' and 'fuse' the argument 'rows=EVERY_ROW', or declare it False"
            ) from error
        self.backbone.train()
        drawn = self.forward(wanted)
        for part in parts:
            expected = {key: wanted.at(key, x) for key, x in getattr(full, part).items()}
            keys = different(getattr(rows, part), expected)
            self.require(
                not keys,
                f"'{fact}' is declared, but {part} {keys} of the batch's rows alone differ from "
                f"these rows of all; declare it False where rows depend on each other",
            )
            for key, x in expected.items():
                shape = list(getattr(drawn, part).get(key, x).shape)
                self.require(
                    shape == list(x.shape),
                    f"'{fact}' is declared, but in training {part} '{key}' of the batch's rows "
                    f"has shape {shape} instead of {list(x.shape)}",
                )
