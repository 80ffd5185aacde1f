"""A language model given by a table: every distribution of the library can be enumerated on it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from ..context import PAD, Context
from ..inference.util.checked import checked
from .autoregressive import AutoregressiveLM
from .base import StepOptions, step_shape
from .decoding.step_sampler import StepSampler


class TabularLM(AutoregressiveLM):
    """An n-gram model over a small vocabulary.

    :param Tensor logits: ``[V] * order + [V]``, logits of the next token given the last ``order`` tokens, oldest first; -inf is allowed.
    :param symbols: the text of each token.
    :param str eos: the symbol that ends the text.
    :raises ValueError: for a table of another shape, or an unknown ``eos``.

    Example::

        lm = TabularLM(torch.randn(4, 4), symbols=["a", "b", ";", "$"], eos="$")
        LLMStep(lm.start("a"), stop=";", max_tokens=3).enumerate_support()
    """

    enumerable = True

    @checked
    def __init__(self, logits: Tensor, symbols: Sequence[str], eos: str) -> None:
        size = len(symbols)
        if logits.dim() < 2 or any(n != size for n in logits.shape):
            raise ValueError(f"logits must have shape [V] * order + [V] with V = {size} symbols, got {tuple(logits.shape)}")
        if eos not in symbols:
            raise ValueError(f"eos {eos!r} is not among the symbols {list(symbols)}")
        self.logits, self.symbols = logits, tuple(symbols)
        self.order = logits.dim() - 1
        source, ends = TabularLogits(logits), torch.tensor([self.symbols.index(eos)], device=logits.device)
        super().__init__(source, StepSampler(source), vocab_size=size, max_length=1 << 30, eos_ids=ends)

    def start(self, problem: str | list[str]) -> Context:
        """:raises ValueError: for an empty problem, a symbol that is not in the vocabulary, or fewer than ``order`` symbols."""
        problems = [problem] if isinstance(problem, str) else list(problem)
        prompts = []
        for text in problems:
            unknown = [character for character in text if character not in self.symbols]
            if len(text) < self.order or unknown:
                raise ValueError(f"a problem must be {self.order} or more of the symbols {list(self.symbols)}, got {text!r}")
            prompts.append([self.symbols.index(character) for character in text])
        return Context.root(self, tuple(problems), prompts, batched=not isinstance(problem, str))

    def decode(self, ids: list[int]) -> str:
        return "".join(self.symbols[i] for i in ids if i != int(self.eos_ids))

    def encode(self, text: str) -> list[int]:
        """The symbols of a text, the longest first.

        :raises ValueError: for a text that is not written with them.
        """
        known = sorted((symbol for symbol in self.symbols if symbol and symbol != self.symbols[int(self.eos_ids)]), key=len, reverse=True)
        ids: list[int] = []
        while text:
            symbol = next((symbol for symbol in known if text.startswith(symbol)), None)
            if symbol is None:
                raise ValueError(f"{type(self).__name__} has only the symbols {list(self.symbols)}")
            ids.append(self.symbols.index(symbol))
            text = text[len(symbol) :]
        return ids

    def _token_bytes(self) -> list[bytes]:
        return [b"" if i == int(self.eos_ids) else symbol.encode() for i, symbol in enumerate(self.symbols)]

    def enumerate_steps(self, context: Context, options: StepOptions) -> Tensor:
        """Every step that some sequence of the context can take, ``[K, max_tokens]``: from a finished one only the empty one."""
        automaton = self.stop_automaton(options.stop)
        width = options.max_tokens
        stops_short = options.constraint is not None  # where nothing may follow
        rooms = set((context.limit - context.lengths).clamp(max=width).flatten().tolist())
        rows = [[PAD] * width] if stops_short or bool(context.done.any()) else []
        starts = automaton.start(context)[~context.done].unique().tolist()
        pending: list[tuple[list[int], int]] = [([], start) for start in starts]
        while pending:
            tokens, state = pending.pop()
            for token in range(self.vocab_size):
                after, grown = int(automaton.table[state, token]), [*tokens, token]
                ended = after == automaton.accept or token == int(self.eos_ids)
                if ended or len(grown) in rooms:
                    rows.append(grown + [PAD] * (width - len(grown)))
                    if not ended and len(grown) < max(rooms):
                        pending.append((grown, after))
                    continue
                if stops_short:
                    rows.append(grown + [PAD] * (width - len(grown)))
                pending.append((grown, after))
        values = torch.tensor(rows if len(starts) < 2 else list(map(list, dict.fromkeys(map(tuple, rows)))), device=self.device)
        levels = len(step_shape(context.batch_shape, options.temperature))
        possible = self.step_log_prob(context, values.view(-1, *(1,) * levels, width), options) > -torch.inf
        return values[possible.flatten(1).any(1) if levels else possible]


class TabularLogits:
    """Logits of the next token from a table ``[V] * order + [V]`` (a :class:`~ppl_llm.lm.decoding.decoder.DecoderSource`)."""

    def __init__(self, table: Tensor) -> None:
        self._table, self._order = table, table.dim() - 1

    def next_logits(self, last: Tensor) -> Tensor:
        """Logits ``[..., V]`` after the last tokens ``[..., order]``."""
        return self._table[tuple(last.unbind(-1))]

    def decoder(self, context: Context, active: Tensor, wait: bool = False) -> TabularDecoder:
        last = self._last_tokens(context, active)
        return TabularDecoder(self, active, last, self.next_logits(last))

    def step_logits(self, context: Context, active: Tensor, tokens: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        history = torch.cat([self._last_tokens(context, active), tokens.clamp(min=0)], -1)
        windows = history.unfold(-1, self._order, 1)[:, : tokens.shape[-1]]
        yield torch.arange(len(active), device=tokens.device), self.next_logits(windows)

    def _last_tokens(self, context: Context, active: Tensor) -> Tensor:
        tokens, lengths = context.tokens.reshape(-1, context.tokens.shape[-1])[active], context.lengths.flatten()[active]
        return tokens.gather(-1, lengths[:, None] + torch.arange(-self._order, 0, device=tokens.device))

    def release(self) -> None:
        """The table is all there is."""


class TabularDecoder:
    """A :class:`~ppl_llm.lm.decoding.decoder.Decoder` that knows the last tokens ``[A, order]`` of its sequences."""

    pending = None

    def __init__(self, source: TabularLogits, sequences: Tensor, last: Tensor, logits: Tensor) -> None:
        self.sequences, self.logits = sequences, logits
        self._source, self._last = source, last

    def advance(self, tokens: Tensor, alive: Tensor) -> None:
        self._last = torch.cat([self._last[:, 1:], tokens[:, None]], -1)
        self.logits = self._source.next_logits(self._last)

    def keep(self, alive: Tensor) -> None:
        self._last, self.sequences, self.logits = self._last[alive], self.sequences[alive], self.logits[alive]

    def reserved(self) -> AbstractContextManager[None]:
        return nullcontext()
