"""Particle filters of other libraries on a local model, each run by the Python of its own environment (see ``peers.py``).

Protocol: JSON arguments on the command line; then for every line on the input one run, answered by a JSON line with its process CPU seconds
and the tokens it sampled. Nothing of this repository is imported.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable
from importlib import metadata
from typing import Any

Run = Callable[[], Awaitable[int]]


def score(token: int) -> float:
    """What every particle filter here weighs a token by, on the log scale."""
    return 0.1 * (token % 7)


def byte_decoder() -> dict[str, int]:
    """The characters that byte-level vocabularies write bytes as; the library fetches it from a hub otherwise."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + k): byte for k, byte in enumerate(others)}


def local_byte_decoder() -> None:
    import genlm.backend.tokenization.bytes as tokenization

    tokenization._get_default_byte_decoder = byte_decoder


def llamppl(model: str, prompt: str, sequences: int, tokens: int, **_: Any) -> Run:
    local_byte_decoder()
    from llamppl import CachedCausalLM, LMContext, Model, smc_standard

    lm = CachedCausalLM.from_pretrained(model, backend="hf", batch_size=sequences)

    class Program(Model):
        def __init__(self) -> None:
            super().__init__()
            self.context = LMContext(lm, prompt)
            self.taken = 0

        async def step(self) -> None:
            token = await self.sample(self.context.next_token())
            self.score(score(token.token_id))
            self.taken += 1
            if self.taken == tokens:
                self.finish()

        def immutable_properties(self) -> set[str]:
            return set()

    async def run() -> int:
        lm.clear_cache()
        lm.cache_kv(lm.tokenizer.encode(prompt))  # what its manual advises for a prompt that all particles share
        particles = await smc_standard(Program(), sequences, 0.5)
        return sum(particle.taken for particle in particles)

    return run


def genlm_control(model: str, prompt: str, sequences: int, tokens: int, **_: Any) -> Run:
    local_byte_decoder()
    from genlm.control import Potential, PromptedLLM, direct_token_sampler

    llm = PromptedLLM.from_name(model, backend="hf", batch_size=sequences)
    llm.set_prompt_from_str(prompt)

    class Critic(Potential):
        async def prefix(self, context: Any) -> float:
            return sum(score(token.token_id) for token in context)

        async def complete(self, context: Any) -> float:
            return await self.prefix(context)

    critic = Critic(llm.vocab)

    async def run() -> int:
        llm.model.clear_cache()
        llm.model.cache_kv(llm.prompt_ids)
        finished = await direct_token_sampler(llm).smc(sequences, 0.5, tokens + 1, critic=critic)  # the last one is the end that it appends
        return sum(len(context) - 1 for context in finished.contexts)

    return run


def genlm_control_schema(model: str, prompt: str, sequences: int, tokens: int, schema: Any, max_rejects: int, **_: Any) -> Run:
    local_byte_decoder()
    from genlm.control import AWRS, EOS, JsonSchema, PromptedLLM

    llm = PromptedLLM.from_name(model, backend="hf", batch_size=sequences)
    llm.set_prompt_from_str(prompt)
    sampler = AWRS(llm, JsonSchema(schema).coerce(llm, f=b"".join), max_rejects=max_rejects)

    async def run() -> int:
        llm.model.clear_cache()
        llm.model.cache_kv(llm.prompt_ids)
        finished = await sampler.smc(sequences, 0.5, tokens)
        return sum(sum(token is not EOS for token in context) for context in finished.contexts)

    return run


def its_hub(model: str, prompt: str, sequences: int, tokens: int, step: int, **_: Any) -> Run:
    import torch
    from its_hub.api import AbstractLanguageModel, AbstractProcessRewardModel
    from its_hub.core.algorithms.particle_gibbs import ParticleFiltering
    from its_hub.core.lms.step_generation import StepGeneration
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, network = AutoTokenizer.from_pretrained(model), AutoModelForCausalLM.from_pretrained(model).eval()
    sampled = 0

    class Generate(AbstractLanguageModel):
        """Its interface is that of a chat server, which is given the whole text at each step."""

        @torch.inference_mode()
        async def agenerate(self, messages: Any, stop: Any = None, max_completion_tokens: int = 0, **_: Any) -> Any:
            nonlocal sampled
            texts = [tokenizer.encode("".join(message.content for message in chat)) for chat in messages]
            longest = max(map(len, texts))
            ids = torch.tensor([[0] * (longest - len(text)) + text for text in texts])
            mask = torch.tensor([[0] * (longest - len(text)) + [1] * len(text) for text in texts])
            new = network.generate(
                ids, attention_mask=mask, max_new_tokens=max_completion_tokens, do_sample=True, top_k=0, eos_token_id=None, pad_token_id=0
            )
            sampled += new[:, longest:].numel()
            return [{"role": "assistant", "content": text} for text in tokenizer.batch_decode(new[:, longest:])]

    class Reward(AbstractProcessRewardModel):
        def score(self, prompt_or_messages: Any, steps: list[str]) -> list[float]:
            return [0.3 + 0.4 * (len(text) % 7) / 7 for text in steps]

        async def ascore(self, prompt_or_messages: Any, steps: list[str]) -> list[float]:
            return self.score(prompt_or_messages, steps)

    # It takes one step more than it is told to.
    filtering = ParticleFiltering(StepGeneration(tokens // step - 1, tokens_per_step=step, temperature=1.0), Reward())

    async def run() -> int:
        nonlocal sampled
        sampled = 0
        await filtering.ainfer(Generate(), prompt, sequences)
        return sampled

    return run


PEERS: dict[str, tuple[str, Callable[..., Run]]] = {
    "llamppl": ("llamppl", llamppl),
    "genlm-control": ("genlm-control", genlm_control),
    "genlm-control, JSON schema": ("genlm-control", genlm_control_schema),
    "its_hub": ("its_hub", its_hub),
}


def main() -> None:
    import torch

    torch.set_num_threads(1)
    name, arguments = sys.argv[1], json.loads(sys.argv[2])
    package, make = PEERS[name]
    answers = sys.stdout
    sys.stdout = sys.stderr  # what libraries print is no answer
    run = make(**arguments)
    versions = {each: metadata.version(each) for each in (package, "torch", "transformers")}
    print(json.dumps({"versions": versions}), file=answers, flush=True)
    for _ in sys.stdin:
        began = time.process_time()
        tokens = asyncio.run(run())
        print(json.dumps({"seconds": time.process_time() - began, "tokens": tokens}), file=answers, flush=True)


if __name__ == "__main__":
    main()
