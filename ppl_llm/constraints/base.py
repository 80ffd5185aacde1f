"""The protocol of constraints: states of a batch of sequences, and which tokens may follow."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..context import PAD
from ..inference.util.checked import describe

_SHOWN = 300
"""Characters of a constraint that a message quotes."""


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """The tokens of a language model.

    :ivar list token_bytes: the bytes of each token id; special tokens have none.
    :ivar tuple eos_ids: token ids that end the text.
    :ivar torch.device device: where the language model's logits lie.
    """

    token_bytes: list[bytes]
    eos_ids: tuple[int, ...]
    device: torch.device

    @property
    def size(self) -> int:
        return len(self.token_bytes)

    @property
    def words(self) -> int:
        """Words of a bitmask: ``ceil(V / 32)``."""
        return -(-self.size // 32)

    @cached_property
    def eos_mask(self) -> Tensor:
        """``[W]``: the bits of the end-of-text tokens."""
        return self.mask(list(self.eos_ids))

    @cached_property
    def text_mask(self) -> Tensor:
        """``[W]``: the bits of the tokens that are text."""
        return self.mask([i for i, token in enumerate(self.token_bytes) if token])

    def mask(self, ids: list[int]) -> Tensor:
        """The bitmask ``[W]`` of token ids."""
        allowed = torch.zeros(self.size, dtype=torch.bool)
        allowed[ids] = True
        return packed(allowed).to(self.device)


def packed(allowed: Tensor) -> Tensor:
    """Bitmask ``[..., ceil(V / 32)]`` int32 of ``allowed [..., V]``; token v is bit ``v % 32`` of word ``v // 32``."""
    bits = torch.nn.functional.pad(allowed.bool(), (0, -allowed.shape[-1] % 32)).cpu().numpy()
    return torch.from_numpy(np.packbits(bits, axis=-1, bitorder="little").view(np.int32)).to(allowed.device)


def unpacked(masks: Tensor, size: int) -> Tensor:
    """``[..., V]`` bool, whether each of the first ``size`` tokens is in a bitmask ``[..., W]``."""
    if masks.device.type == "cpu":
        words = masks.contiguous().numpy().view(np.uint8)
        return torch.from_numpy(np.unpackbits(words, axis=-1, bitorder="little", count=size)).view(torch.bool)
    bits = masks.contiguous().view(torch.uint8)[..., None] >> torch.arange(8, dtype=torch.uint8, device=masks.device)
    return (bits & 1).flatten(-2)[..., :size].bool()


class ConstraintStates(ABC):
    """Where a batch of A sequences stands in a language.

    End-of-text tokens are no concern of :meth:`masks` and :meth:`advance`: a text may end where :meth:`may_end` says so.

    :ivar bool asks: whether :meth:`accepts` has to be asked of single tokens, because a mask of all of them would cost too much.
    """

    asks = False

    @abstractmethod
    def masks(self) -> Tensor:
        """Bitmasks ``[A, W]`` int32 on the device of the logits: the tokens that may follow. Bits of end-of-text tokens have no meaning."""

    @abstractmethod
    def may_end(self) -> Tensor:
        """Whether each text is in the language as it is: ``[A]`` bool, on the device of the logits."""

    @abstractmethod
    def advance(self, tokens: Tensor, alive: Tensor) -> None:
        """Append ``tokens [A]`` where ``alive [A]``; a token that may not follow leads to a state in which nothing may."""

    @abstractmethod
    def select(self, rows: Tensor) -> ConstraintStates:
        """The states of the sequences ``rows [K]``, to be advanced independently of these."""

    def accepts(self, row: int, token: int) -> bool:
        """Whether ``token``, which is in the row's mask and no end of the text, may follow; for states that ask."""
        return True


class Constraint(ABC):
    """A language L: which texts may be written, token by token. ``a & b`` is the language of texts that are in both.

    A constraint is a proposal for every step of a program: of all algorithms that weigh proposals, ::

        SMC(model, 16, proposals=JsonSchema(schema)).run(problem)

    Each token is drawn from the step's own language model restricted to what may follow. The target is p(x) 1[x in L] times the program's
    other factors, and the evidence estimates the probability of L times theirs. A particle after which nothing may follow has weight
    zero. A text that has not ended counts as long as it begins a text of L. The model's temperature, ``top_p`` and ``top_k`` stay.

    Constraints are values that never change; sequences' states are read from their tokens.

    :ivar bool asks: see :class:`ConstraintStates`.
    :ivar bool restricted: whether it cannot draw every step of the model, so that it is a part of the target.
    """

    asks = False
    restricted = True

    @abstractmethod
    def states(self, vocabulary: Vocabulary, tokens: Tensor) -> ConstraintStates:
        """The states of sequences.

        :param Vocabulary vocabulary: of the language model.
        :param Tensor tokens: ``[A, L]`` what was written after the prompt, padded with ``PAD`` on the right.
        :raises ValueError: if the constraint and the vocabulary do not go together.
        """

    def __and__(self, other: Constraint) -> Product:
        return Product(self, other)

    def __call__(self, site: Any) -> Any:
        """The proposal for a site: its step restricted to the language; ``None`` where the site is no step."""
        restricted_to = getattr(site["fn"], "restricted_to", None)
        return None if restricted_to is None else restricted_to(self)

    @property
    def __name__(self) -> str:
        """By which a run that is resumed is told from another."""
        return repr(self)

    @property
    def estimated(self) -> bool:
        """Whether the density of a step that it proposes is an estimate, which belongs to its draw."""
        return self.asks


class Product(Constraint):
    """Texts that satisfy several constraints, also written ``a & b``.

    :param Constraint constraints: at least one.
    """

    def __init__(self, *constraints: Constraint) -> None:
        if not constraints:
            raise ValueError("a Product needs at least one constraint")
        for constraint in constraints:
            if not isinstance(constraint, Constraint):
                raise ValueError(f"the constraints of a Product must be of ppl_llm.constraints, got {constraint!r}")
        self.constraints = constraints
        self.asks = any(constraint.asks for constraint in constraints)

    def __repr__(self) -> str:
        return f"Product({', '.join(map(repr, self.constraints))})"

    def states(self, vocabulary: Vocabulary, tokens: Tensor) -> ProductStates:
        return ProductStates([constraint.states(vocabulary, tokens) for constraint in self.constraints])


class ProductStates(ConstraintStates):
    """A state of each factor."""

    def __init__(self, parts: list[ConstraintStates]) -> None:
        self._parts = parts
        self.asks = any(part.asks for part in parts)

    def masks(self) -> Tensor:
        first, *others = (part.masks() for part in self._parts)
        for masks in others:
            first = first & masks
        return first

    def may_end(self) -> Tensor:
        first, *others = (part.may_end() for part in self._parts)
        for ends in others:
            first = first & ends
        return first

    def advance(self, tokens: Tensor, alive: Tensor) -> None:
        for part in self._parts:
            part.advance(tokens, alive)

    def select(self, rows: Tensor) -> ProductStates:
        return ProductStates([part.select(rows) for part in self._parts])

    def accepts(self, row: int, token: int) -> bool:
        return all(part.accepts(row, token) for part in self._parts if part.asks)


def shortened(value: object) -> str:
    """A value in a message: schemas and lists may be a megabyte long."""
    shown = repr(value)
    return shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}..."


def encoded(text: str) -> bytes:
    """
    :raises ValueError: for half a character, which a Python string can hold.
    """
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{shortened(text)} holds a lone surrogate at {error.start}, half a character, which has no bytes") from error


def read(states: ConstraintStates, tokens: Tensor) -> ConstraintStates:
    """Advance by whole texts ``[A, L]``, padded with ``PAD``."""
    for column in tokens.unbind(-1):
        states.advance(column.clamp(min=0), column != PAD)
    return states


describe("Constraint", "one of ppl_llm.constraints (JsonSchema, Regex, Choices, ...)")
