"""Adversarial features."""

from __future__ import annotations

import torch
from torch import Tensor

from pyg_mmrec.data import Graph
from pyg_mmrec.nn.backbones import Backbone, ContentBackbone, Stages, Triplets
from pyg_mmrec.nn.backbones.backbone import check_weight
from pyg_mmrec.nn.functional import normalize_rows
from pyg_mmrec.nn.objectives.method import Method, backbones_with

KINDS = ("gradient", "sign", "random")
PLACES = ("features", "projections")


class AMR(Method):
    r"""Adversarial training on the modality features, AMR (`"Adversarial Training Towards Robust
    Multimedia Recommender System" <https://arxiv.org/abs/1809.07062>`_, TKDE 2020).

    .. math::
        \mathcal{L} = L_0(\mathbf{x}) + \lambda_{adv} L_0(\mathbf{x} + \Delta), \qquad
        \Delta_i = \epsilon \, \frac{\Gamma_i}{\lVert \Gamma_i \rVert}, \qquad
        \Gamma = \left. \frac{\partial L_0(\mathbf{x} + \Delta)}{\partial \Delta} \right|_{\Delta=0}

    on the batch, row by row of each modality, 0 where :math:`\Gamma_i = 0`; no gradient flows
    through :math:`\Delta`. Features should be of a common scale first:
    :class:`~pyg_mmrec.transforms.ScaleFeatures`.

    Args:
        epsilon (float, optional): :math:`\epsilon`, the length of each row of :math:`\Delta`; for
            :obj:`"sign"` of each of its entries. (default: 0.1)
        adversarial_weight (float, optional): :math:`\lambda_{adv}`. (default: 1)
        kind (str, optional): :obj:`"gradient"`; :obj:`"sign"`, :math:`\epsilon \,
            \mathrm{sign}(\Gamma)`; or :obj:`"random"` directions. (default: :obj:`"gradient"`)
        on (str, optional): :obj:`"features"`, the raw ones, or :obj:`"projections"`, what the
            backbone makes of them. (default: :obj:`"features"`)

    Raises:
        ValueError: If an option is unknown or out of range; from :class:`Objective`, if the
            backbone reads no features, or trains a copy of its own that would not be perturbed; in
            training, if its loss does not depend on them.

    .. note::
        The paper starts from a trained backbone; load its weights before training to do so.
    """

    name = "amr"

    def __init__(
        self,
        epsilon: float = 0.1,
        adversarial_weight: float = 1.0,
        kind: str = "gradient",
        on: str = "features",
    ) -> None:
        super().__init__()
        check_weight("epsilon", epsilon)
        check_weight("adversarial_weight", adversarial_weight)
        if kind not in KINDS:
            raise ValueError(f"'kind' needs to be one of {list(KINDS)} (got {kind!r})")
        if on not in PLACES:
            raise ValueError(f"'on' needs to be one of {list(PLACES)} (got {on!r})")
        self.epsilon = epsilon
        self.adversarial_weight = adversarial_weight
        self.kind = kind
        self.on = on

    @property
    def reads_all_rows(self) -> bool:
        r"""True on projections: gathered for a batch, an item that stands there twice would have
        two rows of :math:`\Delta`.
        """
        return self.on == "projections"

    def attach(self, backbone: Backbone) -> None:
        """Needs features that the loss reads."""
        if not backbone.content_channels:
            raise ValueError(
                f"AMR perturbs modality features, and {type(backbone).__name__} reads none (its "
                f"'content_channels' are empty); "
                f"{backbones_with(lambda item: issubclass(item, ContentBackbone))} read some"
            )
        if self.on == "features" and getattr(backbone, "features", None) is not None:
            raise ValueError(
                f"AMR perturbs the features of the graph, and {type(backbone).__name__} trains a "
                f"copy of its own: use 'train_features=False', or 'on=\"projections\"'"
            )

    def terms(
        self,
        backbone: Backbone,
        graph: Graph,
        stages: Stages,
        batch: Triplets,
        clean: dict[str, Tensor],
    ) -> dict[str, Tensor]:
        """The loss on perturbed features."""
        if self.on == "features":
            given = {name: graph.x[name] for name in self._modalities(backbone, graph)}
        else:
            given = backbone.project(graph)
        delta = self._delta(backbone, graph, batch, given)
        loss = self._loss(backbone, graph, batch, {k: x + delta[k] for k, x in given.items()})
        return {"adversarial": self.adversarial_weight * loss}

    @staticmethod
    def _modalities(backbone: Backbone, graph: Graph) -> list[str]:
        names = getattr(backbone, "modalities", backbone.content_channels)
        return [name for name in names if name in graph.x]

    def _loss(
        self, backbone: Backbone, graph: Graph, batch: Triplets, given: dict[str, Tensor]
    ) -> Tensor:
        """:math:`L_0` on other features, or other projections."""
        if self.on == "features":
            stages = backbone(graph.replace(x={**graph.x, **given}), self.computed_rows(batch))
        else:
            stages = backbone.forward_from(given, graph)
        return torch.stack(list(backbone.loss(stages, batch).values())).sum()

    def _delta(
        self, backbone: Backbone, graph: Graph, batch: Triplets, given: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        if self.kind == "random":
            return {
                name: self.epsilon * normalize_rows(torch.randn_like(x, requires_grad=False))
                for name, x in given.items()
            }
        point = {name: x.detach().requires_grad_() for name, x in given.items()}
        loss = self._loss(backbone, graph, batch, point)
        gradients: tuple[Tensor | None, ...] = (None,)
        if point and loss.requires_grad:
            gradients = torch.autograd.grad(loss, list(point.values()), allow_unused=True)
        if all(gradient is None for gradient in gradients):
            raise ValueError(
                f"AMR perturbs what the loss reads of the modality {self.on}, and that of "
                f"{type(backbone).__name__} reads nothing of them here"
            )
        found = dict(zip(point, gradients, strict=True))
        return {
            name: torch.zeros_like(x) if found[name] is None else self._step(found[name])  # type: ignore[arg-type]
            for name, x in point.items()
        }

    def _step(self, gradient: Tensor) -> Tensor:
        direction = gradient.sign() if self.kind == "sign" else normalize_rows(gradient)
        return self.epsilon * direction
