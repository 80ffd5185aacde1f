"""Particle filters of other libraries on the same model file, each in an environment of its own: tokens per second of CPU time.

The program is the same for all: N particles of a random 6-million-parameter Qwen2 take T tokens each after a prompt, every token (for
its_hub: every step, as it knows no smaller unit) weighs its particle, and particles are resampled where the effective sample size falls
below N / 2 (its_hub: always).

- LLaMPPL and genlm-control through their backend for local transformers models, the keys of the prompt cached as their manuals advise.
- its_hub, which talks to chat servers, through transformers' ``generate`` on the whole text, as each of its requests carries it. Text that
  was sampled is encoded into a tenth more tokens.
- ppl_llm with a barrier at every token, and, where a model is scored once in a while only, in steps of some tokens.

All run on one thread, in turns; each process measures its own CPU time, and ratios are taken within a turn. A peer's environment is given
by ``--python NAME=PATH``, or made by ``--setup DIRECTORY`` (pip, some minutes each). Peers without one are left out.

``python benchmarks/peers.py --setup /some/folder [--peers llamppl] [--particles 32 --tokens 64 --repeats 5]``
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import string
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import torch
from common import VOCAB, Spread, make_model, ratios, record, single_thread, table, timed
from peer_workers import PEERS, byte_decoder
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ppl_llm import PAD, SMC, LLMStep, OpenAILM, TransformersLM, barrier

REQUIREMENTS = {
    "llamppl": ["llamppl==0.2.3", "transformers<5"],
    "genlm-control": ["genlm-control==0.4.1"],
    "its_hub": ["its_hub==1.2.0", "transformers>=5.17,<6", "accelerate"],
}
TARGET = {"llamppl": 9.0}


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Bytes and pairs of characters: a vocabulary that byte-level libraries accept, whose text is encoded into about as many tokens."""
    letters = (string.ascii_letters + string.digits + string.punctuation)[:89]
    merges = [(first, second) for first in letters for second in letters]
    texts = [*byte_decoder(), *(first + second for first, second in merges)]
    texts += [f"<unused{i}>" for i in range(VOCAB - len(texts) - 1)] + ["<end>"]
    core = Tokenizer(models.BPE({text: i for i, text in enumerate(texts)}, merges))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<end>")


def save(directory: Path) -> None:
    """The model and its tokenizer, readable by old and new versions of transformers."""
    make_model(tie_word_embeddings=True).save_pretrained(directory)
    make_tokenizer().save_pretrained(directory)
    settings = directory / "tokenizer_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}))


class Worker:
    """A script of this folder in a process of another environment, which answers lines by lines of JSON.

    :param name: of the library.
    :param command: the interpreter of its environment, the script and its arguments.
    :param settings: what its environment variables are besides those of this process.
    """

    def __init__(self, name: str, command: list[str], settings: dict[str, str]) -> None:
        self.name = name
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **settings})
        self.versions: dict[str, str] = self._answer()["versions"]

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:  # killed for its memory, say: some keep the logits of every token
            raise RuntimeError(f"{self.name} ended with status {self.close()}; its messages are above")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def ask(self, line: str) -> dict[str, Any]:
        """What it answers to a line."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # which the answer that does not come will explain
            self._process.stdin.write(f"{line}\n")
            self._process.stdin.flush()
        return self._answer()

    def close(self) -> int:
        """Let it end: its exit status."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.stdout.close()
        return self._process.wait()


class Peer(Worker):
    """A library of ``peer_workers.PEERS`` on one thread.

    :param python: the interpreter of its environment.
    """

    def __init__(self, name: str, python: str, **arguments: Any) -> None:
        one_thread = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        offline = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        script = str(Path(__file__).with_name("peer_workers.py"))
        super().__init__(name, [python, script, name, json.dumps(arguments)], {**one_thread, **offline})

    def run(self) -> tuple[float, int]:
        """CPU seconds and tokens of one run."""
        answer = self.ask("run")
        return answer["seconds"], answer["tokens"]


def environment(directory: Path, name: str) -> str:
    """Make the environment of a peer unless it is there; its interpreter."""
    python = directory / name / "bin" / "python"
    if not python.exists():
        print(f"installing {name} into {directory / name}", file=sys.stderr)
        venv.create(directory / name, with_pip=True)
        # The same build of torch on all sides.
        subprocess.run([python, "-m", "pip", "install", "--quiet", f"torch=={torch.__version__}", *REQUIREMENTS[name]], check=True)
    return str(python)


def particle_filter(
    lm: TransformersLM | OpenAILM, prompt: str, sequences: int, tokens: int, step: int, ess_threshold: float = 0.5, fresh: bool = True
) -> Callable[[], int]:
    """The program in ppl_llm, with a weight and a barrier after every ``step`` tokens.

    :param bool fresh: every run starts from empty caches.
    """

    def program() -> Any:
        context = lm.start(prompt)
        for t in range(tokens // step):
            taken = pyro.sample(f"step_{t}", LLMStep(context, tokens_per_step=step))
            context = context.extend(taken, ())
            weight = torch.where(taken == PAD, 0.0, 0.1 * (taken % 7)).sum(-1)
            pyro.factor(f"score_{t}", weight)
            context = barrier(context)
        return context

    def run() -> int:
        if fresh and isinstance(lm, TransformersLM):
            lm.release_caches()
        posterior = SMC(program, num_particles=sequences, ess_threshold=ess_threshold).run()
        return int(posterior.cost["tokens_sampled"])

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", action="append", default=[], metavar="NAME=PATH", help="the interpreter of a peer's environment")
    parser.add_argument("--setup", type=Path, metavar="DIRECTORY", help="make the environments of the other peers here, or find them here")
    parser.add_argument("--peers", nargs="+", choices=list(REQUIREMENTS), default=list(REQUIREMENTS), help="which of them to set up")
    parser.add_argument("--particles", type=int, default=32)
    parser.add_argument("--prompt", type=int, default=64, help="tokens of the prompt")
    parser.add_argument("--tokens", type=int, default=64, help="tokens of each particle")
    parser.add_argument("--step", type=int, default=16, help="tokens of a step, where steps are longer than a token")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    if arguments.tokens % arguments.step:
        parser.error(f"--tokens must be a multiple of --step, got {arguments.tokens} and {arguments.step}")
    pythons = dict(each.split("=", 1) for each in arguments.python)
    if unknown := pythons.keys() - REQUIREMENTS.keys():
        parser.error(f"--python got {sorted(unknown)}; known peers are {', '.join(REQUIREMENTS)}")
    if arguments.setup is not None:
        pythons = {name: environment(arguments.setup, name) for name in arguments.peers if name not in pythons} | pythons
    single_thread()
    with tempfile.TemporaryDirectory() as folder:
        save(Path(folder))
        lm = TransformersLM.from_pretrained(folder)
        lm.eos_ids = lm.eos_ids[:0]  # all take the same number of tokens
        prompt = "~" * arguments.prompt  # of no pair
        assert len(lm.tokenizer.encode(prompt)) == arguments.prompt
        settings = {name: getattr(arguments, name) for name in ("particles", "prompt", "tokens", "step")}
        shared = {"model": folder, "prompt": prompt, "sequences": arguments.particles, "tokens": arguments.tokens, "step": arguments.step}
        peers = [Peer(name, python, **shared) for name, python in pythons.items()]
        ours = {
            f"ppl_llm, {what}": particle_filter(lm, prompt, arguments.particles, arguments.tokens, step)
            for what, step in (("step = 1 token", 1), (f"steps of {arguments.step}", arguments.step))
        }
        runs = {name: lambda run=run: timed(run) for name, run in ours.items()} | {peer.name: peer.run for peer in peers}
        measured: dict[str, list[tuple[float, int]]] = {name: [] for name in runs}
        for turn in range(-1, arguments.repeats):  # the first one warms up
            for name, run in runs.items():
                pyro.set_rng_seed(turn + 1)
                once = run()
                if turn >= 0:
                    measured[name].append(once)
        for peer in peers:
            peer.close()
    rates = {name: [tokens / seconds for seconds, tokens in each] for name, each in measured.items()}
    by_token, by_step = ours
    rows = []
    for name, each in rates.items():
        rows.append(
            {
                "program": name,
                "version": next((peer.versions[PEERS[name][0]] for peer in peers if peer.name == name), ""),
                "tokens": measured[name][0][1],
                "tokens per CPU second": Spread.of(each),
                f"{by_token} is faster by": ratios(rates[by_token], each),
                f"{by_step} is faster by": ratios(rates[by_step], each),
                "target": TARGET.get(name, ""),
            }
        )
    print(f"{arguments.particles} particles, prompt {arguments.prompt}, {arguments.tokens} tokens each; {arguments.repeats} runs\n")
    print(table(rows))
    record("peers", rows, settings | {"versions of peers": {peer.name: peer.versions for peer in peers}})


if __name__ == "__main__":
    main()
