"""The shipped tokenizer: what it reads it writes, and steps end where the text says so."""

import random
import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from ppl_llm.demo import LM_DIR, PRM_DIR, WEAK_PRM_DIR, make_problem
from ppl_llm.demo.corpus import Labelled, lm_example, prm_example, prompt_of
from ppl_llm.demo.problems import STEP_END
from ppl_llm.demo.tokenizer import SYSTEM_PROMPT, train_tokenizer

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<extra_0>"]
TOKENIZER = AutoTokenizer.from_pretrained(LM_DIR)
problems = st.builds(lambda level, seed: make_problem(level, random.Random(seed)), st.integers(1, 6), st.integers(0, 10**6))


@given(st.text(max_size=80))
@example("\U0002f800")  # a compatibility character
def test_any_text_round_trips_up_to_normalisation(text):
    """Qwen2's tokenizer class composes characters (NFC), as that of the published models does."""
    assert TOKENIZER.decode(TOKENIZER.encode(text), clean_up_tokenization_spaces=False) == unicodedata.normalize("NFC", text)


@pytest.mark.parametrize("token", SPECIAL)
def test_special_tokens_are_single_ids(token):
    assert TOKENIZER.encode(token) == [TOKENIZER.convert_tokens_to_ids(token)]
    assert TOKENIZER.encode(f"17{token}a")[2] == TOKENIZER.convert_tokens_to_ids(token)


def test_end_and_padding():
    assert (TOKENIZER.eos_token, TOKENIZER.pad_token) == ("<|im_end|>", "<|endoftext|>")
    assert TOKENIZER.decode(TOKENIZER.encode("17<extra_0><|im_end|>"), skip_special_tokens=True) == "17"


def test_digits_are_split_one_by_one():
    assert len(TOKENIZER.encode("1234567")) == 7


@given(problems)
def test_end_of_a_step_is_a_token_of_its_own(problem):
    whole = TOKENIZER.encode(problem.solution)
    end = TOKENIZER.encode(STEP_END)
    assert len(end) == 1
    assert whole.count(end[0]) == len(problem.operations)
    assert whole == [token for step in problem.steps[:-1] for token in TOKENIZER.encode(step + STEP_END)] + TOKENIZER.encode(
        problem.steps[-1]
    )


def test_chat_template():
    chat = [{"role": "user", "content": "Hello"}]
    expected = f"<|im_start|>system\n{SYSTEM_PROMPT}<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n"
    assert TOKENIZER.apply_chat_template(chat, tokenize=False) == expected
    assert TOKENIZER.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) == expected + "<|im_start|>assistant\n"
    own = [{"role": "system", "content": "Be brief."}, *chat, {"role": "assistant", "content": "Hi"}]
    rendered = TOKENIZER.apply_chat_template(own, tokenize=False)
    assert rendered.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user")
    assert rendered.endswith("<|im_start|>assistant\nHi<|im_end|>\n")


@given(problems)
def test_language_model_learns_the_solution_and_the_end_only(problem):
    ids, targets = lm_example(TOKENIZER, problem)
    learnt = [(position, target) for position, target in enumerate(targets) if target >= 0]
    assert all(ids[position + 1] == target for position, target in learnt)
    assert TOKENIZER.decode([target for _, target in learnt]) == problem.solution + "<|im_end|>"
    assert TOKENIZER.decode(ids[: learnt[0][0] + 1]) == prompt_of(TOKENIZER, problem)


@given(problems)
def test_reward_model_is_asked_at_the_step_tokens_only(problem):
    labels = tuple(index % 2 == 0 for index in range(len(problem.steps)))
    ids, targets = prm_example(TOKENIZER, Labelled(problem, problem.steps, labels))
    marker = TOKENIZER.convert_tokens_to_ids("<extra_0>")
    assert [position for position, target in enumerate(targets) if target >= 0] == [p for p, token in enumerate(ids) if token == marker]
    assert [bool(target) for target in targets if target >= 0] == list(labels)
    assert "\n\n" not in TOKENIZER.decode(ids)


def test_training_is_reproducible_and_gives_what_is_shipped():
    trained = train_tokenizer()
    assert trained.get_vocab() == TOKENIZER.get_vocab()
    for directory in (PRM_DIR, WEAK_PRM_DIR):
        assert AutoTokenizer.from_pretrained(directory).get_vocab() == TOKENIZER.get_vocab()
