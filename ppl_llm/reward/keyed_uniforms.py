"""Uniform numbers that follow from a key and a place, as of a counter-based generator, for whole batches at once.

References

[1] *Fast splittable pseudorandom number generators*, Guy Steele, Doug Lea, Christine Flood (2014): the finaliser of SplitMix64.
[2] *Parallel random numbers: as easy as 1, 2, 3*, John Salmon et al. (2011).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

# Odd constants of [1], as signed 64-bit numbers; products wrap around.
_GAMMA, _FIRST, _SECOND = -7046029254386353131, -4658895280553007687, -7723592293110705685
_PLACES = 1 << 32
"""More numbers than any key is asked for at one counter."""


def keys_of(tokens: Tensor, seed: int) -> Tensor:
    """``[A]`` int64 keys of token sequences ``[A, L]``, whatever follows them as negative padding."""
    place = torch.arange(1, tokens.shape[-1] + 1, device=tokens.device) * _PLACES
    return _mixed(torch.where(tokens < 0, 0, _mixed((tokens + 1 + place) * _GAMMA)).sum(-1) + seed)


def keyed_uniforms(keys: Tensor, copies: int, size: int, counter: int) -> Tensor:
    """``[copies, A, size]`` float64 in [0, 1).

    :param Tensor keys: ``[A]`` int64.
    :param int counter: another one gives other numbers.
    """
    place = torch.arange(copies * size, device=keys.device).view(copies, 1, size) + counter * _PLACES
    mixed = _mixed(_mixed(keys[:, None] + (place + 1) * _GAMMA) + keys[:, None])
    return _shifted(mixed, 11).double() * 2.0**-53


@contextmanager
def random_numbers_of(key: str, device: torch.device) -> Iterator[None]:
    """Torch draws numbers that follow from a key, and afterwards those that it would have drawn without."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest()) >> 1)
        yield


def _mixed(x: Tensor) -> Tensor:
    x = (x ^ _shifted(x, 30)) * _FIRST
    x = (x ^ _shifted(x, 27)) * _SECOND
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, bits: int) -> Tensor:
    """To the right, zeros coming in."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
