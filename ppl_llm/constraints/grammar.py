"""Grammars: JSON schemas, regular expressions and Lark grammars, with the package llguidance."""

from __future__ import annotations

import json
import re
import weakref
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..context import PAD
from ..inference.util.checked import checked
from .base import Constraint, ConstraintStates, Vocabulary, encoded, shortened

_KEPT = 4096
"""Texts whose state is kept for their continuation; a state that is not is read again."""

_EVERY_SPELLING = '\n%llguidance {"no_forcing": true}\n'
"""Where the next bytes are certain, llguidance allows only the tokens that its tokenizer would write them with. A language model's mass
lies on all ways to write a text, and the language is one of texts."""

TIDY = r"( |\n {0,20})?"
"""Whitespace of values that are written on one line, or indented on several."""

_SAID = 600
"""Characters of an error of llguidance that a message quotes."""

_DEAD_END = "NoExtensionBias"
"""How llguidance calls it that no token of the model continues any text of the language."""

_TOKENIZERS: weakref.WeakKeyDictionary[Vocabulary, Any] = weakref.WeakKeyDictionary()


def _llguidance(name: str) -> Any:
    """
    :raises ImportError: without the package.
    """
    try:
        import llguidance
    except ImportError as error:
        raise ImportError(f"{name} needs the package llguidance: pip install 'ppl-llm[constraints]'") from error
    return llguidance


def _reason(message: str) -> str:
    """What llguidance says, in one line; it quotes patterns as a whole."""
    words = " ".join(message.split())
    return words if len(words) <= _SAID else f"{words[: _SAID // 2]} ... {words[-_SAID // 2 :]}"


class Grammar(Constraint):
    """Base of constraints that llguidance compiles.

    :param str grammar: in llguidance's form of Lark's syntax.
    :raises ValueError: for a grammar that cannot be compiled.
    """

    def __init__(self, grammar: str) -> None:
        encoded(grammar)
        self._grammar = grammar + _EVERY_SPELLING
        wrong, messages = _llguidance(type(self).__qualname__).LLMatcher.validate_grammar_with_warnings(self._grammar)
        if wrong:
            # The lines of the grammar follow, numbered.
            reason = re.split(r"\n *\d+ \|", messages[0])[0]
            raise ValueError(f"{shortened(self)} cannot be compiled: {_reason(reason)}")
        self._known: weakref.WeakKeyDictionary[Vocabulary, _Matchers] = weakref.WeakKeyDictionary()

    def states(self, vocabulary: Vocabulary, tokens: Tensor) -> GrammarStates:
        if vocabulary not in self._known:
            self._known[vocabulary] = _Matchers(self._grammar, shortened(self), vocabulary)
        matchers = self._known[vocabulary]
        texts = [np.asarray([token for token in text if token != PAD], dtype=np.int32).tobytes() for text in tokens.tolist()]
        return GrammarStates(matchers, texts)


class JsonSchema(Grammar):
    """Texts that are JSON values of a schema.

    :param schema: a JSON schema, as a dictionary or as text.
    :param whitespace: whether whitespace is allowed between the parts; a regular expression of it where not just any is. Without it the
        text is as compact as JSON can be.
    :raises ValueError: for a text that is not JSON, or a schema or whitespace that cannot be compiled, naming the keyword.
    :raises ImportError: without llguidance.

    Example::

        JsonSchema({"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]})
    """

    @checked
    def __init__(self, schema: Mapping[str, Any] | str, *, whitespace: bool | str = True) -> None:
        if isinstance(schema, str):
            try:
                schema = json.loads(schema)
            except (json.JSONDecodeError, RecursionError) as error:
                raise ValueError(f"the schema is not JSON: {error}, in the text {shortened(schema)}") from error
        if not isinstance(schema, Mapping):
            raise ValueError(f"a JSON schema must be an object, got {shortened(schema)}")
        options = schema.get("x-guidance", {})
        if not isinstance(options, Mapping):
            raise ValueError(f"x-guidance of a JSON schema must be an object, got {shortened(options)}")
        self.schema, self.whitespace = schema, whitespace
        options = {**options, "whitespace_flexible": bool(whitespace)}
        if isinstance(whitespace, str):
            options["whitespace_pattern"] = whitespace
        try:
            written = json.dumps({**schema, "x-guidance": options}, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"the schema cannot be written as JSON: {error}") from error
        super().__init__(f"start: %json {written}")

    def __repr__(self) -> str:
        return f"JsonSchema({json.dumps(self.schema)}{'' if self.whitespace is True else f', whitespace={self.whitespace!r}'})"


class Regex(Grammar):
    """Texts that match a regular expression from their beginning to their end.

    :param str pattern: in the syntax of Rust's regex crate: no look-around but at the end, no back references.
    :raises ValueError: for a pattern that cannot be compiled.
    :raises ImportError: without llguidance.
    """

    @checked
    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        encoded(pattern)
        written = pattern.replace("\n", "\\n").replace("\r", "\\r")
        super().__init__(json.loads(_llguidance("Regex").LLMatcher.grammar_from_regex(written))["grammars"][0]["lark_grammar"])

    def __repr__(self) -> str:
        return f"Regex({self.pattern!r})"


class Lark(Grammar):
    """Texts of a context-free grammar.

    :param str grammar: in the syntax of the package lark, with the rule ``start``.
    :raises ValueError: for a grammar that cannot be compiled.
    :raises ImportError: without llguidance.
    """

    @checked
    def __init__(self, grammar: str) -> None:
        self.grammar = grammar
        super().__init__(grammar)

    def __repr__(self) -> str:
        return f"Lark({self.grammar!r})"


class _Tokens:
    """A vocabulary as llguidance asks for it."""

    bos_token_id = None

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.eos_token_id = vocabulary.eos_ids[0]
        self.special_token_ids = [i for i, token in enumerate(vocabulary.token_bytes) if not token]
        # 0xff begins no text: a special token is never part of one.
        self.tokens = [token or b"\xff[%d]" % i for i, token in enumerate(vocabulary.token_bytes)]

    def __call__(self, text: bytes | str) -> list[int]:
        """Of no use to masks: llguidance asks for it to propose forced tokens, which nobody wants here."""
        return []


class _Matchers:
    """The states of a grammar over a vocabulary: texts that were read, least recently used first.

    :param str grammar: as llguidance writes it.
    :param str name: for messages.
    """

    def __init__(self, grammar: str, name: str, vocabulary: Vocabulary) -> None:
        package = _llguidance(name)
        if vocabulary not in _TOKENIZERS:
            wrapped = package.TokenizerWrapper(_Tokens(vocabulary))
            _TOKENIZERS[vocabulary] = package.LLTokenizer(wrapped, n_vocab=vocabulary.size, eos_token=list(vocabulary.eos_ids))
        self.name, self.words, self.size, self.device = name, vocabulary.words, vocabulary.size, vocabulary.device
        self.executor = package.LLExecutor(torch.get_num_threads())
        start = package.LLMatcher(_TOKENIZERS[vocabulary], grammar, log_level=0)
        if start.is_error():
            raise ValueError(f"{name} cannot be compiled: {_reason(start.get_error())}")
        self._start = start
        self._kept: OrderedDict[bytes, Any] = OrderedDict()

    def read(self, text: bytes) -> Any:
        """The matcher after a text of int32 ids, ``None`` where that begins no text of the language. Matchers are never changed."""
        if not text:
            return self._start
        if text in self._kept:
            self._kept.move_to_end(text)
            return self._kept[text]
        return self.keep(text, self.consumed(self._start, np.frombuffer(text, dtype=np.int32).tolist()))

    def __contains__(self, text: bytes) -> bool:
        return text in self._kept

    def keep(self, text: bytes, matcher: Any) -> Any:
        self._kept[text] = matcher
        if len(self._kept) > _KEPT:
            self._kept.popitem(last=False)
        return matcher

    def consumed(self, matcher: Any, tokens: list[int]) -> Any:
        """A copy that has read more tokens, ``None`` if one of them may not follow."""
        if matcher is None or matcher.is_stopped():
            return None
        after = matcher.deep_copy()
        if after.validate_tokens(tokens) < len(tokens):
            self.check(after)
            return None
        after.consume_tokens(tokens)
        self.check(after)
        return after

    def check(self, matcher: Any) -> None:
        """That a matcher has stopped because the model has no token for what must follow is a dead end and no mistake.

        :raises RuntimeError: if llguidance gave up, e.g. on a grammar that is too ambiguous.
        """
        if matcher.is_error() and not (reason := matcher.get_error().partition("\n")[0]).startswith(_DEAD_END):
            raise RuntimeError(f"{self.name}: llguidance gave up: {reason}")


class GrammarStates(ConstraintStates):
    """A matcher for each distinct text.

    :param list texts: of each sequence, the bytes of its int32 token ids.
    """

    def __init__(self, matchers: _Matchers, texts: list[bytes]) -> None:
        self._matchers, self._texts = matchers, texts

    def _distinct(self) -> tuple[list[Any], Tensor]:
        """The matchers of distinct texts, and which of them each sequence has."""
        number = {text: k for k, text in enumerate(dict.fromkeys(self._texts))}
        which = torch.tensor([number[text] for text in self._texts], dtype=torch.long)
        return [self._matchers.read(text) for text in number], which

    def masks(self) -> Tensor:
        from llguidance.numpy import fill_next_token_bitmask_par

        matchers, which = self._distinct()
        table = np.zeros((len(matchers), self._matchers.words), dtype=np.int32)
        open_ = [(matcher, k) for k, matcher in enumerate(matchers) if matcher is not None and not matcher.is_stopped()]
        if open_:
            # Computing a mask changes nothing but what the matcher remembers of it.
            fill_next_token_bitmask_par(self._matchers.executor, open_, table)
        for matcher, _ in open_:
            self._matchers.check(matcher)
        return torch.from_numpy(table)[which].to(self._matchers.device)

    def may_end(self) -> Tensor:
        matchers, which = self._distinct()
        ends = [matcher is not None and matcher.is_accepting() for matcher in matchers]
        return torch.tensor(ends, dtype=torch.bool)[which].to(self._matchers.device)

    def advance(self, tokens: Tensor, alive: Tensor) -> None:
        for row, (token, lives) in enumerate(zip(tokens.tolist(), alive.tolist(), strict=True)):
            if not lives:
                continue
            before = self._texts[row]
            after = self._texts[row] = before + token.to_bytes(4, "little")
            if after not in self._matchers:
                self._matchers.keep(after, self._matchers.consumed(self._matchers.read(before), [token]))

    def select(self, rows: Tensor) -> GrammarStates:
        return GrammarStates(self._matchers, [self._texts[row] for row in rows.tolist()])
