"""Adversarial features."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pyg_mmrec.argument_checks import check_choice, check_weight
from pyg_mmrec.data import Graph
from pyg_mmrec.nn.backbones import Backbone, Stages, Triplets
from pyg_mmrec.nn.functional import normalize_rows
from pyg_mmrec.nn.objectives.method import Method, backbones_with


class AMR(Method):
    r"""Adversarial training on the modality features, AMR (`"Adversarial Training Towards Robust
    Multimedia Recommender System" <https://arxiv.org/abs/1809.07062>`_, TKDE 2020).

    .. math::
        \mathcal{L} = L_0(\mathbf{x}) + \lambda_{adv} L_0(\mathbf{x} + \Delta), \qquad
        \Delta_i = \epsilon \, \frac{\Gamma_i}{\lVert \Gamma_i \rVert}, \qquad
        \Gamma = \left. \frac{\partial L_0(\mathbf{x} + \Delta)}{\partial \Delta} \right|_{\Delta=0}

    on the batch, row by row of each modality, 0 where :math:`\Gamma_i = 0`; no gradient flows
    through :math:`\Delta`. Features should be of a common scale first:
    :class:`~pyg_mmrec.transforms.ScaleFeatures`. Where the backbone draws dropout, as BM3 does,
    :math:`L_0(\mathbf{x})`, :math:`\Gamma` and :math:`L_0(\mathbf{x} + \Delta)` each have a draw
    of their own.

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
            backbone's loss reads no features, or those of a copy of its own that it trains.

    .. note::
        The paper starts from a trained backbone; load its weights before training to do so.
    """

    name = "amr"
    reads_hidden = False

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
        check_choice("kind", kind, ("gradient", "sign", "random"))
        check_choice("on", on, ("features", "projections"))
        self.epsilon = epsilon
        self.adversarial_weight = adversarial_weight
        self.kind = kind
        self.on = on

    @property
    def reads_all_rows(self) -> bool:
        """True on projections, of which a backbone may need every row whatever the batch."""
        return self.on == "projections"

    def attach(self, backbone: Backbone) -> None:
        """Needs features that the loss reads."""
        if not backbone.loss_reads_content:
            raise ValueError(
                f"AMR perturbs modality features, and the loss of this {type(backbone).__name__} "
                f"reads none (its 'loss_reads_content' is false); that of "
                f"{backbones_with(lambda item: bool(item.loss_reads_content))} does, given "
                f"'contrastive_weight' > 0 of BM3 and 'reg_weight' > 0 of FREEDOM"
            )
        if self.on == "features" and not self._names(backbone):
            raise ValueError(
                f"AMR perturbs modality features, and {type(backbone).__name__} does not say which "
                f"it reads: name them in 'modalities' or 'content_channels', or use "
                f"'on=\"projections\"'"
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
        if self.adversarial_weight == 0:
            return {}
        if self.on == "projections":
            given = backbone.project(graph)

            def loss(changed: dict[str, Tensor]) -> Tensor:
                return self._total(backbone, backbone.forward_from(changed, graph), batch)
        else:
            given = {name: graph.x[name] for name in self._names(backbone) if name in graph.x}
            rows = self.computed_rows(batch)

            def loss(changed: dict[str, Tensor]) -> Tensor:
                perturbed = graph.replace(x={**graph.x, **changed})
                return self._total(backbone, backbone(perturbed, rows), batch)

        delta = self._delta(backbone, loss, given)
        if self.on == "projections":  # an item that lacks the modality has none to perturb
            delta = {
                name: d * graph.mask[name][:, None] if name in graph.mask else d
                for name, d in delta.items()
            }
        adversarial = loss({name: z + delta[name] for name, z in given.items()})
        return {"adversarial": self.adversarial_weight * adversarial}

    @staticmethod
    def _names(backbone: Backbone) -> list[str]:
        """Modalities whose features the backbone reads."""
        return list(getattr(backbone, "modalities", backbone.content_channels))

    @staticmethod
    def _total(backbone: Backbone, stages: Stages, batch: Triplets) -> Tensor:
        """:math:`L_0`, all of its terms."""
        return torch.stack(list(backbone.loss(stages, batch).values())).sum()

    def _delta(
        self,
        backbone: Backbone,
        loss: Callable[[dict[str, Tensor]], Tensor],
        given: dict[str, Tensor],
    ) -> dict[str, Tensor]:
        if self.kind == "random":
            return {
                name: self.epsilon * normalize_rows(torch.randn_like(x, requires_grad=False))
                for name, x in given.items()
            }
        point = {name: x.detach().requires_grad_() for name, x in given.items()}
        with torch.enable_grad():
            value = loss(point)
        gradients = torch.autograd.grad(value, list(point.values()), materialize_grads=True)
        delta = {}
        for name, gradient in zip(point, gradients, strict=True):
            direction = gradient.sign() if self.kind == "sign" else normalize_rows(gradient)
            delta[name] = self.epsilon * direction
        return delta
