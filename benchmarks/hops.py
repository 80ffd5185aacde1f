"""How many functions of the package one token and one weight pass through.

(a) From ``LLMStep`` drawing a step to the first forward pass of the model: the functions on the stack.
(b) From ``StepReward.log_prob`` to the number ``log_evidence``, where nothing is resampled: every function that computes a tensor on
    the way of that number, or returns one, alone or inside of an object. A tensor is on the way if it was computed from the
    log-probability, and the number from it.

A hop leads from one function to the next one that is not the same. Run it with ``PYTHONPATH`` set to the tree to be measured::

    PYTHONPATH=. python benchmarks/hops.py [--quiet]
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pyro
import torch
from torch import Tensor

import ppl_llm
from ppl_llm import SMC, LLMStep, StepReward, TransformersLM, TransformersPRM, barrier

ROOT = Path(ppl_llm.__file__).resolve().parents[1]
DEPTH = 5
"""Objects inside of objects that are looked into for a tensor."""


class Traced(Tensor):
    """A tensor that knows which traced ones it was computed from."""

    sources: tuple[Tensor, ...] = ()

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = super().__torch_function__(func, types, args, kwargs or {})
        inputs = tuple(traced([*args, *(kwargs or {}).values()], 3))
        for each in traced(output, 2):
            if not any(each is source for source in inputs):
                each.sources = (*each.sources, *inputs)
                TOUCHED.append((computed_in(), [each]))
        return output


TOUCHED: list[tuple[str, list[Traced]]] = []
"""Functions of the package that computed or returned a tensor, with it."""


def computed_in() -> str:
    """The innermost function of the package on the stack."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and not own(frame.f_code):
        frame = frame.f_back
    return "" if frame is None else name(frame.f_code)


def traced(value: Any, depth: int = DEPTH) -> Iterator[Traced]:
    """Traced tensors in a value: in containers and in objects of the package."""
    if isinstance(value, Traced):
        yield value
    elif depth > 0 and not isinstance(value, Tensor):
        if isinstance(value, (list, tuple)):
            parts: list[Any] = list(value)
        elif isinstance(value, dict):
            parts = list(value.values())
        elif type(value).__module__.startswith("ppl_llm"):
            slots = [name for base in type(value).__mro__ for name in getattr(base, "__slots__", ())]
            parts = [*getattr(value, "__dict__", {}).values(), *(getattr(value, name, None) for name in slots if name != "__dict__")]
        else:
            return
        for part in parts:
            yield from traced(part, depth - 1)


def own(code: CodeType) -> bool:
    path = Path(code.co_filename).resolve()
    outside = {"benchmarks", "site-packages"}  # an environment may lie inside the tree
    return path.is_relative_to(ROOT) and not outside & set(path.parts) and code.co_name[0] != "<"


def name(code: CodeType) -> str:
    return f"{Path(code.co_filename).resolve().relative_to(ROOT)}: {getattr(code, 'co_qualname', code.co_name)}"


def problem_context(lm: Any) -> Any:
    return lm.start("Begin with 26. First: take away 5. Second: increase it by 3. What number do you get?")


def token_path(lm: Any) -> list[str]:
    """The package's functions on the stack when a model of transformers is called for the first time, the outermost first."""
    found: list[str] = []

    def profile(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call" and not found and frame.f_code.co_name == "forward" and "transformers/models" in frame.f_code.co_filename:
            at: FrameType | None = frame
            while at is not None:
                if own(at.f_code):
                    found.append(name(at.f_code))
                at = at.f_back

    step = LLMStep(problem_context(lm), max_tokens=8)
    run_profiled(step.sample, profile)
    return found[::-1]


def weight_path(lm: Any, prm: Any) -> list[str]:
    """The functions that the way from a step's log-probability to the log evidence passes through, in the order of first contact."""
    log_prob = StepReward.log_prob

    def traced_log_prob(self: Any, value: Tensor) -> Tensor:
        found = log_prob(self, value).as_subclass(Traced)
        TOUCHED.append((name(log_prob.__code__), [found]))
        return found

    def model() -> Any:
        context = problem_context(lm)
        context = context.extend(pyro.sample("step_0", LLMStep(context, max_tokens=8)))
        pyro.sample("accept_0", StepReward(prm, context), obs=torch.tensor(1.0))
        return barrier(context)

    def profile(frame: FrameType, event: str, argument: Any) -> None:
        if event != "return" or not own(frame.f_code):
            return
        sys.setprofile(None)
        tensors = list(traced(argument))
        sys.setprofile(profile)
        if tensors:
            TOUCHED.append((name(frame.f_code), tensors))

    StepReward.log_prob = traced_log_prob
    try:
        pyro.set_rng_seed(0)
        evidence = run_profiled(lambda: SMC(model, 8, ess_threshold=0.0).run().log_evidence, profile)
    finally:
        StepReward.log_prob = log_prob
    on_the_way, pending = set(), list(traced(evidence))
    while pending:
        tensor = pending.pop()
        if id(tensor) not in on_the_way:
            on_the_way.add(id(tensor))
            pending.extend(tensor.sources)
    return list(dict.fromkeys(each for each, tensors in TOUCHED if each and any(id(tensor) in on_the_way for tensor in tensors)))


def run_profiled(call: Callable[[], Any], profile: Any) -> Any:
    sys.setprofile(profile)
    try:
        return call()
    finally:
        sys.setprofile(None)


def show(title: str, path: list[str], quiet: bool) -> None:
    hops = sum(a != b for a, b in itertools.pairwise(path))
    files = {each.split(":")[0] for each in path}
    print(f"{title}: {hops} hops, {len(files)} files")
    if not quiet:
        print("\n".join(f"    {each}" for each in path))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quiet", action="store_true", help="the numbers only")
    quiet = parser.parse_args().quiet
    lm, prm = TransformersLM.from_pretrained("demo"), TransformersPRM.from_pretrained("demo")
    show("(a) one token, LLMStep to the first forward pass", token_path(lm), quiet)
    show("(b) one weight, StepReward.log_prob to log_evidence", weight_path(lm, prm), quiet)


if __name__ == "__main__":
    main()
