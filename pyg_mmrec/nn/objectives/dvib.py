"""Variational information bottleneck distillation."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from pyg_mmrec.argument_checks import check_choice, check_weight
from pyg_mmrec.data import Graph
from pyg_mmrec.nn.backbones import (
    EVERY_ROW,
    Backbone,
    GatheredTriplets,
    Rows,
    Stages,
    Triplets,
)
from pyg_mmrec.nn.losses import BottleneckRate, DistillationLoss, NormalKLRate
from pyg_mmrec.nn.noise import AdaptiveNoise, ConstantNoise
from pyg_mmrec.nn.objectives.method import Method, backbones_with


class _DVIB(Method):
    """The noisy path that both forms of DVIB share."""

    name = "dvib"
    reads_hidden = False

    def __init__(
        self,
        clean_weight: float,
        noisy_weight: float,
        distillation_weight: float,
        divergence: str,
        rows: str,
        compare: str,
        stop_gradient: str,
        mixing: str,
    ) -> None:
        super().__init__()
        check_weight("clean_weight", clean_weight)
        check_weight("noisy_weight", noisy_weight)
        check_weight("distillation_weight", distillation_weight)
        check_choice("rows", rows, ("batch", "all"))
        check_choice("compare", compare, ("features", "scores", "batch_scores"))
        check_choice("stop_gradient", stop_gradient, ("none", "teacher"))
        check_choice("mixing", mixing, ("sum", "convex"))
        if mixing == "convex" and distillation_weight > 1:
            raise ValueError(
                f"'distillation_weight' needs to lie in [0, 1] for convex mixing "
                f"(got {distillation_weight})"
            )
        if max(clean_weight, noisy_weight, distillation_weight) == 0:
            raise ValueError(
                "one of 'clean_weight', 'noisy_weight' and 'distillation_weight' needs to be "
                "positive (got 0, 0, 0)"
            )
        share = 1.0 if mixing == "sum" else 1.0 - distillation_weight
        self.weights = (share * clean_weight, share * noisy_weight, distillation_weight)
        self.rows = rows
        self.compare = compare
        self.stop_gradient = stop_gradient
        self.distillation = DistillationLoss(divergence, reduction="none")
        self.rate: nn.Module | None = None
        self.rate_weight = 0.0

    @property
    def clean_weight(self) -> float:
        """Weight of the clean path's loss."""
        return self.weights[0]

    @property
    def reads_all_rows(self) -> bool:
        """True if all rows, or scores of all items, are compared."""
        return self.rows == "all" or self.compare == "scores"

    def attach(self, backbone: Backbone) -> None:
        """Needs hidden sites to perturb.

        Raises:
            ValueError: If the backbone declares none.
        """
        if not backbone.sites:
            raise ValueError(
                f"DVIB perturbs hidden layers, and {type(backbone).__name__} declares none "
                f"(its 'sites' are empty); {backbones_with(lambda item: bool(item.sites))} "
                f"have some"
            )

    def perturb(self, site: str, hidden: Tensor) -> tuple[Tensor, Tensor | None]:
        """Perturbation of a hidden layer and, where it is learned, its strength per row."""
        raise NotImplementedError(f"{type(self).__name__} does not say how it perturbs")

    def terms(
        self,
        backbone: Backbone,
        graph: Graph,
        stages: Stages,
        batch: Triplets,
        clean: dict[str, Tensor],
    ) -> dict[str, Tensor]:
        """Loss of the noisy path, distillation, and rate."""
        rows = hidden_rows = EVERY_ROW if self.rows == "all" else batch
        if isinstance(batch, GatheredTriplets) and not backbone.rowwise:
            hidden_rows = batch.of_all  # this backbone gathers after the sites
        terms: dict[str, Tensor] = {}
        delta, rates = {}, []
        for site in backbone.sites:
            hidden = stages.hidden[site]
            delta[site], strength = self.perturb(site, hidden)
            if self.rate is not None and strength is not None:
                rates.append(hidden_rows.map(site, self.rate, hidden, strength).mean())
        _, noisy_weight, distillation_weight = self.weights
        if noisy_weight > 0 or distillation_weight > 0:
            reached, output, compared = backbone.encode(stages.hidden, stages.context, graph, delta)
            noisy = replace(stages, hidden=reached, output=output, compared=compared)
            if noisy_weight > 0:
                loss = {**clean, **backbone.perturbed_loss(noisy, batch)}
                terms["noisy"] = noisy_weight * torch.stack(list(loss.values())).sum()
            if distillation_weight > 0:
                terms["distillation"] = distillation_weight * self._distill(
                    backbone, stages, noisy, batch, rows
                )
        if rates:
            terms["rate"] = self.rate_weight * torch.stack(rates).sum()
        return terms

    def _distill(
        self,
        backbone: Backbone,
        clean: Stages,
        noisy: Stages,
        batch: Triplets,
        rows: Rows,
    ) -> Tensor:
        """Divergence between the paths, the mean over the compared tensors (Eq. 10)."""

        def divergence(teacher: Tensor, student: Tensor) -> Tensor:
            if self.stop_gradient == "teacher":
                teacher = teacher.detach()
            return self.distillation(teacher, student)

        if self.compare != "features":
            return divergence(
                self._scores(backbone, noisy, batch), self._scores(backbone, clean, batch)
            ).mean()
        pairs = [(key, noisy.compared[key], clean.compared[key]) for key in clean.compared]
        return torch.stack([rows.map(key, divergence, *pair).mean() for key, *pair in pairs]).mean()

    def _scores(self, backbone: Backbone, stages: Stages, batch: Triplets) -> Tensor:
        user, item = backbone.vectors(stages)
        if self.compare == "batch_scores":
            item = batch.at("item", item)
        return batch.at("user", user) @ item.t()


class DVIBc(_DVIB):
    r"""Variational information bottleneck distillation with constant noise, ``DVIB_c``
    (`"DVIB: Towards Robust Multimodal Recommender Systems via Variational Information Bottleneck
    Distillation" <https://doi.org/10.1145/3696410.3714840>`_, WWW 2025).

    A noisy path :math:`Z_\delta = f_2(H + \delta H)`, :math:`\delta H \sim \mathcal{N}(0, s^2 I)`,
    shares all parameters with the clean one (Eq. 7, 11), and

    .. math::
        \mathcal{L} = L_0(Z) + \gamma_0 L_0(Z_\delta) + \gamma_d D(Z_\delta, Z)

    is minimised (Eq. 8-10, Algorithm 1). Ranking uses the clean path alone, at no cost. Of several
    sites in a row, the noise adds up along the noisy path, one draw per site. Where no row depends
    on another, the noisy path is run on the batch's users and items alone, if these are fewer than
    all and nothing else is compared; an item that occurs twice has one draw, a user two.

    Args:
        std (float, optional): Standard deviation :math:`s` of the noise. (default: 1e-3)
        kind (str, optional): :obj:`"gaussian"`, :obj:`"uniform"` of the same variance, or
            :obj:`"dropout"`, see :class:`~pyg_mmrec.nn.noise.ConstantNoise`.
            (default: :obj:`"gaussian"`)
        dropout_rate (float, optional): Rate of the dropout kind. (default: 0.1)
        clean_weight (float, optional): Weight of the clean path's loss :math:`L_0(Z)`.
            (default: 1)
        noisy_weight (float, optional): :math:`\gamma_0`. (default: 1)
        distillation_weight (float, optional): :math:`\gamma_d`. (default: 0.1)
        divergence (str, optional): :math:`D`: :obj:`"js"`; :obj:`"kl"`,
            :math:`\mathrm{KL}(Z \Vert Z_\delta)`; :obj:`"reverse_kl"`; or :obj:`"softmax_twice"`
            as in the authors' code, see :func:`~pyg_mmrec.nn.losses.softmax_twice_divergence`.
            (default: :obj:`"js"`)
        rows (str, optional): Rows that are compared: :obj:`"batch"`, those of the
            batch's users, positive and negative items (one that occurs twice counts twice), or
            :obj:`"all"`. (default: :obj:`"batch"`)
        compare (str, optional): :obj:`"features"`, the tensors that the backbone names;
            :obj:`"scores"`, the batch users' scores of all items; :obj:`"batch_scores"`, of the
            batch's items. (default: :obj:`"features"`)
        stop_gradient (str, optional): :obj:`"none"`, or :obj:`"teacher"` to keep the distillation
            from moving :math:`Z_\delta`. (default: :obj:`"none"`)
        mixing (str, optional): :obj:`"sum"`, or :obj:`"convex"`,
            :math:`(1 - \gamma_d)(L_0(Z) + L_0(Z_\delta)) + \gamma_d D + R`, as in the authors'
            code. (default: :obj:`"sum"`)

    Raises:
        ValueError: If an option is unknown or out of range.
    """

    def __init__(
        self,
        std: float = 1e-3,
        kind: str = "gaussian",
        dropout_rate: float = 0.1,
        clean_weight: float = 1.0,
        noisy_weight: float = 1.0,
        distillation_weight: float = 0.1,
        divergence: str = "js",
        rows: str = "batch",
        compare: str = "features",
        stop_gradient: str = "none",
        mixing: str = "sum",
    ) -> None:
        super().__init__(
            clean_weight, noisy_weight, distillation_weight, divergence, rows, compare,
            stop_gradient, mixing,
        )  # fmt: skip
        self.noise = ConstantNoise(kind, std, dropout_rate)

    def perturb(self, site: str, hidden: Tensor) -> tuple[Tensor, Tensor | None]:
        """Draws constant noise (Eq. 11)."""
        return self.noise(hidden), None


class DVIBa(_DVIB):
    r"""Variational information bottleneck distillation with adaptive noise, ``DVIB_a``
    (`"DVIB: Towards Robust Multimodal Recommender Systems via Variational Information Bottleneck
    Distillation" <https://doi.org/10.1145/3696410.3714840>`_, WWW 2025).

    As :class:`DVIBc`, with :math:`\delta H = \phi \epsilon` whose strength
    :math:`\phi = \mathrm{Net}_\phi(H)` is learned per row, one network per site (Eq. 12, 14), and
    the rate :math:`R` of the bottleneck (Eq. 13) in the loss:

    .. math::
        \mathcal{L} = L_0(Z) + \gamma_0 L_0(Z_\delta) + \gamma_d D(Z_\delta, Z) +
        \gamma_r \sum_{\mathrm{sites}} R(H, \phi)

    Args:
        kind (str, optional): Noise :math:`\epsilon`, see
            :class:`~pyg_mmrec.nn.noise.AdaptiveNoise`. (default: :obj:`"gaussian"`)
        scale (str, optional): Whether :math:`\phi` is a standard deviation, :obj:`"std"` as in
            Eq. 12, or a :obj:`"variance"`, as Theorems 3.1 and 3.2 read it.
            (default: :obj:`"std"`)
        hidden_channels (tuple[int, int], optional): Hidden widths of :math:`\mathrm{Net}_\phi`; the
            authors' code has (32, 32). (default: half the site's channels, twice)
        rate (str, optional): :obj:`"paper"`, :func:`~pyg_mmrec.nn.losses.bottleneck_rate`, or
            :obj:`"normal_kl"` as in the authors' code,
            :func:`~pyg_mmrec.nn.losses.normal_kl_rate`. (default: :obj:`"paper"`)
        rate_weight (float, optional): :math:`\gamma_r`. (default: 1e-3)
        prior_scale (float, optional): :math:`a`, which :math:`\phi` is drawn towards.
            (default: 0.5)
        hidden_weight (float, optional): :math:`\alpha_0`. (default: 1)
        scale_weight (float, optional): :math:`\beta_0`. (default: 1)
        clean_weight (float, optional): Weight of the clean path's loss :math:`L_0(Z)`.
            (default: 1)
        noisy_weight (float, optional): :math:`\gamma_0`. (default: 1)
        distillation_weight (float, optional): :math:`\gamma_d`. (default: 0.1)
        divergence (str, optional): :math:`D`: :obj:`"js"`; :obj:`"kl"`,
            :math:`\mathrm{KL}(Z \Vert Z_\delta)`; :obj:`"reverse_kl"`; or :obj:`"softmax_twice"`
            as in the authors' code, see :func:`~pyg_mmrec.nn.losses.softmax_twice_divergence`.
            (default: :obj:`"js"`)
        rows (str, optional): Rows that are compared and rated: :obj:`"batch"`, those of the
            batch's users, positive and negative items (one that occurs twice counts twice), or
            :obj:`"all"`. (default: :obj:`"batch"`)
        compare (str, optional): :obj:`"features"`, the tensors that the backbone names;
            :obj:`"scores"`, the batch users' scores of all items; :obj:`"batch_scores"`, of the
            batch's items. (default: :obj:`"features"`)
        stop_gradient (str, optional): :obj:`"none"`, or :obj:`"teacher"` to keep the distillation
            from moving :math:`Z_\delta`. (default: :obj:`"none"`)
        mixing (str, optional): :obj:`"sum"`, or :obj:`"convex"`,
            :math:`(1 - \gamma_d)(L_0(Z) + L_0(Z_\delta)) + \gamma_d D + R`, as in the authors'
            code. (default: :obj:`"sum"`)

    Raises:
        ValueError: If an option is unknown or out of range.
    """

    def __init__(
        self,
        kind: str = "gaussian",
        scale: str = "std",
        hidden_channels: tuple[int, int] | None = None,
        rate: str = "paper",
        rate_weight: float = 1e-3,
        prior_scale: float = 0.5,
        hidden_weight: float = 1.0,
        scale_weight: float = 1.0,
        clean_weight: float = 1.0,
        noisy_weight: float = 1.0,
        distillation_weight: float = 0.1,
        divergence: str = "js",
        rows: str = "batch",
        compare: str = "features",
        stop_gradient: str = "none",
        mixing: str = "sum",
    ) -> None:
        super().__init__(
            clean_weight, noisy_weight, distillation_weight, divergence, rows, compare,
            stop_gradient, mixing,
        )  # fmt: skip
        check_weight("rate_weight", rate_weight)
        check_choice("rate", rate, ("paper", "normal_kl"))
        self.rate_weight = rate_weight
        if rate_weight > 0 and rate == "paper":
            self.rate = BottleneckRate(prior_scale, hidden_weight, scale_weight, reduction="none")
        elif rate_weight > 0:
            self.rate = NormalKLRate(prior_scale, reduction="none")
        self.make_noise = partial(
            AdaptiveNoise, kind=kind, scale=scale, hidden_channels=hidden_channels
        )
        self.make_noise(1)  # refuses bad options now, not when it meets a backbone
        self.noise = nn.ModuleDict()

    def attach(self, backbone: Backbone) -> None:
        """Builds one network per site."""
        super().attach(backbone)
        self.noise = nn.ModuleDict(
            {site: self.make_noise(channels) for site, channels in backbone.sites.items()}
        )

    def perturb(self, site: str, hidden: Tensor) -> tuple[Tensor, Tensor | None]:
        """Draws noise of learned strength (Eq. 12)."""
        delta, strength = self.noise[site](hidden)
        return delta, strength
