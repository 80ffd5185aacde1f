"""Prompts in the chat formats of real models."""

from __future__ import annotations

import copy
import json

import pytest
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

from ppl_llm.lm.prompts import PlainText, PromptBuilder
from ppl_llm.lm.stopping import token_bytes
from tests.helpers.architectures import FORMATS, tokenizer

CASES = [(kind, chat) for kind in ("byte-level", "sentencepiece") for chat in FORMATS]


def text(builder: PromptBuilder, problem: object) -> str:
    return builder.tokenizer.decode(builder(problem)[1])  # type: ignore[arg-type]


@pytest.mark.parametrize(("kind", "chat"), CASES)
def test_system_and_user_turn(kind: str, chat: str) -> None:
    builder = PromptBuilder(tokenizer(kind, chat), system_prompt="S")
    expected = FORMATS[chat].prompt
    assert text(builder, "U") == expected
    assert builder("U")[0] == "U"
    messages = [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}]
    assert text(PromptBuilder(tokenizer(kind, chat)), messages) == expected
    assert text(builder, messages) == expected  # messages bring their own system turn
    without = text(PromptBuilder(tokenizer(kind, chat)), "U")
    assert "S" not in without.replace("INST", "") and without.count("U") == 1
    bos = tokenizer(kind, chat).bos_token
    assert bos is None or without.count(bos) == 1  # the template writes it; tokenising adds no second one


@pytest.mark.parametrize(("kind", "chat"), CASES)
def test_an_answer_that_has_begun_is_continued(kind: str, chat: str) -> None:
    builder = PromptBuilder(tokenizer(kind, chat))
    open_ = text(builder, [{"role": "user", "content": "U"}, {"role": "assistant", "content": "First,"}])
    assert open_.endswith("First,")
    assert open_.startswith(text(builder, "U").rstrip("\n"))


@pytest.mark.parametrize(("kind", "chat"), CASES)
def test_the_bytes_of_the_tokens_spell_the_text(kind: str, chat: str) -> None:
    tokens = tokenizer(kind, chat)
    table = token_bytes(tokens, len(tokens))
    for spelled in ("12 + 30 = 42.\n\nSo é日本", "then add\n\n"):
        ids = tokens(spelled, add_special_tokens=False)["input_ids"]
        assert b"".join(table[i] for i in ids) == spelled.encode()


def test_variables_of_the_template() -> None:
    thinking = tokenizer("byte-level", "chatml with thoughts")
    assert text(PromptBuilder(thinking), "U").endswith("assistant\n")
    assert text(PromptBuilder(thinking, template_options={"enable_thinking": False}), "U").endswith("<think>\n\n</think>\n\n")


def test_messages_that_the_template_refuses() -> None:
    turns, instructions = (PromptBuilder(tokenizer("byte-level", chat)) for chat in ("turns", "instructions"))
    user = {"role": "user", "content": "U"}
    with pytest.raises(ValueError, match=r"chat template refuses these messages \(no such turn\)"):
        turns([user, {"role": "system", "content": "S"}])
    with pytest.raises(ValueError, match=r"chat template refuses these messages \(no such turn\)"):
        instructions([{"role": "system", "content": "S"}, user, user])
    with pytest.raises(ValueError, match="with a user turn"):
        turns([{"role": "system", "content": "S"}])


def test_an_answer_that_has_begun_keeps_its_delimiter_where_the_template_trims() -> None:
    tokens = copy.copy(tokenizer("byte-level", "chatml"))
    tokens.chat_template = (
        "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] | trim }}{% if not loop.last %}\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    begun = [{"role": "user", "content": "U"}, {"role": "assistant", "content": "First.\n\n"}]
    assert text(PromptBuilder(tokens), begun).endswith("First.\n\n")


def test_a_prompt_is_not_ended_by_a_tokenizer_that_ends_whatever_it_reads() -> None:
    tokens = copy.deepcopy(tokenizer("byte-level", "chatml"))
    tokens.chat_template = None
    end = tokens.eos_token
    tokens.backend_tokenizer.post_processor = TemplateProcessing(single=f"$A {end}", special_tokens=[(end, tokens.eos_token_id)])
    assert tokens("U")["input_ids"][-1] == tokens.eos_token_id
    builder = PromptBuilder(tokens)
    assert builder("U")[1] == tokens("U", add_special_tokens=False)["input_ids"] and builder.appends_end
    assert not PromptBuilder(tokenizer("byte-level", "chatml")).appends_end


def test_a_token_of_a_byte_level_vocabulary_with_a_character_that_is_no_byte() -> None:
    tokens = copy.deepcopy(tokenizer("byte-level", "chatml"))
    state = json.loads(tokens.backend_tokenizer.to_str())
    number = max(state["model"]["vocab"].values()) + 1000
    state["model"]["vocab"]["\u65e5"] = number
    tokens._tokenizer = Tokenizer.from_str(json.dumps(state))
    assert token_bytes(tokens, number + 1)[number] == "\u65e5".encode()


@pytest.mark.parametrize(("kind", "chat"), CASES)
def test_plain_text_goes_without_a_template(kind: str, chat: str) -> None:
    builder = PromptBuilder(tokenizer(kind, chat), system_prompt="S")
    prompt = builder(PlainText("U V"))
    assert prompt.problem == "U V" and prompt.prefill == ""
    assert prompt.ids == builder._open_ended("U V") and "S" not in builder.tokenizer.decode(prompt.ids, skip_special_tokens=True)
    with pytest.raises(ValueError, match="non-empty"):
        builder(PlainText(" "))
