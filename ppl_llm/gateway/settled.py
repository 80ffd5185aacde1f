"""Text that can be told before a run ends, because nothing that may still happen changes it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

import torch

from ..context import Context
from ..finishing import before_any

_REPLACEMENT = "\ufffd"
"""What stands for the bytes of a character that is not complete."""
_AHEAD = 64
"""Tokens read behind the first one in which particles differ: they may spell the same text with other tokens."""


class SettledText:
    """The beginning that all particles have in common, sent piece by piece.

    Every solution at the end continues one of the particles, so it begins with what all of them begin with, whichever is chosen. Three
    things could still change a text at its end, and are kept back: a character of which some bytes are missing, a final stop of which
    only the beginning is there, and what a final stop cuts off.

    :param tuple stops: final stops.
    :ivar str sent: what has been given out.
    """

    def __init__(self, stops: tuple[str, ...] = ()) -> None:
        self._stops = stops
        self.sent = ""

    def advance(self, particles: Iterable[tuple[str, bool]]) -> str:
        """What is settled now and was not before.

        :param particles: of each its text, and whether it has ended.
        """
        settled = common_beginning([text if ended else self.certain(text) for text, ended in particles])
        if len(settled) <= len(self.sent):
            return ""
        new, self.sent = settled[len(self.sent) :], settled
        return new

    def certain(self, text: str) -> str:
        """What every continuation of a text begins with."""
        text = before_any(text, self._stops).rstrip(_REPLACEMENT)
        longest = max(map(len, self._stops), default=1) - 1
        for begin in range(max(0, len(text) - longest), len(text)):
            if any(stop.startswith(text[begin:]) for stop in self._stops):
                return text[:begin]
        return text

    def rest(self, final: str) -> str:
        """What is left of a solution that was chosen at the end.

        :raises RuntimeError: if it does not begin with what was sent, which no method that settles its texts allows.
        """
        if not final.startswith(self.sent):
            raise RuntimeError("the solution does not begin with the text that was settled")
        return final[len(self.sent) :]


def common_beginning(texts: list[str]) -> str:
    """What all texts begin with."""
    first, last = min(texts), max(texts)  # in the order of dictionaries every other one lies between them
    same = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    return first[:same]


def particles_of(context: Context) -> Iterator[tuple[str, bool]]:
    """Text and end of each distinct particle, as far as it can be settled: a little further than all have the same tokens."""
    tokens = context.tokens.reshape(-1, context.tokens.shape[-1])
    lengths, done = context.lengths.flatten(), context.done.flatten()
    begin, shortest = int(context.prompt_lengths.flatten()[0]), int(lengths.min())
    same = (tokens[:, begin:shortest] == tokens[:1, begin:shortest]).all(0)
    until = begin + int(same.long().cumprod(0).sum()) + _AHEAD
    seen = torch.cat([tokens[:, begin:until], lengths.clamp(max=until)[:, None], (done & (lengths <= until))[:, None]], 1)
    for *row, length, ended in seen.unique(dim=0).tolist():
        text = context.lm.decode(row[: length - begin])
        yield (before_any(text, context.final_stop), True) if ended else (text, False)


def past_drafts(rounds: int, sites: Collection[str]) -> bool:
    """Whether particles with these sites are past their drafts, which are no answers; see :func:`ppl_llm.revise`."""
    return rounds == 1 or "step_0" in sites
