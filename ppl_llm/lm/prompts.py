"""Token ids of prompts: chat templates, system prompts, and plain text."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

Message = dict[str, Any]


class PlainText(str):
    """A problem that the language model continues as it stands, without a chat template or a system prompt."""


class Prompt(NamedTuple):
    """
    :ivar str problem: its text, for reward models: the last user turn.
    :ivar list ids: the prompt's token ids.
    :ivar str prefill: the answer that the prompt has begun, where the last turn is the assistant's.
    """

    problem: str
    ids: list[int]
    prefill: str = ""


class PromptBuilder:
    """Prompts in a tokenizer's chat format.

    :param tokenizer: a fast transformers tokenizer.
    :param str system_prompt: system turn before a problem given as a string; the chat template's own by default. A template that knows no
        system turn, such as Gemma's, gets it at the beginning of the first user turn.
    :param str chat_template: Jinja template to use in place of the tokenizer's. With a tokenizer that has none, the model continues the
        problem's plain text.
    :param dict template_options: further variables of the template, e.g. ``{"enable_thinking": False}``.
    :raises ValueError: for a variable that the template does not mention.
    """

    def __init__(
        self,
        tokenizer: Any,
        system_prompt: str | None = None,
        chat_template: str | None = None,
        template_options: Mapping[str, Any] | None = None,
    ) -> None:
        if chat_template is not None:
            tokenizer = copy.copy(tokenizer)
            tokenizer.chat_template = chat_template
        self.tokenizer = tokenizer
        self.system_prompt = system_prompt
        self.template_options = dict(template_options or {})
        self._check_options()

    def __call__(self, problem: str | list[Message]) -> Prompt:
        """The prompt of a problem.

        :param problem: a string or a list of chat messages ``{"role": ..., "content": ...}``. Messages are used as they are, without
            ``system_prompt``; if the last one is the assistant's, the model continues it. A :class:`PlainText` is continued as it stands.
        :raises ValueError: for a problem without text, or messages that the chat template refuses.
        """
        chat = list(problem) if isinstance(problem, (list, tuple)) else [{"role": "user", "content": problem}]
        text = next((turn["content"] for turn in reversed(chat) if turn["role"] == "user"), "")
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"a problem must be a non-empty string or a list of chat messages with a user turn, got {problem!r}")
        if isinstance(problem, PlainText):
            return Prompt(text, self._open_ended(problem))
        if self.tokenizer.chat_template is not None:
            if isinstance(problem, str) and self.system_prompt is not None:
                chat = [{"role": "system", "content": self.system_prompt}, *chat]
            begun = chat[-1]["content"] if chat[-1]["role"] == "assistant" else ""
            return Prompt(text, list(self.tokenizer(self._render(chat), add_special_tokens=False)["input_ids"]), begun)
        if not isinstance(problem, str):
            raise ValueError("the tokenizer has no chat template; give the problem as a string, or pass chat_template=...")
        plain = problem if self.system_prompt is None else f"{self.system_prompt}\n\n{problem}"
        return Prompt(text, self._open_ended(plain))

    def _check_options(self) -> None:
        template = self.tokenizer.chat_template
        unknown = [name for name in self.template_options if not re.search(rf"\b{re.escape(name)}\b", str(template or ""))]
        if unknown:
            has = "there is no chat template" if template is None else "the chat template has no such switch"
            raise ValueError(f"template option {unknown[0]!r} has no effect: {has}; leave it out, or give a chat_template that has it")

    def encode(self, text: str) -> list[int]:
        """Token ids of a text as it stands.

        :raises ValueError: for a text that the tokenizer cannot write.
        """
        ids = list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        if not ids or self.tokenizer.unk_token_id in ids:
            raise ValueError(f"{type(self.tokenizer).__name__} has no tokens for it")
        return ids

    @property
    def appends_end(self) -> bool:
        """Whether the tokenizer writes an end of text behind whatever it is given; prompts go without."""
        return self._open_ended("1") != list(self.tokenizer("1")["input_ids"])

    def _open_ended(self, text: str) -> list[int]:
        """Token ids of a text without the end of text that a tokenizer's post-processor may append."""
        ids, bare = (list(self.tokenizer(text, add_special_tokens=special)["input_ids"]) for special in (True, False))
        appended = ids[-1:] == [self.tokenizer.eos_token_id] != bare[-1:]
        return ids[:-1] if appended else ids

    def _render(self, chat: list[Message]) -> str:
        from jinja2 import TemplateError

        continues = chat[-1]["role"] == "assistant"
        options = {"tokenize": False, "add_generation_prompt": not continues, "continue_final_message": continues, **self.template_options}
        try:
            return _untrimmed(str(self.tokenizer.apply_chat_template(chat, **options)), chat)
        except TemplateError as error:
            merged = _without_system_turn(chat)
            if merged is None:
                raise ValueError(f"the tokenizer's chat template refuses these messages ({error}): {chat!r}") from error
            try:
                return _untrimmed(str(self.tokenizer.apply_chat_template(merged, **options)), merged)
            except TemplateError:
                raise ValueError(f"the tokenizer's chat template refuses these messages ({error}): {chat!r}") from error


def _untrimmed(rendered: str, chat: list[Message]) -> str:
    """The prompt with the white space at the end of an answer that has begun, which templates such as Llama 3's cut off."""
    begun = chat[-1]["content"] if chat[-1]["role"] == "assistant" else ""
    lost = begun[len(begun.rstrip()) :]
    return rendered if rendered.endswith(begun) or not rendered.endswith(begun.rstrip()) else rendered + lost


def _without_system_turn(chat: list[Message]) -> list[Message] | None:
    """The messages with a leading system turn put at the beginning of the user turn after it, ``None`` if there is no such pair."""
    if len(chat) < 2 or chat[0]["role"] != "system" or chat[1]["role"] != "user":
        return None
    return [{**chat[1], "content": f"{chat[0]['content']}\n\n{chat[1]['content']}"}, *chat[2:]]
