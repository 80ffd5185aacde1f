"""Replies of ``/v1/completions``."""

from __future__ import annotations

from typing import Any, NamedTuple

from .errors import MalformedReply

_GAVE_UP = ("abort", "error")


class Choice(NamedTuple):
    """What a server wrote after one prompt.

    :ivar list token_ids: of the tokens written, the one that ended them included; ``None`` if the server does not tell.
    :ivar list log_probs: of these tokens, or, where the prompt was to be scored, of the prompt's (``None`` for the first).
    :ivar list top_log_probs: for each token, log-probabilities of tokens by their ids.
    :ivar stop_reason: the stop string or token id that ended it; ``None`` at the end of the text.
    :ivar bool tells_stop: whether the server tells stop reasons at all.
    """

    text: str
    token_ids: list[int] | None
    log_probs: list[float | None] | None
    top_log_probs: list[dict[int, float]] | None
    finish_reason: str
    stop_reason: str | int | None
    tells_stop: bool

    def complaint(self, sequence: int, text: str, room: int) -> str:
        """What to say of a step that is not over where the server ended it."""
        if self.finish_reason == "length":
            return (
                f"the server ended the step of sequence {sequence} after fewer than the {room} tokens it was allowed: its context is "
                "shorter than max_length; pass that of the server"
            )
        shown = text if len(text) <= 60 else "..." + text[-60:]
        return (
            f"the server ended the step of sequence {sequence} where neither a delimiter nor the end of the text is ({shown!r}, "
            f"stop_reason {self.stop_reason!r}): pass the token that ends the text as eos_ids=(...), or the model's own tokenizer"
        )


class Completion(NamedTuple):
    """A reply: a choice for each prompt, in the order of the prompts, and what the server counted.

    :ivar int cached_tokens: prompt tokens that the server had in its prefix cache; ``None`` if it does not tell.
    """

    choices: list[Choice]
    model: str | None
    prompt_tokens: int
    cached_tokens: int | None

    @classmethod
    def parse(cls, reply: Any, prompts: int) -> Completion:
        """
        :raises MalformedReply: unless there is exactly one choice for each prompt.
        """
        try:
            by_index = {int(entry["index"]): _choice(entry) for entry in reply["choices"]}
            if len(reply["choices"]) != prompts or sorted(by_index) != list(range(prompts)):
                found = [entry["index"] for entry in reply["choices"]]
                raise MalformedReply(f"the server returned choices {found} for {prompts} prompt(s)")
            usage = reply.get("usage") or {}
            details = usage.get("prompt_tokens_details") or {}
            cached = details.get("cached_tokens")
            return cls([by_index[i] for i in range(prompts)], reply.get("model"), int(usage.get("prompt_tokens") or 0), cached)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise MalformedReply(f"the server's reply is not a completion: {type(error).__name__} {error}") from None


def _choice(entry: dict[str, Any]) -> Choice:
    finish = entry["finish_reason"]
    if finish is None or finish in _GAVE_UP:
        raise MalformedReply(f"the server gave up on a prompt (finish_reason {finish!r})")
    token_ids, details = entry.get("token_ids"), entry.get("logprobs") or {}
    log_probs = details.get("token_logprobs")
    if token_ids is not None and log_probs is not None and len(log_probs) != len(token_ids):
        raise MalformedReply(f"the server returned {len(log_probs)} log-probabilities of {len(token_ids)} tokens")
    top = details.get("top_logprobs")
    stop_key = next((key for key in ("stop_reason", "matched_stop") if key in entry), None)
    return Choice(
        text=entry["text"],
        token_ids=None if token_ids is None else [int(i) for i in token_ids],
        log_probs=log_probs,
        top_log_probs=None if top is None else [_by_id(each or {}) for each in top],
        finish_reason=finish,
        stop_reason=entry[stop_key] if stop_key else None,
        tells_stop=stop_key is not None,
    )


def _by_id(table: dict[str, float]) -> dict[int, float]:
    """Entries whose keys are written as ``token_id:7``; a token's text does not tell its id."""
    prefix = "token_id:"
    return {int(key.removeprefix(prefix)): value for key, value in table.items() if key.startswith(prefix)}
