"""Mathematical equivalence: what is equal, in bounded time, in threads; and votes over classes."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Hashable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ppl_llm import Importance, majority, weighted_majority
from ppl_llm.inference import DiscreteMarginal, representatives
from ppl_llm.programs.models import ReasoningModel
from ppl_llm.programs.presets import PRESETS

pytest.importorskip("math_verify", reason="math-verify is not installed (extra: math)")

from ppl_llm.answers.equivalence import MathEquivalence, decide
from ppl_llm.answers.normalization import normalized

TABLE = [json.loads(line) for line in Path(__file__).with_name("equivalence.jsonl").read_text(encoding="utf-8").splitlines()]
KINDS = sorted({row["kind"] for row in TABLE})
POWERS = "9^{9^{9^{9}}}"
"""A number that nobody can write down."""


@pytest.fixture(scope="module")
def equivalent() -> MathEquivalence:
    return MathEquivalence(timeout=60)


@pytest.mark.parametrize("kind", KINDS)
def test_table(equivalent: MathEquivalence, kind: str) -> None:
    """Right values by hand, in both orders."""
    rows = [row for row in TABLE if row["kind"] == kind]
    pairs = [(pair, row["same"]) for row in rows for pair in itertools.permutations((row["first"], row["second"]))]
    assert [(pair, same) for pair, same in pairs if equivalent(*pair) != same] == [] and len(rows) >= 4
    assert all(equivalent(text, text) for pair, _ in pairs for text in pair)
    assert equivalent.timeouts == 0


def test_no_answer_is_the_same_as_nothing_else(equivalent: MathEquivalence) -> None:
    assert not equivalent(None, "5") and not equivalent("5", None) and not equivalent(5, "5")
    assert equivalent(None, None) and equivalent(5, 5)


@pytest.mark.parametrize("where", ["main thread", "another thread"])
def test_time_is_bounded_in_every_thread(where: str) -> None:
    bounded = MathEquivalence(timeout=1.0)
    bounded("x", "2x-x")  # the process is there
    found: list[Any] = []

    def compare() -> None:
        began = time.perf_counter()
        found.append([bounded(POWERS, other) for other in ("x+1", "y+2", "1/3", "(1,2)")])
        found.append(time.perf_counter() - began)

    if where == "main thread":
        compare()
    else:
        thread = threading.Thread(target=compare)
        thread.start()
        thread.join()
    assert found[0] == [False] * 4
    assert bounded.timeouts == 1  # not one for each comparison
    assert found[1] < 30
    assert bounded("x^2", "x*x")  # continues with a new process


def test_the_signals_of_math_verify_would_fail_in_a_thread() -> None:
    import math_verify

    errors: list[BaseException] = []

    def verify() -> None:
        try:
            math_verify.verify(math_verify.parse("$1/2$"), math_verify.parse("$0.5$"), raise_on_error=True)
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=verify)
    thread.start()
    thread.join()
    assert errors and "threaded environment" in str(errors[0])


def test_threads_take_turns(equivalent: MathEquivalence) -> None:
    pairs = [(f"x^2+{n}", f"{n}+x*x") for n in range(12)] + [(f"x^2+{n}", f"{n}+x") for n in range(12)]
    results: dict[int, list[bool]] = {}

    def work(number: int) -> None:
        results[number] = [equivalent(*pair) for pair in (pairs if number % 2 else pairs[::-1])]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = [True] * 12 + [False] * 12
    assert [results[number] for number in range(6)] == [expected[::-1], expected] * 3


def test_a_process_that_dies_is_replaced() -> None:
    fragile = MathEquivalence(timeout=60)
    assert fragile("x^2", "x*x")
    process = fragile._process._process
    assert process is not None
    process.kill()
    process.wait()
    assert fragile("x^3", "x*x*x")
    assert fragile._process._process is not process
    alive = fragile._process._process
    assert alive is not None and alive.poll() is None
    del fragile
    assert alive.poll() is not None  # ends with its owner


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_after_a_fork() -> None:
    """In a process of its own: a process with threads, as that of the tests, should not fork."""
    program = """
import os, warnings
warnings.simplefilter("ignore")
from ppl_llm.answers.equivalence import MathEquivalence
same = MathEquivalence(timeout=60)
assert same("x^2", "x*x")
child = os.fork()
if child == 0:
    os._exit(0 if same("x^3", "x*x*x") and not same("x^3", "x") else 1)
assert os.waitpid(child, 0)[1] == 0
assert same("x^4", "x*x*x*x") and same.timeouts == 0
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=300)


WRITTEN = ["1" * 4301, "9" * 300_000, "\ud800", "\x00", "{" * 300_000, "\\frac" * 400, "(" * 1500, "5 " * 150_000, "\\text{" * 300]
"""What models that have lost the thread wrote."""


def test_a_vote_never_raises(equivalent: MathEquivalence) -> None:
    """One degenerate candidate among right ones; longer texts are compared as they are written, in linear time."""
    for text in WRITTEN:
        assert majority(["2", text, "2.0", None], equivalent) == "2"
        assert weighted_majority(["2", text, "4/2"], [0.4, 0.5, 0.2], equivalent) == "2"
        assert majority([text, text + " ", "2"], equivalent) in (text, text + " ")
    assert equivalent.timeouts == 0


MARKS = [
    "1",
    "23",
    "x",
    "pi",
    "e",
    "E",
    "-",
    "+",
    ".",
    ",",
    " ",
    "^",
    "_",
    "{",
    "}",
    "(",
    ")",
    "\\",
    "\\frac",
    "sqrt",
    "$",
    "%",
    "°",
    "½",
    "²",
    "√",
]
MARKS += ["dollars", "km", "/", "*", "=", "A", ":", "\\text{", "−", "٣", "\ud800", "and", "am", "€", "10", "\\circ", "\\times", "\n", "e5"]


@settings(max_examples=500, deadline=None, derandomize=True)
@given(first=st.lists(st.sampled_from(MARKS), max_size=12), second=st.lists(st.sampled_from(MARKS), max_size=12))
def test_no_text_raises(first: list[str], second: list[str]) -> None:
    """What is decided without mathematics is symmetric and reflexive, and reading an answer again changes nothing."""
    left, right = normalized("".join(first)), normalized("".join(second))
    assert decide(left, right) == decide(right, left)
    assert decide(left, left) is True


def test_options() -> None:
    with pytest.raises(ValueError, match=r"timeout must be positive, got 0"):
        MathEquivalence(timeout=0)


def test_without_math_verify(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ppl_llm.answers.equivalence.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r'pip install "ppl-llm\[math\]"'):
        MathEquivalence()
    assert majority(["1/2", "0.5", "0.5"]) == "0.5"  # exact strings need nothing


class Counted:
    """A process whose requests are counted."""

    timeouts = 0

    def __init__(self, process: Any) -> None:
        self.process, self.requests = process, 0

    def ask(self, kind: str, *texts: str) -> Any:
        self.requests += 1
        return self.process.ask(kind, *texts)


@pytest.fixture
def fresh(equivalent: MathEquivalence) -> MathEquivalence:
    """One that remembers nothing, with a process that is there already."""
    fresh = MathEquivalence()
    fresh._process = Counted(equivalent._process)  # type: ignore[assignment]
    return fresh


def test_identical_answers_and_plain_numbers_are_not_compared(fresh: Any) -> None:
    counted = fresh._process
    assert majority([r"\frac{1}{2}"] * 64, fresh) == r"\frac{1}{2}"
    assert majority([str(n) for n in range(63)] + ["62"], fresh) == "62"
    assert counted.requests == 0
    mixed = ["0.5", r"\frac{1}{2}", "1/2", "2", "3"] * 12 + ["x+1", "1+x", r"\sqrt{2}", r"2^{1/2}"]
    assert majority(mixed, fresh) == "0.5"
    first = counted.requests
    assert 0 < first < 64  # of 64 * 63 / 2 pairs
    assert majority(mixed[::-1], fresh) == "0.5"
    assert counted.requests == first  # remembered


def test_numbers_are_told_apart_by_their_values(fresh: Any) -> None:
    counted = fresh._process
    assert not any(fresh(rf"\frac{{{a}}}{{97}}", rf"\frac{{{b}}}{{97}}") for a, b in itertools.combinations(range(1, 33), 2))
    assert counted.requests == 32  # not 496 pairs


# Classes ------------------------------------------------------------------------------------------------------------------------------


def near(first: Hashable, second: Hashable) -> bool:
    """Not transitive."""
    return abs(len(str(first)) - len(str(second))) <= 1


def test_no_chains() -> None:
    chain = ["aaaa", "a", "aaa", "aa"]
    assert representatives(chain, near) == {"a": "a", "aa": "a", "aaa": "aaa", "aaaa": "aaa", None: None}
    # Joining whatever is equivalent to any member would put all four together.
    assert weighted_majority(chain, [4.0, 1.0, 0.0, 0.0], near) == "aaaa"
    assert weighted_majority(chain, [2.0, 3.0, 2.0, 0.0], near) == "aaa"


texts = st.lists(st.one_of(st.none(), st.text(alphabet="ab", max_size=4)), min_size=1, max_size=8)


@given(values=texts, data=st.data())
def test_classes_depend_on_the_set_of_values_only(values: list[str | None], data: st.DataObject) -> None:
    chosen = representatives(values, near)
    assert representatives(data.draw(st.permutations(values)), near) == chosen
    assert set(chosen) == set(values) | {None}
    for value, representative in chosen.items():
        assert chosen[representative] == representative
        assert value == representative or (value is not None and near(value, representative))
    founders = [value for value in set(chosen.values()) if value is not None]
    assert not any(near(a, b) for a, b in itertools.combinations(founders, 2))


@given(values=texts, data=st.data())
def test_pooling_moves_mass_and_loses_none(values: list[str | None], data: st.DataObject) -> None:
    weights = data.draw(st.lists(st.integers(1, 5), min_size=len(values), max_size=len(values)))
    plain = DiscreteMarginal(zip(values, map(float, weights), strict=True))
    pooled = plain.pooled(near)
    chosen = representatives(plain.probs, near)
    assert sum(pooled.probs.values()) == pytest.approx(1.0)
    for value in plain:
        assert pooled[value] == pytest.approx(sum(p for other, p in plain.probs.items() if chosen[other] == chosen[value]))
    exact = plain.pooled(lambda first, second: first == second)
    assert exact.probs == pytest.approx(plain.probs)
    assert weighted_majority(values, weights) == weighted_majority(values, weights, lambda first, second: False)


def test_a_pooled_marginal_knows_the_members_of_its_classes(equivalent: MathEquivalence) -> None:
    marginal = DiscreteMarginal([(r"\frac{1}{2}", 0.2), ("0.5", 0.3), ("2", 0.4), (None, 0.1)]).pooled(equivalent)
    assert marginal.mode == "0.5" and list(marginal) == ["0.5", "2", None]
    assert marginal["0.5"] == marginal[r"\frac{1}{2}"] == marginal["2/4"] == pytest.approx(0.5)
    assert marginal["7"] == 0.0 and marginal[None] == pytest.approx(0.1)


class Written:
    """What a model returns: the answer that a particle wrote."""

    def __init__(self, number: torch.Tensor) -> None:
        self.number = number
        self.batch_shape = number.shape

    def select_plate(self, *index: Any) -> Written:
        return self

    def reorder(self, index: torch.Tensor) -> Written:
        return Written(self.number.gather(0, index.expand_as(self.number)))

    def __getitem__(self, particle: int) -> Written:
        return Written(self.number[particle])

    def __len__(self) -> int:
        return len(self.number)

    def answers(self) -> Any:
        names = [r"\frac{1}{2}", "0.5", "2", None]
        nested = self.number.tolist()
        return names[nested] if isinstance(nested, int) else [names[n] for n in nested]


def writes() -> Written:
    import pyro
    import pyro.distributions as dist

    return Written(pyro.sample("answer", dist.Categorical(torch.tensor([0.25, 0.25, 0.4, 0.1]))))


@pytest.fixture
def posterior() -> Iterator[Any]:
    torch.manual_seed(0)
    yield Importance(writes, 400).run()


def test_posterior_answers(posterior: Any, equivalent: MathEquivalence) -> None:
    exact, pooled = posterior.answers(), posterior.answers(equivalent)
    assert exact.mode == "2" and set(exact) == {r"\frac{1}{2}", "0.5", "2", None}
    assert pooled.mode == "0.5" and pooled["0.5"] == pytest.approx(exact["0.5"] + exact[r"\frac{1}{2}"])


def test_choose(posterior: Any, equivalent: MathEquivalence) -> None:
    model = SimpleNamespace(preset=PRESETS["exact"])
    choose: Any = ReasoningModel.choose
    assert choose(model, posterior) == "2"
    assert choose(model, posterior, equivalent) == choose(model, posterior, equivalent=equivalent) == "0.5"
