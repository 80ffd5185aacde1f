"""Where steps end: several delimiters, the end of a thought, a budget of tokens. And models spread over shards and devices."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import PreTrainedTokenizerFast

from ppl_llm import SMC, LLMStep, StopReason, reasoning
from ppl_llm.context import PAD
from ppl_llm.kv_cache.support import agree, cache_engine, cache_keyword, context_limit, disagreement
from ppl_llm.lm.base import StepOptions
from ppl_llm.lm.decoding.cached_decoder import CachedLogits
from ppl_llm.lm.decoding.uncached_sampler import UncachedSampler
from ppl_llm.lm.stopping import StopAutomaton
from ppl_llm.lm.transformers_lm import TransformersLM
from ppl_llm.reward.prm.transformers_prm import TransformersPRM
from tests.helpers.architectures import ARCHITECTURES
from tests.helpers.tiny_models import causal_lm, language_model, plain_logits, tokenizer, write_lm


def with_thoughts(special: bool) -> TransformersLM:
    """A model whose tokenizer ends thoughts with one token."""
    tokens = PreTrainedTokenizerFast(tokenizer_object=tokenizer().backend_tokenizer, eos_token="<|im_end|>")
    tokens.add_tokens(["</think>"], special_tokens=special)
    return TransformersLM(causal_lm(vocab_size=len(tokens) + 2), tokens)


@pytest.mark.parametrize("special", [False, True])
def test_the_end_of_a_thought_ends_a_step(special: bool) -> None:
    lm = with_thoughts(special)
    end = lm.tokenizer.convert_tokens_to_ids("</think>")
    steps = torch.tensor([[40, end, PAD, PAD], [40, 41, 42, 43], [end, 40, PAD, PAD]])
    options = StepOptions(stop=("\n\n", "</think>"), max_tokens=4)
    context = lm.start("12 + 30")
    assert (lm.step_log_prob(context, steps, options) > -torch.inf).tolist() == [True, True, False]
    assert (lm.step_log_prob(context, steps, StepOptions(max_tokens=4)) > -torch.inf).tolist() == [False, True, False]
    reasons = context.extend(steps[:2], options.stop).reasons[:, 0].tolist()
    assert reasons == [StopReason.DELIMITER, StopReason.LENGTH]
    torch.manual_seed(0)
    sampled, _ = lm.sample_step(context, torch.Size((400,)), options)
    ended = (sampled == end).any(-1)
    assert ended.any()
    after = sampled[ended].flatten()[(sampled[ended] == end).cumsum(-1).flatten() == 1]
    assert set(after.tolist()) <= {end, PAD}


def test_a_special_token_is_no_delimiter_unless_named() -> None:
    table = [b"a", b"\n\n", b""]
    assert StopAutomaton(table, "\n\n", accept_ids=[2]).accepts(torch.tensor([[0, 2], [0, 1], [0, 0]])).tolist() == [True, True, False]
    assert StopAutomaton(table, "\n\n").accepts(torch.tensor([[0, 2]])).tolist() == [False]
    assert not StopAutomaton(table, ()).accepts(torch.tensor([[0, 1], [1, 2]])).any()


def test_a_list_of_stops_is_a_tuple_of_them() -> None:
    lm = language_model()
    listed = LLMStep(lm.start("12 + 30"), stop=["a", "\n\n"], max_tokens=4)  # type: ignore[arg-type]
    assert listed.options == StepOptions(stop=("a", "\n\n"), max_tokens=4)
    torch.manual_seed(0)
    step = listed.sample((8,))
    grown = lm.start("12 + 30").extend(step, stop=["a", "\n\n"])  # type: ignore[arg-type]
    assert set(grown.reasons.flatten().tolist()) >= {StopReason.DELIMITER, StopReason.LENGTH}


def test_steps_of_a_number_of_tokens() -> None:
    lm = language_model(max_length=60)
    lm.eos_ids = torch.tensor([0])
    context = lm.start("12 + 30")
    room = 60 - int(context.lengths)
    fixed = LLMStep(context, stop="a", max_tokens=3, tokens_per_step=7)
    assert fixed.options == StepOptions(stop=(), max_tokens=7)
    torch.manual_seed(0)
    for taken in range(0, room, 7):
        step = LLMStep(context, tokens_per_step=7).expand([20]).sample()
        counts = (step != PAD).sum(-1)
        context = context.extend(step, stop=())
        last, expected = context.reasons[:, -1], min(7, room - taken)
        full = StopReason.CONTEXT_FULL if taken + 7 >= room else StopReason.LENGTH
        assert set(last.tolist()) <= {full, StopReason.END_OF_TEXT, StopReason.FINISHED}
        assert (counts[last == full] == expected).all()
        assert (counts[last == StopReason.FINISHED] == 0).all()
    assert context.done.all()
    for wrong in (0, -1, True, 2.5):
        with pytest.raises(ValueError, match="tokens_per_step must be an integer of at least 1"):
            LLMStep(context, tokens_per_step=wrong)  # type: ignore[arg-type]


def test_reasoning_by_a_number_of_tokens() -> None:
    lm, prm = TransformersLM.from_pretrained("demo"), TransformersPRM.from_pretrained("demo")
    model = reasoning(lm, prm, tokens_per_step=5, max_steps=4)
    torch.manual_seed(0)
    context = SMC(model, 3).run("Start with 12. First: add 5. Second: double it. What is the final number?").value
    unfinished = context.reasons == StopReason.LENGTH
    assert unfinished.any() and not (context.reasons == StopReason.DELIMITER).any()
    lengths = torch.diff(context.ends, prepend=context.prompt_lengths[:, None], dim=1)
    assert (lengths[unfinished] == 5).all()


def logits_after(lm: TransformersLM, ids: list[int]) -> torch.Tensor:
    """The next token's logits, through the cache of the language model."""
    root = lm.start("U")
    context = type(root).root(lm, ("U",), [ids], True)
    assert isinstance(lm._source, CachedLogits)
    return lm._source.decoder(context, torch.tensor([0])).logits[0]


def test_a_checkpoint_in_several_files_on_several_devices(tmp_path: Path) -> None:
    ARCHITECTURES["llama"].write(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    plain = TransformersLM.from_pretrained(tmp_path)
    ids = plain.start("What is 12 + 30?").tokens.tolist()
    torch.testing.assert_close(logits_after(plain, ids), plain_logits(plain.model, ids)[-1], atol=1e-5, rtol=1e-5)
    layers = {"model.embed_tokens": "disk", "model.layers.0": "cpu", "model.layers.1": "disk", "model.norm": "cpu", "lm_head": "disk"}
    spread = TransformersLM.from_pretrained(tmp_path, device_map=layers | {"model.rotary_emb": "cpu"}, offload_folder=tmp_path / "offload")
    assert spread.model.model.layers[1].mlp.up_proj.weight.device.type == "meta" and spread.device.type == "cpu"
    torch.testing.assert_close(logits_after(spread, ids), logits_after(plain, ids), atol=1e-5, rtol=1e-5)
    torch.manual_seed(0)
    assert spread.sample_step(spread.start("12 + 30"), torch.Size((3,)), StepOptions(max_tokens=4)).log_probs.isfinite().all()  # type: ignore[union-attr]


def test_options_of_loading_are_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_lm(tmp_path)
    seen: dict[str, Any] = {}
    original = transformers.AutoModelForCausalLM.from_pretrained

    def spy(source: str, **kwargs: Any) -> Any:
        seen.update(kwargs)
        return original(source, **{name: value for name, value in kwargs.items() if name != "quantization_config"})

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", spy)
    config = transformers.BitsAndBytesConfig(load_in_8bit=True)
    options: dict[str, Any] = {"device_map": "cpu", "dtype": torch.bfloat16, "max_memory": {"cpu": "1GB"}}
    lm = TransformersLM.from_pretrained(tmp_path, quantization_config=config, **options)
    assert lm.model.dtype == torch.bfloat16
    assert seen["quantization_config"] is config and options.items() <= seen.items()
    assert seen["trust_remote_code"] is False and seen["use_safetensors"] is True
    with pytest.raises(ValueError, match="attn_implementation is chosen for the model here"):
        TransformersLM.from_pretrained(tmp_path, attn_implementation="eager")


def test_a_quantised_checkpoint_needs_no_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ternary weights and 8-bit activations, as the config.json of the checkpoint asks for."""
    monkeypatch.setattr(torch._dynamo.config, "disable", True)  # the kernels are the same without a compiler
    ARCHITECTURES["llama"].write(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    kind = {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "online"}
    (tmp_path / "config.json").write_text(json.dumps(config | {"quantization_config": kind}))
    lm = TransformersLM.from_pretrained(tmp_path, device_map="cpu")
    assert type(lm.model.model.layers[0].mlp.up_proj).__name__ == "AutoBitLinear" and lm.model.is_quantized
    ids = lm.start("What is 12 + 30?").tokens.tolist()
    # Rounding to 8 bits amplifies the least difference of the activations before it.
    assert agree(logits_after(lm, ids), plain_logits(lm.model, ids)[-1]) and disagreement(lm._engine, lm.model) is None


def test_unknown_architectures_are_tried_when_loaded(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr("ppl_llm.kv_cache.support.VERIFIED", frozenset())
    assert language_model().fallback == ""
    broken = causal_lm()
    attention = broken.model.layers[0].self_attn
    original = attention.forward

    def without_cache(*args: Any, **kwargs: Any) -> Any:
        return original(*args, **{**kwargs, cache_keyword(broken): None, "attention_mask": None})

    attention.forward = without_cache
    with caplog.at_level(logging.WARNING, logger="ppl_llm"):
        lm = TransformersLM(broken, tokenizer())
    assert lm.fallback == "its logits with our cache differ from those without"
    assert broken.config._attn_implementation == "sdpa"
    assert isinstance(lm._sampler, UncachedSampler) and not lm._sampler.cached
    assert "runs the whole prefix again for each token, which is slow: its logits" in caplog.text
    with pytest.raises(ValueError, match="Qwen2ForCausalLM does without the KV cache of this package"):
        lm._engine.pool.clear()
    refusing = causal_lm()
    refusing.forward = lambda input_ids, use_cache=False: type(broken).forward(refusing, input_ids=input_ids, use_cache=use_cache)
    assert "its forward pass refuses our cache (TypeError: " in cache_engine(refusing, 64, 0, torch.device("cpu"))[1]


def test_the_probe_finds_nothing_in_a_good_model_and_tells_rounding_from_errors() -> None:
    lm = language_model()
    assert disagreement(lm._engine, lm.model) is None
    logits = torch.randn(4, 100, generator=torch.Generator().manual_seed(0))
    assert agree(logits, logits + 1e-5) and not agree(logits, logits.roll(1, 0)) and not agree(logits, logits + 0.01)
    assert agree(logits.bfloat16(), (logits + 1e-2).bfloat16()) and not agree(logits.bfloat16(), logits.roll(1, 0).bfloat16())


def test_the_longest_context() -> None:
    llama, gpt2 = transformers.LlamaConfig(max_position_embeddings=99), transformers.GPT2Config(n_positions=77)
    assert [context_limit(config)[0] for config in (llama, gpt2)] == [99, 77]
    sizes: dict[str, Any] = {"hidden_size": 32, "num_attention_heads": 4, "max_position_embeddings": 128, "pad_token_id": 0}
    rope = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "rope_type": "longrope", "rope_theta": 10000.0}
    phi = transformers.Phi3Config(**sizes, original_max_position_embeddings=32, rope_scaling=rope)
    limit, why = context_limit(phi)
    assert limit == 32 and "LongRoPE" in why
    assert context_limit(transformers.MambaConfig())[0] == 1 << 20


def test_an_encoder_decoder_is_refused() -> None:
    config = transformers.T5Config(vocab_size=20, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    with pytest.raises(ValueError, match="T5ForConditionalGeneration is an encoder-decoder model"):
        TransformersLM(transformers.T5ForConditionalGeneration(config), tokenizer())
