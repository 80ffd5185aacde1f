"""Functions of files that a user names: what they give, and what becomes of those that hang, crash, print, fork or fail."""

from __future__ import annotations

import logging
import math
import os
import time
from pathlib import Path
from typing import Any

import pytest

from ppl_llm import FunctionReward
from ppl_llm.reward.choice import RewardChoice
from ppl_llm.reward.judge_options import JudgeOptions
from ppl_llm.reward.python_file import PythonFunction, or_wrong

MARK = f"marked_by_{os.getpid()}"
SOURCE = f"""
import os, subprocess, sys, time
import beside

def right(problem, text):
    return text.endswith("42")

def told(problem, text):
    return beside.WORD + problem + text

def number(problem, text):
    return 0.25

def nothing(problem, text):
    return None

def nan(problem, text):
    return float("nan")

def hangs(problem, text):
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)", "{MARK}"])
    time.sleep(300)

def crashes(problem, text):
    os.abort()

def leaves(problem, text):
    sys.exit(3)

def fails(problem, text):
    return [][1]

def strange(problem, text):
    return [1]

def loud(problem, text):
    for _ in range(1000):
        print("x" * 1000000)
    return True

def forks(problem, text):
    os.fork()
    return True
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "beside.py").write_text("WORD = 'so '\n")
    path = tmp_path / "mine.py"
    path.write_text(SOURCE)
    return path


def call(file: Path, function: str, seconds: float = 30.0) -> Any:
    return PythonFunction(f"{file}:{function}", "verifier", seconds)("p", "x 42")


def left_behind() -> bool:
    for each in Path("/proc").iterdir():
        try:
            if each.name.isdigit() and MARK in (each / "cmdline").read_bytes().decode(errors="replace"):
                return True
        except OSError:
            continue
    return False


def test_values(file: Path) -> None:
    found = [call(file, name) for name in ("right", "told", "number", "nothing", "loud")]
    assert found == [True, "so px 42", 0.25, None, True] and math.isnan(call(file, "nan"))
    function = PythonFunction(f"{file}:forks", "verifier")
    assert [function("p", str(n)) for n in range(5)] == [True] * 5  # each child comes back from the function, too, and says nothing


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("fails", r"the verifier .*mine\.py:fails fails with IndexError: list index out of range, given 'x 42'"),
        ("strange", r"must give a bool, a number or a text, got \[1\]"),
        ("leaves", r"ends its process \(exit 3\)"),
        ("missing", r"the verifier .*:missing is not there: the file has no function 'missing'"),
    ],
)
def test_failures(file: Path, function: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(file, function)


def test_a_call_that_does_not_end_is_ended_with_what_it_has_started(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    function = PythonFunction(f"{file}:hangs", "verifier", 1.0)
    with pytest.raises(TimeoutError, match=r"mine\.py:hangs said nothing about 'x 42': no reply within 1\.0 seconds"):
        function("p", "x 42")
    for _ in range(100):
        if not left_behind():
            break
        time.sleep(0.05)
    assert not left_behind()
    with pytest.raises(TimeoutError, match="the process ended without a reply"):
        call(file, "crashes")
    judged = or_wrong(PythonFunction(f"{file}:crashes", "verifier"))
    with caplog.at_level(logging.WARNING):
        assert [judged("p", "a"), judged("p", "b"), judged("p", "a")] == [False, False, False]
    assert [r.message.split(" said ")[1][:17] for r in caplog.records] == ["nothing about 'a'", "nothing about 'b'"]  # each once


def test_a_verifier_without_a_number_is_refused_in_a_line(file: Path) -> None:
    reward = RewardChoice.of("lm", None, f"verifier:{file}:nan").load(None, None, None, None, "")  # type: ignore[arg-type]
    assert isinstance(reward, FunctionReward)
    with pytest.raises(
        ValueError, match=r"mine\.py:nan .* must return a bool or a probability in \[0, 1\]; it returned nan for the answer 'x'"
    ):
        reward.answer_log_odds([("p", "x")])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"agree": 0.8}, "agree is for a judge that thinks"),
        ({"thoughts": 2, "k_meta": 3}, "k_meta must be at most thoughts = 2"),
        ({"thoughts": 2, "score": "7"}, "score must be a scale such as 1-10, or FILE.py:function, got '7'"),
        ({"thoughts": 2, "score": "7-1"}, "score must be a scale with its lower end first, such as 1-10, got '7-1'"),
        ({"thought_tokens": 0}, "thought_tokens must be an integer of at least 1"),
    ],
)
def test_options_of_judges(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RewardChoice.of("lm", None, "judge", JudgeOptions(**options)).check()
    with pytest.raises(ValueError, match=rf"{next(iter(options))} is for a judge, and the reward is none"):
        RewardChoice.of("lm", None, "none", JudgeOptions(**options))


def test_a_judge_with_options_says_so(file: Path) -> None:
    options = JudgeOptions(thoughts=8, agree=0.8, score="1-10", each_step=True)
    assert str(RewardChoice.of("lm", None, "judge:DIR", options)) == "judge:DIR (thoughts=8, agree=0.8, score=1-10, each_step)"
    assert repr(options.keywords()["score"]) == "1-10"
    score = JudgeOptions(thoughts=1, score=f"{file}:number").keywords()["score"]
    assert isinstance(score, PythonFunction) and score.what == "score function"
