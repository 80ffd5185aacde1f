"""What the benchmarks share: the random model that the targets are about, timing in turns, tables, and records of results.

Process CPU time on one thread by default, as time on the clock means little where cores are shared; ``--threads`` of some scripts measures
that, with each number of threads. Whatever is compared runs in turns, and a ratio is taken within each turn: what else the machine does
then meets both sides alike.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import platform
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

import ppl_llm
from ppl_llm.context import Context
from ppl_llm.lm.transformers_lm import TransformersLM

RESULTS = Path(__file__).parent / "results"
VOCAB = 8192
STEP_TOKEN = "<extra_0>"
_SPECIAL = ("<end>", "<unknown>", STEP_TOKEN)
_TEMPLATE = "{%- for m in messages -%}{{ m['content'] }}{%- endfor -%}"


class Spread(NamedTuple):
    """What several runs gave."""

    least: float
    median: float
    most: float
    runs: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(min(values), statistics.median(values), max(values), len(values))

    def __format__(self, spec: str) -> str:
        """The median with its range, each in the format ``spec``: ``1.05 (1.01-1.12)``."""
        return f"{self.median:{spec}} ({self.least:{spec}}-{self.most:{spec}})"


def ratios(above: Sequence[float], below: Sequence[float]) -> Spread:
    """The spread of the quotients within each turn."""
    return Spread.of([a / b for a, b in zip(above, below, strict=True)])


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Slope of the least-squares line through ``log y`` against ``log x``."""
    log_x, log_y = ([math.log(value) for value in values] for values in (x, y))
    return statistics.linear_regression(log_x, log_y).slope


def single_thread() -> None:
    """Set torch up so that process CPU time means what it says, and keep transformers quiet."""
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()


class Arm(NamedTuple):
    """How something is measured.

    :ivar int threads: of torch.
    :ivar bool wall: seconds on the clock, or of processor time.
    """

    threads: int = 1
    wall: bool = False


_arm = Arm()


def thread_count(text: str) -> int:
    """An argument of ``--threads``: a number, or ``all`` for one on each core that this process may use."""
    if text == "all":
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a number of threads from 1, or 'all', got {text!r}")
    return int(text)


def add_threads(parser: argparse.ArgumentParser) -> None:
    """The option ``--threads``."""
    parser.add_argument(
        "--threads",
        nargs="+",
        type=thread_count,
        metavar="N|all",
        help="time on the clock with each of these numbers of threads, e.g. 1 all, instead of processor time on one",
    )


def arms(threads: Sequence[int] | None) -> list[Arm]:
    """Those of ``--threads``, each once; processor time on one thread without it."""
    return [Arm()] if threads is None else [Arm(number, wall=True) for number in dict.fromkeys(threads)]


def clock(arms: Sequence[Arm]) -> str:
    """What the times of these arms are, for the head of a table."""
    return "time on the clock" if arms[0].wall else "process CPU time"


def in_arms(arms: Sequence[Arm], rows: Callable[[], Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """The rows of every arm, measured as it says; a row begins with the threads where the time is that on the clock."""
    global _arm
    found, before = [], (_arm, torch.get_num_threads())
    try:
        for _arm in arms:
            torch.set_num_threads(_arm.threads)
            found += [({"threads": _arm.threads} if _arm.wall else {}) | dict(row) for row in rows()]
    finally:
        _arm = before[0]
        torch.set_num_threads(before[1])
    return found


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds that a call takes, and what it gave: of processor time, or on the clock inside of :func:`in_arms`."""
    seconds = time.perf_counter if _arm.wall else time.process_time
    began = seconds()
    result = run()
    return seconds() - began, result


def in_turns(runs: Mapping[str, Callable[[], Any]], repeats: int, warm_up: int = 1) -> dict[str, list[tuple[float, Any]]]:
    """Time and result of every call of each of ``runs``, called one after the other in each of ``repeats`` turns.

    :param int warm_up: turns before these that do not count.
    """
    measured: dict[str, list[tuple[float, Any]]] = {name: [] for name in runs}
    for turn in range(-warm_up, repeats):
        for name, run in runs.items():
            once = timed(run)
            if turn >= 0:
                measured[name].append(once)
    return measured


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows with the same keys as a Markdown table; a float has four digits, a :class:`Spread` three and its range."""

    def cell(value: Any) -> str:
        if isinstance(value, Spread):
            return f"{value:.3g}"
        return f"{value:.4g}" if isinstance(value, float) else str(value)

    lines = [list(rows[0]), *([cell(row[name]) for name in rows[0]] for row in rows)]
    widths = [max(len(line[k]) for line in lines) for k in range(len(rows[0]))]
    printed = ["| " + " | ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)) + " |" for line in lines]
    return "\n".join([printed[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *printed[1:]])


def record(benchmark: str, rows: Sequence[Mapping[str, Any]], settings: Mapping[str, Any], device: str = "cpu") -> None:
    """Append one JSON line per row to ``benchmarks/results/<benchmark>.jsonl``, with settings, versions and hardware.

    :param str device: where it ran, e.g. ``cuda``.
    """
    RESULTS.mkdir(exist_ok=True)
    about = {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "settings": dict(settings),
        "versions": versions(),
        "hardware": hardware(device),
    }
    with (RESULTS / f"{benchmark}.jsonl").open("a") as file:
        for row in rows:
            plain = {name: value._asdict() if isinstance(value, Spread) else value for name, value in row.items()}
            file.write(json.dumps({"benchmark": benchmark, **plain, **about}) + "\n")


def versions() -> dict[str, str]:
    """Versions of what takes part, and the commit of this repository."""
    found = {"python": platform.python_version(), "torch": torch.__version__}  # with the build, which a package's version leaves out
    for name in ("transformers", "pyro-ppl"):
        found[name] = metadata.version(name)
    command = ["git", "describe", "--always", "--dirty"]
    described = (
        shutil.which("git") and subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False).stdout
    )
    return found | {"ppl-llm": ppl_llm.__version__, "commit": (described or "").strip() or "unknown"}


def hardware(device: str = "cpu") -> dict[str, Any]:
    """The processor, the threads in use, and the accelerator if that is what was measured."""
    cpu_info = Path("/proc/cpuinfo")
    lines = cpu_info.read_text().splitlines() if cpu_info.is_file() else []
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    found = {"cpu": model or platform.machine(), "simd": torch.backends.cpu.get_cpu_capability(), "threads": torch.get_num_threads()}
    if device.startswith("cuda"):
        found["gpu"] = torch.cuda.get_device_name(device)
    return found


def make_config(**changes: Any) -> Qwen2Config:
    """The model of the targets: hidden size 256, 4 layers, 6 million parameters."""
    values = {
        "vocab_size": VOCAB,
        "hidden_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 1024,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }
    return Qwen2Config(**(values | changes))


def make_model(seed: int = 0, **changes: Any) -> Qwen2ForCausalLM:
    """A random model whose next token is nearly uniform over its vocabulary."""
    torch.manual_seed(seed)
    return Qwen2ForCausalLM(make_config(**changes)).eval()


@lru_cache
def make_tokenizer(stops: int = 80, vocab: int = VOCAB) -> PreTrainedTokenizerFast:
    """A made-up vocabulary of words, in which the first ``stops`` tokens end a step: with a random model, lengths are geometric.

    Every token is a word of its own, so that text is encoded into the tokens it came from.
    """
    words = [f"Ġs{i}ĊĊ" for i in range(stops)] + [f"Ġw{i}" for i in range(vocab - stops - len(_SPECIAL))]
    core = Tokenizer(models.WordLevel({text: i for i, text in enumerate([*words, *_SPECIAL])}, unk_token="<unknown>"))
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r" [sw]\d+(\n\n)?"), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(list(_SPECIAL))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<end>", unk_token="<unknown>")
    tokenizer.chat_template = _TEMPLATE
    return tokenizer


def words(number: int, seed: int = 0, stops: int = 80, vocab: int = VOCAB) -> list[int]:
    """Random tokens that are words and do not end a step."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(stops, vocab - len(_SPECIAL), (number,), generator=generator).tolist()


def root(lm: TransformersLM, *prompts: list[int]) -> Context:
    """The context of given prompt tokens: a single sequence, or one per prompt."""
    names = tuple(lm.decode(prompt) for prompt in prompts)
    return Context.root(lm, names, list(prompts), batched=len(prompts) > 1)
