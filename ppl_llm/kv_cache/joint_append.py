"""What several programs want appended to their KV caches, run in one forward pass."""

from __future__ import annotations

import copy
import logging
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..inference.concurrent.program import current_program
from ..inference.concurrent.shared_request import SharedRequest
from ..inference.cost import count
from .append import Append
from .cache import KVCache
from .engine import CacheEngine, Forward
from .joint_pass import JointWrites
from .layer import KeysChanged
from .memory_limit import CacheTooLarge, is_out_of_memory
from .packing import Segment, Segments

_log = logging.getLogger(__name__)

_PATIENCE = 3
"""Turns that a program waits for others, so that passes are shared by more of them; a turn is a token of the programs that write."""


class AppendRequest(SharedRequest):
    """What one program wants run. It takes no place in the batch of those that write.

    :param JointAppend service: runs it together with others.
    :param arguments: of :meth:`CacheEngine.append`.
    """

    def __init__(self, service: JointAppend, *arguments: Any) -> None:
        super().__init__(service)
        self.arguments = arguments
        self.outputs = torch.empty(0)
        self.turns = 0

    def done(self, outputs: Tensor) -> None:
        self.outputs, self.finished = outputs, True


class JointAppend:
    """Runs what programs lack in their KV caches (a ``Service``).

    :param JointEngine engine: of the model.
    :ivar bool possible: whether the model hands the keys of its cache to its attention function; if not, which the first pass shows, each
        program gets its own pass.
    """

    def __init__(self, engine: JointEngine) -> None:
        self._engine = weakref.ref(engine)  # which holds this: a model is freed when it goes out of use, not when rubbish is collected
        self.possible = True

    @property
    def engine(self) -> JointEngine:
        """Which waits for what it asked."""
        engine = self._engine()
        assert engine is not None
        return engine

    @torch.no_grad()
    def advance(self, requests: Sequence[AppendRequest]) -> None:
        for request in requests:
            request.turns += 1
        if max(request.turns for request in requests) <= _PATIENCE:
            return
        if len(requests) > 1 and self.possible:
            try:
                return self._together(requests)
            except KeysChanged:
                self.possible = False
            except Exception as error:  # of one of them: alone, each has its own
                _log.debug("a shared pass failed, its programs are run by themselves: %s", type(error).__name__)
        for request in requests:
            try:
                request.done(request.call(self.engine.append_alone, *request.arguments))
            except Exception as error:  # whatever it is, it is for the program that asked
                request.fail(error)

    def _together(self, requests: Sequence[AppendRequest]) -> None:
        """
        :raises KeysChanged: before anything was run.
        :raises MemoryError: if memory does not even allow a pass over one token.
        """
        engine = self.engine
        appends = [Append(number, *request.arguments) for number, request in enumerate(requests)]
        waiting = sorted((segment for append in appends for segment in append.waiting), key=lambda segment: segment.start)
        while waiting:
            taken, left = engine.packed(waiting)
            began = time.perf_counter()
            try:
                tokens = self._pass(appends, taken)
            except (RuntimeError, MemoryError) as error:
                if isinstance(error, CacheTooLarge) or not is_out_of_memory(error):
                    raise
                engine.at_once.halve(sum(segment.size for segment in taken), error)
                continue
            seconds, (forwards, spent) = time.perf_counter() - began, engine.counters
            for owner, size in tokens.items():
                requests[owner].call(count, **{forwards: 1, spent: seconds * size / sum(tokens.values())})
            waiting = left
        for request, append in zip(requests, appends, strict=True):
            request.call(count, **{engine.tokens_counter: append.size})
            append.finish()
            request.done(append.outputs)

    def _pass(self, appends: Sequence[Append], taken: Sequence[Segment]) -> dict[int, int]:
        """One forward pass: the tokens of each owner."""
        owners = list(dict.fromkeys(segment.owner for segment in taken))
        own = [appends[owner] for owner in owners]
        parts = PackedParts([append.cache for append in own], [[each for each in taken if each.owner == o] for o in owners])
        parts.shared = [append.shared for append in own]
        places = [append.wanted_of(segments) for append, segments in zip(own, parts.segments, strict=True)]
        for append, segments in zip(own, parts.segments, strict=True):
            append.cache.place_packed(segments)
        engine = self.engine
        found = engine.forward(
            input_ids=torch.cat([append.ids(segments) for append, segments in zip(own, parts.segments, strict=True)])[None],
            attention_mask=parts.mask,
            position_ids=parts.positions[None],
            cache=parts.hf_cache,
            use_cache=True,
            logits_to_keep=torch.cat([place.token + begin for place, begin in zip(places, parts.begins, strict=True)]).tolist(),
            segments=parts,
            parts=parts,
            shared=max(append.shared for append in own),
        ).to(engine.device)[0]
        for append in own:
            append.cache.passed()
        for append, place, outputs in zip(own, places, found.split([len(place.token) for place in places]), strict=True):
            append.put(place, outputs)
        return dict(zip(owners, parts.sizes, strict=True))


class PackedParts(JointWrites):
    """What a forward pass over packed tokens of several KV caches and its attention function need to know.

    :ivar list segments: of each KV cache.
    :ivar list sizes: tokens of each.
    :ivar list begins: where they begin.
    :ivar list shared: leading tokens that the sequences of each have in common and that are worth reading once.
    :ivar Tensor positions: ``[T]``, ``looking`` and ``mask`` as those of :class:`~ppl_llm.kv_cache.packing.Segments`, of all together.
    """

    def __init__(self, caches: Sequence[KVCache], taken: Sequence[Sequence[Segment]]) -> None:
        device = caches[0].tokens.device
        lowest, highest = min(each.start for some in taken for each in some), max(each.stop for some in taken for each in some)
        super().__init__(caches, highest)
        self.segments = [Segments(some, device, lowest) for some in taken]
        self.sizes = [len(segments.positions) for segments in self.segments]
        self.begins = [sum(self.sizes[:number]) for number in range(len(self.sizes))]
        self.shared = [0] * len(self.sizes)
        self.positions = torch.cat([segments.positions for segments in self.segments])
        widest = max(self.segments, key=lambda segments: segments.mask.shape[-1])
        self.looking, self.mask = widest.looking, widest.mask

    def split(self, states: Tensor) -> Sequence[Tensor]:
        return states.split(self.sizes, 2)

    def attend(self, attention: Callable[..., Tensor], query: Tensor, key: Tensor, mask: Tensor) -> Tensor:
        """Attention of each KV cache's tokens over its own keys: ``[1, T, heads, D]``.

        :param attention: called with queries, keys, values, mask, ``segments``, ``shared`` and ``blocks`` of one cache.
        """
        each = zip(self.split(query), self.views(key), self.segments, self.shared, strict=True)
        found = [
            attention(query, view.key, view.value, mask, segments=segments, shared=shared, blocks=view.blocks)
            for query, view, segments, shared in each
        ]
        return torch.cat(found, 1)


class JointEngine(CacheEngine):
    """A :class:`CacheEngine` that appends for several programs together, where there are any."""

    def __init__(self, forward: Forward, **settings: Any) -> None:
        super().__init__(forward, **settings)
        self._joint = JointAppend(self)

    def giving(self, forward: Forward) -> JointEngine:
        other = copy.copy(self)
        other.forward, other._joint = forward, JointAppend(other)
        return other

    def append(self, cache: KVCache, rows: Tensor, tokens: Tensor, lengths: Tensor, held: Tensor, wanted: Tensor) -> Tensor:
        program = current_program()
        if program is None or not program.shares:
            return self.append_alone(cache, rows, tokens, lengths, held, wanted)
        request = AppendRequest(self._joint, cache, rows, tokens, lengths, held, wanted)
        with self.pool.reserved(cache):  # others run meanwhile
            program.wait(request)
        return request.outputs

    append_alone = CacheEngine.append
