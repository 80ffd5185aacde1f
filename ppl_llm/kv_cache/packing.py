"""Tokens of many sequences one after the other in a single row of a forward pass: none of them is padding."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

_MASK_ELEMENTS = 2**26
"""Bound on the entries of a call's mask, those of padding included."""


class Segment(NamedTuple):
    """Tokens ``start .. stop - 1`` of a sequence.

    :ivar int row: the cache row of the sequence.
    :ivar int start: first position.
    :ivar int stop: one more than the last position.
    :ivar int owner: the number of the KV cache, in a pass over several.
    """

    row: int
    start: int
    stop: int
    owner: int = 0

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
    :param lowest: the first position that the attention mask has a row for; by default the first of them.
    :ivar list bounds: for each of them its row, where its tokens begin and end in the pass, and how many tokens its sequence then holds.
    :ivar Tensor rows: ``[T]`` the row of each token.
    :ivar Tensor positions: ``[T]`` its position.
    :ivar Tensor looking: ``[1, R]`` the positions that the rows of the attention mask are for.
    :ivar Tensor mask: ``[1, 1, R, S]``, true where a position may be seen.
    """

    def __init__(self, segments: Sequence[Segment], device: torch.device, lowest: int | None = None) -> None:
        sizes = [segment.size for segment in segments]
        ends = torch.tensor(sizes).cumsum(0).tolist()
        self.bounds = [(each.row, end - each.size, end, each.stop) for each, end in zip(segments, ends, strict=True)]
        self._lowest = min(each.start for each in segments) if lowest is None else lowest
        highest = max(each.stop for each in segments)
        rows, shifts = torch.tensor([(each.row, each.stop - end) for each, end in zip(segments, ends, strict=True)], device=device).T
        repeats = torch.tensor(sizes, device=device)
        self.rows = rows.repeat_interleave(repeats, output_size=ends[-1])
        self.positions = torch.arange(ends[-1], device=device) + shifts.repeat_interleave(repeats, output_size=ends[-1])
        self.looking = torch.arange(self._lowest, highest, device=device)[None]
        self.mask = (torch.arange(highest, device=device) <= self.looking[..., None])[:, None]

    def seen(self, mask: Tensor, begin: int, end: int, length: int) -> Tensor:
        """The part ``[1, 1, end - begin, length]`` of a mask ``[1, 1, R, S]`` for the last tokens of a sequence of ``length`` tokens."""
        last = length - self._lowest
        return mask[:, :, last - (end - begin) : last, :length]

    @cached_property
    def batches(self) -> list[Batch]:
        """The segments in batches of which at most half is padding; the same for all layers of a pass."""
        return in_batches(self)


class Batch(NamedTuple):
    """Segments of similar size.

    :ivar rows: their rows in the KV cache; a slice where these follow one another.
    :ivar int stop: tokens that the longest sequence holds.
    :ivar Tensor tokens: ``[A, q]`` where their tokens lie in the pass; a segment's last token again as padding.
    :ivar Tensor looking: ``[A, q]`` which row of the attention mask each token has.
    """

    rows: Tensor | slice
    stop: int
    tokens: Tensor
    looking: Tensor


def in_batches(segments: Segments) -> list[Batch]:
    """Segments in batches of which at most half is padding."""
    device = segments.positions.device
    waiting = sorted(segments.bounds, key=lambda bound: (bound[1] - bound[2], bound[0]))
    found = []
    while waiting:
        width, longest = waiting[0][2] - waiting[0][1], max(length for *_, length in waiting)
        most = max(1, _MASK_ELEMENTS // (width * longest))
        members = sorted(bound for bound in waiting[:most] if 2 * (bound[2] - bound[1]) >= width)
        waiting = waiting[len(members) :]
        first, begin, end, _ = torch.tensor(members, device=device).T
        column = torch.arange(width, device=device)
        tokens = torch.minimum(begin[:, None] + column, end[:, None] - 1)
        numbers = [row for row, *_ in members]
        whole = numbers == list(range(numbers[0], numbers[0] + len(numbers)))
        found.append(
            Batch(
                slice(numbers[0], numbers[0] + len(numbers)) if whole else first,
                max(length for *_, length in members),
                tokens,
                segments.positions[tokens] - segments.looking[0, 0],
            )
        )
    return found
