"""The language model's own hidden states as a reward."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..context import Context
from ..inference.cost import count
from ..inference.util.checked import checked
from ..inference.util.validation import unknown_name
from ..lm.base import LanguageModel, with_hidden_states
from .score_cache import ScoreCache, repeat_last
from .state_head import StateHead

POOLINGS = ("end", "mean")
_KIND = "ppl_llm hidden-state reward"
_MAKE = "make one with: ppl-llm fit-reward RUN --lm DIR --out FILE"


class HiddenStateReward:
    """Reads off the language model's hidden states, step by step, whether the solution will be right
    (a :class:`~ppl_llm.reward.base.RewardModel`).

    A small head looks at the state after the last token of a step. It is trained on solutions that are known to be right or wrong, and each
    of their steps counts as what the solution became: its score is an estimate of V(prefix) = P(right | prefix), so the potential that goes
    with it is ``difference`` (preset ``twisted``). There is no second model in memory. A step costs a pass of the language model over one
    token of each sequence, which the next step need not run again.

    :param LanguageModel lm: a :class:`~ppl_llm.TransformersLM`, the one that reasons.
    :param StateHead head: trained on its states.
    :param str pooling: what the head is shown of a step: the state at its ``end``, or the ``mean`` over its tokens, which are run again
        together.
    :raises ValueError: for a language model without hidden states, or a head for states of another size.

    Example::

        reward = HiddenStateReward.load("head.safetensors", lm)
        SMC(reasoning(lm, reward, preset="twisted"), 16).run(problem)
    """

    of_prefixes: ClassVar[bool] = True

    @checked
    def __init__(self, lm: LanguageModel, head: StateHead, *, pooling: str = "end") -> None:
        if pooling not in POOLINGS:
            raise unknown_name("pooling", pooling, POOLINGS)
        self.lm = with_hidden_states(lm, type(self).__name__)
        if head.size != self.lm.hidden_size:
            raise ValueError(f"the head is for hidden states of {head.size} numbers, and those of {lm!r} have {self.lm.hidden_size}")
        self.model: Any = getattr(lm, "model", None)
        self.head, self.pooling = head.eval().to(lm.device), pooling
        self._cache = ScoreCache()

    @torch.no_grad()
    def step_log_odds(self, context: Context) -> Tensor:
        """Log-odds ``[*batch, T]`` that the solution will be right, after each step.

        :raises ValueError: for a context of a language model with another vocabulary, or if a score is nan.
        """
        known = self._cache.get(context)
        start = known.shape[-1]
        if start == context.num_steps:
            return known
        taken = (context.ends > context.step_starts)[..., start:]
        count(prm_calls=int(taken.sum()))
        scores = self.head(self.states(context, start))
        return self._cache.put(context, repeat_last(known, scores, taken), type(self).__name__)

    def states(self, context: Context, start: int = 0) -> Tensor:
        """What the head is shown of the steps from ``start`` on: ``[*batch, S, size]``; 0 for steps that were not taken."""
        if context.lm.vocab_size != self.lm.vocab_size:
            raise ValueError("the context is of a language model with another vocabulary than the one whose hidden states are scored")
        ends, starts = context.ends[..., start:], context.step_starts[..., start:]
        if self.pooling == "end":
            return self.lm.hidden_states(context, torch.where(ends > starts, ends - 1, -1))
        return torch.stack([self._mean(context, *bounds) for bounds in zip(starts.unbind(-1), ends.unbind(-1), strict=True)], -2)

    def _mean(self, context: Context, starts: Tensor, ends: Tensor) -> Tensor:
        """``[*batch, size]``, over the tokens from ``starts [*batch]`` on."""
        width = max(1, int((ends - starts).max()))
        at = starts[..., None] + torch.arange(width, device=starts.device)
        states = self.lm.hidden_states(context, torch.where(at < ends[..., None], at, -1))
        return states.sum(-2) / (ends - starts).clamp(min=1)[..., None]

    def release_caches(self) -> None:
        """Nothing is kept but scores, which contexts hold."""

    def save(self, path: str | Path, name: str, about: dict[str, Any] | None = None) -> None:
        """As safetensors, with the identity of the language model.

        :param str name: of the language model, for messages.
        :param dict about: further plain values, e.g. what it was trained on.
        """
        told = {"kind": _KIND, "lm": name, "identity": self.lm.identity, "pooling": self.pooling, "about": json.dumps(about or {})}
        weights = {key: value.detach().cpu().contiguous() for key, value in self.head.state_dict().items()}
        Path(path).write_bytes(save(weights, told))

    @classmethod
    def load(cls, path: str | Path, lm: LanguageModel) -> HiddenStateReward:
        """
        :param LanguageModel lm: the one whose states the head was trained on.
        :raises OSError: if there is no such file.
        :raises ValueError: if it holds no head, or one of another language model.
        """
        told, states = saved_head(path), with_hidden_states(lm, cls.__name__)
        if told["identity"] != states.identity:
            raise ValueError(
                f"the head in {str(path)!r} was trained on hidden states of the language model {told['lm']!r} ({told['identity']}), and "
                f"this is another one ({states.identity}), whose states mean something else; {_MAKE}"
            )
        with safe_open(path, "pt") as file:
            weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        head = StateHead(weights["inner.weight"].shape[1], weights["inner.weight"].shape[0])
        head.load_state_dict(weights)
        return cls(lm, head.requires_grad_(False), pooling=told["pooling"])


def saved_head(path: str | Path) -> dict[str, str]:
    """What a file says of the head that it holds, without any model: ``lm``, ``identity``, ``pooling`` and ``about``, which is JSON.

    :raises OSError: if there is no such file.
    :raises ValueError: if it holds no head.
    """
    if not Path(path).expanduser().is_file():
        raise OSError(f"there is no file {str(path)!r} with a head for hidden states; {_MAKE}")
    try:
        with safe_open(path, "pt") as file:
            told: dict[str, str] = file.metadata() or {}
            keys = set(file.keys())
    except SafetensorError as error:
        raise ValueError(f"{str(path)!r} is not in safetensors format ({error}); {_MAKE}") from error
    if told.get("kind") != _KIND or not {"inner.weight", "outer.weight", "norm.weight"} <= keys:
        raise ValueError(f"{str(path)!r} holds no head for hidden states; {_MAKE}")
    return told
