from __future__ import annotations

import zlib

import torch
from torch import Tensor


def check_seed(seed: int | None, generator: torch.Generator | None) -> None:
    r"""Checks that a transform got a seed or a generator, or neither, but not both.

    Args:
        seed (int, optional): A seed.
        generator (torch.Generator, optional): A generator.

    Raises:
        ValueError: If both are given, or if the seed is not an integer of at least 0.
    """
    if seed is not None and generator is not None:
        raise ValueError("only one of 'seed' and 'generator' may be given (got both)")
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int) or seed < 0):
        raise ValueError(f"'seed' needs to be an integer of at least 0 (got {seed!r})")


def make_generator(seed: int | None, generator: torch.Generator | None) -> torch.Generator | None:
    r"""Returns the generator that one call of a transform draws from.

    A seed gives a new CPU generator in each call, so that every call draws the same values, on
    every device. A given generator is used as it is and moves on. With neither, :obj:`None`
    stands for the global generator.

    Args:
        seed (int, optional): A seed.
        generator (torch.Generator, optional): A generator.
    """
    return generator if seed is None else torch.Generator().manual_seed(seed)


def seed_of(name: str, seed: int) -> int:
    r"""The seed of one of several random streams of a run, so that none depends on another.

    A checksum, since a CPU's generator reads 32 bits of its seed and the global one may have the
    run's.

    Args:
        name (str): The stream's name.
        seed (int): The run's seed.
    """
    return zlib.crc32(f"{name} {seed}".encode())


def normal(size: tuple[int, ...], like: Tensor, generator: torch.Generator | None = None) -> Tensor:
    r"""Draws :math:`\mathcal{N}(0, 1)` in float32, on the generator's device if one is given.

    Args:
        size (tuple[int, ...]): The shape.
        like (Tensor): The result lies on its device.
        generator (torch.Generator, optional): The generator to draw from.
    """
    device = like.device if generator is None else generator.device
    return torch.randn(size, generator=generator, device=device).to(like.device)
