"""TransformersLM: log-probabilities, prompts, text, and loading of directories in the layout of real models."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerFast

from ppl_llm.context import PAD
from ppl_llm.lm.base import LanguageModel, StepOptions
from ppl_llm.lm.decoding.sampling import warp
from ppl_llm.lm.stopping import token_bytes
from ppl_llm.lm.transformers_lm import TransformersLM
from ppl_llm.stop_reason import StopReason
from tests.helpers.tiny_models import causal_lm, language_model, plain_logits, tokenizer, write_lm, write_prm

OPTIONS = [
    StepOptions(stop=("a", "\n\n"), max_tokens=8),
    StepOptions(stop=("a", "\n\n"), max_tokens=8, temperature=0.6, top_k=40),
    StepOptions(stop=("a", "\n\n"), max_tokens=8, temperature=1.4, top_p=0.8),
]


@pytest.mark.parametrize("options", OPTIONS)
def test_log_probs_are_those_of_an_uncached_forward_pass(options: StepOptions):
    torch.manual_seed(0)
    lm, reference = language_model(), causal_lm()
    context = lm.start("What is 12 + 30?")
    for _ in range(3):
        step, log_probs = lm.sample_step(context, torch.Size((6,)), options)
        torch.testing.assert_close(lm.step_log_prob(context, step, options), log_probs, atol=1e-5, rtol=1e-5)
        spread = context.expand((6,))
        for sequence in range(6):
            before, ids = spread.tokens[sequence][: spread.lengths[sequence]].tolist(), step[sequence][step[sequence] != PAD]
            logits = plain_logits(reference, before + ids.tolist())[len(before) - 1 : -1]
            expected = warp(logits, options).log_softmax(-1).gather(-1, ids[:, None]).sum()
            torch.testing.assert_close(
                log_probs[sequence] if not spread.done[sequence] else torch.tensor(0.0), expected, atol=1e-4, rtol=1e-5
            )
        context = context.extend(step, options.stop).reorder(torch.tensor([0, 0, 1, 2, 5, 5]))


def test_scoring_in_small_chunks_changes_nothing(monkeypatch: pytest.MonkeyPatch):
    torch.manual_seed(0)
    lm = language_model()
    context = lm.start(["12 + 30", "What is 7 * 6?"])
    step, log_probs = lm.sample_step(context, torch.Size((5, 2)), OPTIONS[0])
    step[1], log_probs[1] = step[0], log_probs[0]
    monkeypatch.setattr("ppl_llm.lm.decoding.cached_decoder._LOGITS_ELEMENTS", 2 * 8 * lm.vocab_size)
    torch.testing.assert_close(lm.step_log_prob(context, step, OPTIONS[0]), log_probs, atol=1e-5, rtol=1e-5)
    monkeypatch.setattr("ppl_llm.kv_cache.engine._FORWARD_TOKENS", 7)
    lm.release_caches()
    torch.testing.assert_close(lm.step_log_prob(context, step, OPTIONS[0]), log_probs, atol=1e-5, rtol=1e-5)


def test_what_outlives_a_pass_can_be_written_to_outside_of_inference_mode():
    torch.manual_seed(0)
    lm, options, versions = language_model(), StepOptions(stop="no such text", max_tokens=60), []
    context = lm.start("What is 12 + 30?")
    for _ in range(2):
        step, log_probs = lm.sample_step(context, torch.Size((3,)), options)
        context = context.extend(step, options.stop)
        entry = context.cache_entries[lm._key]
        cache = entry.owner.cache
        versions.append(cache.version)
        kept = [step, log_probs, cache.tokens, cache.lengths, entry.tensors["rows"]]
        kept += [states for layer in cache.state()["layers"] for states in layer]
        assert not any(each.is_inference() for each in kept)
    assert 0 < versions[0] < versions[1]  # in either step, some pass had to make room


def test_a_single_sequence_needs_no_batch_dimension():
    torch.manual_seed(0)
    lm = language_model()
    context = lm.start("12 + 30")
    step, log_prob = lm.sample_step(context, torch.Size(()), OPTIONS[0])
    assert step.shape == (8,) and log_prob.shape == ()
    torch.testing.assert_close(lm.step_log_prob(context, step, OPTIONS[0]), log_prob, atol=1e-5, rtol=1e-5)
    assert isinstance(context.extend(step, OPTIONS[0].stop).text, str)
    assert isinstance(lm, LanguageModel)


def test_impossible_steps_have_probability_zero():
    lm = language_model()
    options = StepOptions(stop="\n\n", max_tokens=4)
    stop, inner, eos = (tokenizer().convert_tokens_to_ids(text) for text in ("\n\n", "x\n\ny", "<|im_end|>"))
    letter = tokenizer().convert_tokens_to_ids("q")
    context = lm.start("12 + 30")
    steps = {
        "ends by delimiter": ([letter, stop, PAD, PAD], True),
        "ends by a delimiter inside a token": ([inner, PAD, PAD, PAD], True),
        "ends by end of text": ([letter, letter, eos, PAD], True),
        "ends by length": ([letter] * 4, True),
        "continues after the delimiter": ([stop, letter, PAD, PAD], False),
        "continues after the end of text": ([eos, eos, PAD, PAD], False),
        "ends without a reason": ([letter, letter, PAD, PAD], False),
        "is empty": ([PAD] * 4, False),
        "has a hole": ([letter, PAD, stop, PAD], False),
        "has no such token": ([lm.vocab_size, stop, PAD, PAD], False),
    }
    log_probs = lm.step_log_prob(context, torch.tensor([step for step, _ in steps.values()]), options)
    for (what, (_, possible)), log_prob in zip(steps.items(), log_probs.tolist(), strict=True):
        assert (log_prob > -torch.inf) == possible, what
    done = context.expand((2,)).extend(torch.tensor([[eos, PAD, PAD, PAD]] * 2))
    assert lm.step_log_prob(done, torch.tensor([[PAD] * 4, [stop, PAD, PAD, PAD]]), options).tolist() == [0.0, -torch.inf]
    with pytest.raises(ValueError, match=r"a step has 4 token places \(max_tokens\), got a value with 3"):
        lm.step_log_prob(context, torch.tensor([[stop, PAD, PAD]]), options)


def test_a_finished_sequence_takes_empty_steps():
    lm = language_model()
    eos = tokenizer().eos_token_id
    context = lm.start("12 + 30").expand((3,)).extend(torch.tensor([[eos], [7], [8]]))
    step, log_probs = lm.sample_step(context, torch.Size((3,)), OPTIONS[0])
    assert (step[0] == PAD).all() and log_probs[0] == 0
    assert (step[1:, 0] != PAD).all()


def test_the_context_fills_up():
    torch.manual_seed(0)
    lm = language_model(max_length=40)
    options = StepOptions(stop="\x00\x00", max_tokens=30)
    lm.eos_ids = torch.tensor([], dtype=torch.long)
    context = lm.start("12 + 30")
    step, log_probs = lm.sample_step(context, torch.Size((3,)), options)
    full = context.extend(step, options.stop)
    assert full.lengths.tolist() == [40] * 3 and full.done.all()
    assert (full.reasons == StopReason.CONTEXT_FULL).all()
    torch.testing.assert_close(lm.step_log_prob(context, step, options), log_probs, atol=1e-4, rtol=1e-5)


def test_prompts():
    lm = language_model(system_prompt="Be brief.")
    text = tokenizer().decode(lm.start("7 * 6").tokens.tolist())
    assert text == "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n7 * 6<|im_end|>\n<|im_start|>assistant\n"
    chat = [{"role": "user", "content": "7 * 6"}]
    plain = language_model().start(chat)
    assert tokenizer().decode(plain.tokens.tolist()) == "<|im_start|>user\n7 * 6<|im_end|>\n<|im_start|>assistant\n"
    assert plain.batch_shape == () and plain.problem == "7 * 6"
    batch = language_model().start([chat, "What is 12 + 30?"])
    assert batch.batch_shape == (2,) and batch.problem == ["7 * 6", "What is 12 + 30?"]
    other = TransformersLM(causal_lm(), tokenizer(), chat_template="{{ messages[0]['content'] }}:")
    assert tokenizer().decode(other.start("7 * 6").tokens.tolist()) == "7 * 6:"
    assert tokenizer().chat_template != other.tokenizer.chat_template


def test_without_a_chat_template_the_model_continues_the_problem():
    bare = PreTrainedTokenizerFast(tokenizer_object=tokenizer().backend_tokenizer, eos_token="<|im_end|>")
    lm = TransformersLM(causal_lm(), bare)
    assert bare.decode(lm.start("7 * 6 =").tokens.tolist()) == "7 * 6 ="
    with pytest.raises(ValueError, match="the tokenizer has no chat template; give the problem as a string"):
        lm.start([{"role": "user", "content": "7 * 6"}])


def test_bad_problems():
    lm = language_model(max_length=20)
    for problem in ("", "  \n", [{"role": "system", "content": "x"}], 42):
        with pytest.raises(ValueError, match="a problem must be a non-empty string or a list of chat messages"):
            lm.start(problem)
    with pytest.raises(ValueError, match="empty list"):
        lm.start([])
    with pytest.raises(ValueError, match=r"the prompt has \d+ tokens, which leaves no room in the model's context of 20 tokens"):
        lm.start("What is 12 + 30? " * 5)
    with pytest.raises(ValueError, match=r"max_length must lie in 2 .. 256 .*, got 300"):
        language_model(max_length=300)


def test_token_bytes_spell_the_text():
    table = token_bytes(tokenizer(), len(tokenizer()) + 5)
    text = "Add 12 + 30,\n\nthen é日本.\n\nSo \\boxed{42}"
    ids = tokenizer()(text, add_special_tokens=False)["input_ids"]
    assert b"".join(table[i] for i in ids) == text.encode()
    assert table[tokenizer().eos_token_id] == b"" and table[-1] == b""


def test_token_bytes_of_a_sentencepiece_vocabulary():
    from tokenizers import Tokenizer, decoders, models

    vocab = {"<unk>": 0, "<0x0A>": 1, "▁the": 2, "re": 3, "<0xE6>": 4}
    core = Tokenizer(models.BPE(vocab=vocab, merges=[], byte_fallback=True, unk_token="<unk>"))
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    fast = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>")
    assert token_bytes(fast, 6) == [b"", b"\n", b" the", b"re", b"\xe6", b""]
    core.decoder = decoders.WordPiece()
    wordpiece = Tokenizer(models.WordLevel({"the": 0}, unk_token="the"))
    wordpiece.decoder = decoders.WordPiece()
    with pytest.raises(ValueError, match="stop strings need a byte-level or a sentencepiece vocabulary"):
        token_bytes(PreTrainedTokenizerFast(tokenizer_object=wordpiece), 1)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loads_a_directory(tmp_path: Path, tied: bool, dtype: torch.dtype):
    directory = write_lm(tmp_path / "model", dtype, tie_word_embeddings=tied)
    names = set(load_file(directory / "model.safetensors"))
    assert "model.layers.0.self_attn.q_proj.weight" in names and ("lm_head.weight" in names) != tied
    lm = TransformersLM.from_pretrained(directory)
    assert lm.model.dtype == dtype and not lm.model.training
    assert lm.eos_ids.tolist() == sorted({tokenizer().eos_token_id, tokenizer().pad_token_id})
    torch.manual_seed(0)
    context = lm.start("12 + 30")
    step, log_probs = lm.sample_step(context, torch.Size((4,)), OPTIONS[0])
    assert log_probs.dtype == torch.float32 and log_probs.isfinite().all()
    if dtype == torch.float32:
        reference = TransformersLM(causal_lm(tie_word_embeddings=tied), tokenizer())
        again = reference.step_log_prob(reference.start("12 + 30"), step, OPTIONS[0])
        torch.testing.assert_close(again, log_probs, atol=1e-5, rtol=1e-5)


def test_unusable_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    load = TransformersLM.from_pretrained
    with pytest.raises(OSError, match=r"no model directory './missing'"):
        load("./missing")
    with pytest.raises(OSError, match=r"holds no config\.json"):
        load(tmp_path)
    write_lm(tmp_path / "pickled")
    (tmp_path / "pickled/model.safetensors").rename(tmp_path / "pickled/pytorch_model.bin")
    with pytest.raises(OSError, match=r"holds no \*\.safetensors file.*convert it"):
        load(tmp_path / "pickled")
    with pytest.raises(ValueError, match=r"not a complete Qwen2ForCausalLM: missing keys \['lm_head\.weight'\]"):
        load(write_prm(tmp_path / "prm"))
    write_lm(tmp_path / "mismatched")
    write_lm(tmp_path / "other", hidden_size=64)
    (tmp_path / "mismatched/config.json").write_text((tmp_path / "other/config.json").read_text())
    with pytest.raises(ValueError, match=r"the weights in .* do not fit its config\.json"):
        load(tmp_path / "mismatched")
    (tmp_path / "pickled/pytorch_model.bin").rename(tmp_path / "pickled/model.safetensors")
    (tmp_path / "pickled/tokenizer.json").unlink()
    (tmp_path / "pickled/tokenizer_config.json").unlink()
    with pytest.raises((OSError, ValueError), match="tokenizer"):
        load(tmp_path / "pickled")
    with pytest.raises(ValueError, match="trust_remote_code is always False here, got True"):
        load(tmp_path / "other", trust_remote_code=True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match=r"neither a directory here nor a model that could be fetched .* no network"):
        load("nobody/no-such-model")
