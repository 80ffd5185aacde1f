"""Next-token logits of lanes that live in the first rows of a slab."""

from __future__ import annotations

import torch
from torch import Tensor

from ...kv_cache.cache import KVSlab
from ...kv_cache.engine import PrefixEngine
from ...kv_cache.joint_pass import Part
from ...kv_cache.seating import Seating
from ...kv_cache.shared_prefix import pays


def close_ranks(alive: Tensor) -> tuple[int, Tensor, Tensor]:
    """How to bring the rows that are alive to the front.

    :param Tensor alive: ``[A]``, on the host.
    :returns: how many there are, the dead rows ``[K]`` among the first so many, and the living rows ``[K]`` behind these.
    """
    number = int(alive.sum())
    return number, (~alive[:number]).nonzero()[:, 0], number + alive[number:].nonzero()[:, 0]


class SlabDecoder:
    """A :class:`~ppl_llm.lm.decoding.decoder.Decoder` whose lanes always occupy the first rows: attention reads a view of the slab.

    :param Seating seating: the lanes' contexts.
    :param Tensor lanes: ``[A]`` flat lane numbers.
    :param Tensor rows: ``[total]`` a note of the row of each flat lane, kept up to date in place.
    :ivar KVSlab slab: theirs.
    :ivar int longest: bound on the tokens of any lane.
    """

    def __init__(self, engine: PrefixEngine, seating: Seating, lanes: Tensor, rows: Tensor) -> None:
        self._engine, self.slab, self._rows = engine, seating.slab, rows
        [(_, outputs)] = engine.complete(seating, seating.lengths[:, None] - 1)
        logits = outputs[:, 0]
        source = seating.row_of
        row_of = torch.where(seating.repeated, seating.num_rows - 1 + seating.repeated.cumsum(0), source)
        copies = seating.repeated.nonzero()[:, 0]
        self.slab.copy(source[copies], row_of[copies], seating.lengths[source[copies]])
        by_row = row_of.argsort()
        rows[lanes] = row_of
        self._order = lanes[by_row]
        self.lanes = self._order
        self.logits = logits if len(copies) == 0 else logits[source[by_row]]
        self.longest = int(seating.lengths.max())
        self._shared = self._common_tokens(len(lanes))

    def _common_tokens(self, rows: int) -> int:
        """Leading tokens that all rows share, which stay so as lanes go on or are dropped; 0 if it cannot pay to read their keys once."""
        if not pays(self.slab.tokens.device, rows, self.longest):
            return 0
        texts = self.slab.tokens[:rows, : int(self.slab.lengths[:rows].min())]
        return int((texts == texts[:1]).all(0).cumprod(0).sum())

    def advance(self, tokens: Tensor, alive: Tensor) -> None:
        part = self.prepare(tokens)
        self.finish(self._engine.run(part.slab, part.ids, part.positions, part.mask, 1, part.shared)[:, -1], alive)

    def prepare(self, tokens: Tensor) -> Part:
        """The forward pass of :meth:`advance`, to be run before anything else in this slab; :meth:`finish` must follow."""
        lanes = len(tokens)
        slab, longest = self.grow(lanes)
        positions = slab.lengths[:lanes, None].clone()
        slab.tokens.scatter_(1, positions, tokens[:, None])
        shared = self._shared if pays(positions.device, lanes, self._shared) else 0
        return Part(slab, tokens[:, None], positions, slab.place(None, positions, longest), shared)

    def finish(self, logits: Tensor, alive: Tensor) -> None:
        self.logits = logits
        self.slab.lengths[: len(alive)].add_(alive)

    def grow(self, rows: int) -> tuple[KVSlab, int]:
        """Make room for one more token in each of the first rows: the slab, and a bound on the tokens of any lane."""
        # It needs no reading back from the device: every row may have grown by one.
        self.longest = min(self.longest + 1, self.slab.max_length)
        self._engine.reserve(self.slab, rows, self.longest)
        return self.slab, self.longest

    def fill_up(self, rows: int) -> None:
        """Let further rows take part in passes whatever they hold: they exist, and have a column behind their end to write to."""
        self._engine.reserve(self.slab, rows, self.longest)
        self.slab.lengths[len(self.lanes) : rows].clamp_(max=self.slab.capacity - 1)

    def keep(self, alive: Tensor) -> None:
        # Looked at once, so that the host need not wait for each of these figures.
        device = self._order.device
        number, holes, movers = close_ranks(alive.cpu())
        places, moved = torch.cat([holes, movers]).to(device), torch.cat([movers, holes]).to(device)
        self.slab.swap(places[: len(holes)], moved[: len(holes)])
        self._order = self._order.index_copy(0, places, self._order[moved])
        self._rows[self._order[places]] = places
        self.lanes = self._order[:number]
        self.longest = int(self.slab.lengths[:number].max())
