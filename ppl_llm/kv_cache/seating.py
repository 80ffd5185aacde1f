"""Where token sequences lie in a slab, and what is there of each."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .cache import KVSlab


@dataclass
class Seating:
    """Distinct sequences in the first rows of a slab.

    :ivar Tensor tokens: ``[U, L]``, row ``u`` of the slab is for sequence ``u``; padded with ``PAD``.
    :ivar Tensor lengths: ``[U]``.
    :ivar Tensor reused: ``[U]`` leading tokens that the row held already.
    :ivar Tensor row_of: ``[A]`` the row of each sequence asked for.
    :ivar Tensor repeated: ``[A]`` whether an earlier one is identical.
    """

    slab: KVSlab
    tokens: Tensor
    lengths: Tensor
    reused: Tensor
    row_of: Tensor
    repeated: Tensor

    @property
    def num_rows(self) -> int:
        return len(self.lengths)
