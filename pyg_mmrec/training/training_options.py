"""How a backbone is trained."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from pyg_mmrec.argument_checks import check_choice, check_positive


@dataclass(frozen=True)
class TrainingOptions:
    r"""How a backbone is trained.

    Args:
        learning_rate (float): Of Adam. (default: 1e-3)
        lr_decay (float): The rate of epoch :math:`e`, from 0, is multiplied with
            ``lr_decay ** (e / lr_decay_epochs)``. (default: 1)
        lr_decay_epochs (int): See ``lr_decay``. (default: 50)
        batch_size (int): Interactions per step. (default: 2048)
        epochs (int): Most epochs to train. (default: 1000)
        patience (int): Epochs without a new best validation metric after which training stops.
            (default: 20)
        decimals (int, optional): Decimals to which the metric is rounded before it is compared.
            (default: full precision)
        metric (str): Validation metric that picks the epoch. (default: ``"recall@20"``)
        seed (int): Seed of sampling and of the graphs drawn in training. (default: 0)
        checkpoint_epochs (int): Epochs between two checkpoints, or fewer once a minute has passed.
            (default: 5)
        mask_validation (bool): Whether validation items are no candidates when the test split is
            ranked; published tables keep them. (default: :obj:`False`)
        precision (str): ``"float32"``, or ``"bf16"`` to make the products of a step's forward and
            backward pass in bfloat16 (:class:`torch.autocast`); weights, Adam and ranking stay in
            ``float32``. Meant for GPUs. (default: ``"float32"``)
        compile (bool): Compiles the loss and its gradient with :func:`torch.compile`, which needs
            a C++ compiler and takes half a minute or more of the first epochs. Meant for GPUs; on a
            CPU plain steps are faster. (default: :obj:`False`)

    Raises:
        ValueError: If a number is out of range or a name unknown.
    """

    learning_rate: float = 1e-3
    lr_decay: float = 1.0
    lr_decay_epochs: int = 50
    batch_size: int = 2048
    epochs: int = 1000
    patience: int = 20
    decimals: int | None = None
    metric: str = "recall@20"
    seed: int = 0
    checkpoint_epochs: int = 5
    mask_validation: bool = False
    precision: str = "float32"
    compile: bool = False

    #: What the public toolbox does where it differs.
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {},
        "mmrec": {"patience": 21, "decimals": 4},
    }

    def __post_init__(self) -> None:
        for name in ("learning_rate", "lr_decay"):
            if not (getattr(self, name) > 0 and math.isfinite(getattr(self, name))):
                raise ValueError(f"'{name}' needs to be positive (got {getattr(self, name)})")
        for name in ("lr_decay_epochs", "batch_size", "epochs", "patience", "checkpoint_epochs"):
            check_positive(name, getattr(self, name))
        for name, value in (("seed", self.seed), ("decimals", self.decimals or 0)):
            if type(value) is not int or value < 0:
                raise ValueError(f"'{name}' needs to be an integer of 0 or more (got {value!r})")
        check_choice("precision", self.precision, ("float32", "bf16"))
