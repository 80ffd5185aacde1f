"""Tokens of many sequences one after the other in a single row of a forward pass: none of them is padding."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .segment_batches import Batch


class Segment(NamedTuple):
    """Tokens ``start .. stop - 1`` of a sequence.

    :ivar int row: the slab row of the sequence.
    :ivar int start: first position.
    :ivar int stop: one more than the last position.
    """

    row: int
    start: int
    stop: int

    @property
    def size(self) -> int:
        return self.stop - self.start


def take(waiting: Sequence[Segment], tokens: int, mask_elements: int) -> tuple[list[Segment], list[Segment]]:
    """Cut off what one forward pass may run.

    :param waiting: at least one segment, in order of their starts.
    :param int tokens: most tokens of a pass.
    :param int mask_elements: bound on the entries of the attention mask, which has a row for each position from the lowest start on.
    :returns: what to run now, and what is left in order of starts. Of a segment that is cut in two the first part is run first.
    """
    lowest = waiting[0].start
    highest = max(lowest + 1, int((lowest + math.sqrt(lowest**2 + 4 * mask_elements)) / 2))  # the root of x (x - lowest) = mask_elements
    taken: list[Segment] = []
    for k, segment in enumerate(waiting):
        stop = min(segment.stop, segment.start + tokens, highest)
        if stop <= segment.start:
            return taken, list(waiting[k:])
        taken.append(segment._replace(stop=stop))
        tokens -= taken[-1].size
        if stop < segment.stop:
            return taken, sorted([segment._replace(start=stop), *waiting[k + 1 :]], key=lambda each: each.start)
    return taken, []


class Segments:
    """What a forward pass over packed tokens needs to know of them.

    :param segments: in the order of the tokens.
    :ivar list bounds: for each of them its row, where its tokens begin and end in the pass, and how many tokens its lane then holds.
    :ivar Tensor rows: ``[T]`` the row of each token.
    :ivar Tensor positions: ``[T]`` its position.
    :ivar Tensor looking: ``[1, R]`` the positions that the rows of the attention mask are for.
    :ivar Tensor mask: ``[1, 1, R, S]``, true where a position may be seen.
    :ivar batches: see :mod:`~ppl_llm.kv_cache.segment_batches`; ``None`` until somebody asks.
    """

    def __init__(self, segments: Sequence[Segment], device: torch.device) -> None:
        self.batches: list[Batch] | None = None
        sizes = [segment.size for segment in segments]
        ends = torch.tensor(sizes).cumsum(0).tolist()
        self.bounds = [(each.row, end - each.size, end, each.stop) for each, end in zip(segments, ends, strict=True)]
        self._lowest, highest = min(each.start for each in segments), max(each.stop for each in segments)
        rows, shifts = torch.tensor([(each.row, each.stop - end) for each, end in zip(segments, ends, strict=True)], device=device).T
        repeats = torch.tensor(sizes, device=device)
        self.rows = rows.repeat_interleave(repeats, output_size=ends[-1])
        self.positions = torch.arange(ends[-1], device=device) + shifts.repeat_interleave(repeats, output_size=ends[-1])
        self.looking = torch.arange(self._lowest, highest, device=device)[None]
        self.mask = (torch.arange(highest, device=device) <= self.looking[..., None])[:, None]

    def seen(self, mask: Tensor, begin: int, end: int, length: int) -> Tensor:
        """The part ``[1, 1, end - begin, length]`` of a mask ``[1, 1, R, S]`` for the last tokens of a lane of ``length`` tokens."""
        last = length - self._lowest
        return mask[:, :, last - (end - begin) : last, :length]
