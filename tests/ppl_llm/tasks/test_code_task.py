"""Programs and their tests: verdicts with messages, and programs that hang, crash, print without end, fork, or reach for the network."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from ppl_llm.tasks import CodeTask, CodeVerifier, Critic, Limits, Problem, Task, Verdict, Verifier, isolation
from ppl_llm.tasks.load import load_problems, open_task

ADD = ["assert add(1, 2) == 3", "assert add(2, 2) == 5"]
QUICK: dict[str, Any] = {"seconds": 20.0, "memory": 512, "output": 64, "processes": 6}
RIGHT = "def add(a, b):\n    return a + b\n"
SUM = "print(sum(map(int, input().split())))"
SUMS = [{"input": "1 2", "output": "3\n"}, {"input": "2 2", "output": "5"}]
FORKS = "import os, time\nfor _ in range(40):\n    if os.fork() == 0:\n        time.sleep(300)"
NOTHING = [{"input": "", "output": ""}]
MARK = f"marked_{os.getpid()}"
"""Stands in the programs of this run, so that what they leave behind would be found."""


def closed_off() -> bool:
    try:
        Limits().check()
    except ValueError:
        return False
    return True


KINDS = [pytest.param("namespaces", marks=pytest.mark.skipif(not closed_off(), reason="no user namespaces here")), "limits"]


def verdict(program: str, tests: list[Any], isolation: str = "limits", **options: Any) -> Verdict:
    limits = Limits(**{**QUICK, "isolation": isolation, **options})
    return CodeVerifier(tuple(json.dumps(test) for test in tests), limits).verdict(program)


def left_behind() -> list[str]:
    """Command lines of processes that carry the mark."""
    found = []
    for each in Path("/proc").iterdir():
        if each.name.isdigit():
            try:
                line = (each / "cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue
            found += [line] if MARK in line else []
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("program", "tests", "score", "message"),
    [
        (RIGHT, ADD, 0.5, "1 of 2 tests pass.\nTest 2, assert add(2, 2) == 5: the assertion fails: add(2, 2) is 4."),
        (RIGHT, ADD[:1], 1.0, "The test passes."),
        ("def add(a, b)\n    return 1", ADD[:1], 0.0, "SyntaxError: expected ':' in line 1 of the program, def add(a, b)."),
        ("def add(a, b):\n    return a[b]", ADD[:1], 0.0, "TypeError: 'int' object is not subscriptable in line 2 of the program"),
        ("", ADD[:1], 0.0, "NameError: name 'add' is not defined"),
        (SUM, SUMS, 0.5, "Test 2, given '2 2': it prints '4', not '5'."),
        ("print(int(input()))", [{"input": "x", "output": "1"}], 0.0, "ValueError: invalid literal"),
        ("import sys\nprint(1)\nsys.exit()", [{"input": "", "output": "1"}], 1.0, "The test passes."),
        ("import sys\nsys.exit()", ADD[:1], 0.0, "the program ends itself (exit None) before the test"),
        ("import os\nos._exit(0)", ADD[:1], 0.0, "the process ends by itself (exit 0) before the test does"),
        ("import os\nos.abort()", ADD[:1], 0.0, "the process ends by itself (SIGABRT) before the test does"),
        ("while True:\n    pass", ADD, 0.0, "it does not end within 1 second.\nThe program was ended; 1 further test was not run."),
        ("import time\ntime.sleep(1000)", ADD[:1], 0.0, "it does not end within 1 second"),
        ("while True:\n    print('x' * 100000)", ADD[:1], 0.0, "it writes more than 64 KiB"),
        ("import sys\nwhile True:\n    sys.stdout.write('x' * (1 << 20))", NOTHING, 0.0, "it writes more than 64 KiB"),
        ("x = 'x' * (1 << 34)", ADD[:1], 0.0, "MemoryError in line 1 of the program"),
        ("def f():\n    f()\nf()", ADD[:1], 0.0, "RecursionError"),
        (FORKS, ADD[:1], 0.0, "it starts more than 6 processes"),
    ],
)  # fmt: skip
def test_verdicts(kind: str, program: str, tests: list[Any], score: float, message: str) -> None:
    found = verdict(program, tests, kind, seconds=1.0 if "it does not end" in message else 20.0)
    assert found.score == score and message in found.message, found


@pytest.mark.parametrize("kind", KINDS)
def test_processes_that_start_processes(kind: str) -> None:
    """Twice as many in each turn; the watcher comes before them, and ends all of them at once."""
    found = verdict("import os, time\nfor _ in range(9):\n    os.fork()\ntime.sleep(300)", ADD[:1], kind)
    assert found.score == 0.0 and ("more than 6 processes" in found.message or "BlockingIOError" in found.message)
    assert left_behind() == []


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_left_running(kind: str) -> None:
    """A process that has left its group and its session, one that ignores signals, and a child of a program that passes."""
    sleeper = f"[sys.executable, '-c', 'import time, signal; signal.signal(15, 1); time.sleep(300)', '{MARK}']"
    program = f"import subprocess, sys\nsubprocess.Popen({sleeper}, start_new_session=True)\ndef add(a, b):\n    return a + b\n"
    assert verdict(program, ADD[:1], kind).score == 1.0
    assert verdict(program + "while True:\n    pass\n", ADD[:1], kind, seconds=1.0).score == 0.0
    assert left_behind() == []


@pytest.mark.parametrize("kind", KINDS)
def test_an_interrupted_run_leaves_nothing(kind: str) -> None:
    """Ctrl-C while a program runs."""
    script = (
        "import signal, sys\nfrom ppl_llm.tasks import CodeVerifier, Limits\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "Limits(isolation=sys.argv[1]).check()\nprint('ready', flush=True)\n"
        f"program = \"import subprocess, sys\\nsubprocess.run([sys.executable, '-c', 'import time; time.sleep(300)', '{MARK}'])\"\n"
        "CodeVerifier(('\"pass\"',), Limits(isolation=sys.argv[1], seconds=60.0)).verdict(program)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    with subprocess.Popen(
        [sys.executable, "-c", script, kind], env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == b"ready\n"
            for _ in range(200):
                if any("time.sleep(300)" in line and "subprocess" not in line for line in left_behind()):
                    break
                time.sleep(0.05)
            assert left_behind()
            process.send_signal(2)
            process.wait(30)
        finally:
            process.kill()  # a test that fails leaves no process for the warnings of others
    for _ in range(100):
        if not left_behind():
            break
        time.sleep(0.05)
    assert left_behind() == []


@pytest.mark.skipif(not closed_off(), reason="no user namespaces here")
@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("import socket\nsocket.create_connection(('127.0.0.1', 9), 1)", "in line 2 of the program"),
        ("import socket\nsocket.create_connection(('192.0.2.1', 9), 1)", "Network is unreachable"),
        ("open({path!r}, 'w')", "Read-only file system"),
        ("import os\nos.remove({path!r})", "Read-only file system"),
        ("open('/tmp/x', 'wb').write(b'x' * (70 << 20))", "OSError: [Errno 27] File too large"),
        ("import os\nassert len([n for n in os.listdir('/proc') if n.isdigit()]) > 2", "AssertionError"),  # itself, and the first process
        ("import os\nassert 'MARKED' in os.environ", "AssertionError"),
        ("import ctypes\nassert ctypes.CDLL(None).mount(b'', b'/', b'', 32 | 4096, None) == 0", "AssertionError"),
        ("import os\nos.kill(1, 9)\nassert False", "AssertionError"),
    ],
)
def test_what_a_program_cannot_do(program: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MARKED", "secret")
    file = tmp_path / "kept"
    file.write_text("kept")
    found = verdict(program.replace("{path!r}", repr(str(file))), ["pass"], "namespaces", disk=32, memory=2048)
    assert found.score == 0.0 and (message in found.message or "No such file" in found.message), found
    assert file.read_text() == "kept"


@pytest.mark.skipif(not closed_off(), reason="no user namespaces here")
def test_an_environment_in_a_folder_that_is_empty_inside_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """That of a checkout below /tmp: its Python starts and imports its packages, and cannot be changed; what lies beside it is not seen."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        outside = Path(folder)
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(outside / "env")], check=True)
        packages = next((outside / "env").glob("lib/python*/site-packages"))
        (packages / "beside.py").write_text("WORD = 'so'\n")
        (outside / "kept").write_text("kept")
        monkeypatch.setattr(sys, "executable", str(outside / "env" / "bin" / "python"))
        program = f"import os, subprocess, sys\nimport beside\nkept = {str(outside / 'kept')!r}\n"
        tests = [
            "assert beside.WORD == 'so'",
            "subprocess.run([sys.executable, '-c', 'import beside'], check=True)",
            "assert not os.path.exists(kept)",
            "open(os.path.join(os.getcwd(), 'mine'), 'w').write('x')",
            "try:\n    open(beside.__file__, 'a')\nexcept OSError as error:\n    assert 'Read-only' in str(error)\nelse:\n    assert False",
        ]
        assert Limits(**QUICK).run(program, tests) == [None] * 5
        assert (packages / "beside.py").read_text() == "WORD = 'so'\n"


def test_a_machine_without_namespaces_refuses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It says why, and what else there is; ``limits`` must be asked for by name."""
    monkeypatch.setenv("PATH", str(tmp_path))
    isolation._missing.cache_clear()
    try:
        with pytest.raises(ValueError, match=r"programs cannot be run without network .*there is no command unshare.*isolation=limits"):
            Limits().check()
        command = tmp_path / "unshare"
        command.write_text("#!/bin/sh\necho 'unshare: unshare failed: Operation not permitted' >&2\nexit 1\n")
        command.chmod(0o755)
        isolation._missing.cache_clear()
        with pytest.raises(ValueError, match=r"unshare failed: Operation not permitted"):
            next(open_task("code:x.jsonl").problems())
        Limits(isolation="limits").check()
    finally:
        isolation._missing.cache_clear()


def rows(path: Path, *each: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in each))
    return f"code:{path}"


def test_problems(tmp_path: Path) -> None:
    name = rows(
        tmp_path / "a.jsonl",
        {"id": "add", "problem": "Add.", "tests": ADD[:1], "public_tests": "assert add(0, 0) == 0", "level": 2},
        {"problem": "Echo.", "tests": {"input": "1", "output": "1"}},
    )
    task = open_task(name, {"isolation": "limits", "seconds": 2, "instruction": ""})
    assert isinstance(task, Task) and isinstance(task, CodeTask)
    first, second = task.problems()
    assert (first.id, first.text, first.answer, first.metadata) == ("add", "Add.", None, {"level": 2})
    assert isinstance(first.verifier, Verifier) and isinstance(first.critic, Critic)
    right, partly = "def add(a, b):\n    return a + b\n", "def add(a, b):\n    return 0\n"
    assert first.is_right(right) and not first.is_right(partly) and not first.is_right(None)
    assert first.verdicts([right, partly, None]) == {right: 1.0, partly: 0.0}
    assert first.critic.verdict(partly).score == 1.0  # the public test alone
    assert second.is_right("print(input())") and second.critic == second.verifier
    assert first.verifier.description == {
        **{"task": "code", "python": sys.version.split()[0], "isolation": "limits", "seconds": 2, "memory": 1024},
        **{"output": 64, "processes": 8, "disk": 64},
    }
    assert isinstance(first.verifier, CodeVerifier) and isinstance(second.verifier, CodeVerifier)
    assert first.verifier.digest != second.verifier.digest
    assert [p.id for p in load_problems(rows(tmp_path / "b.jsonl", {"problem": "p", "tests": "pass"}), limit=1)] == ["1"]
    humaneval = CodeTask.of(
        [{"prompt": "p", "check": "c"}], {"problem": "prompt", "tests": lambda row: row["check"], "isolation": "limits"}
    )
    assert [p.verifier.tests for p in humaneval.problems() if isinstance(p.verifier, CodeVerifier)] == [('"c"',)]


@pytest.mark.parametrize(
    ("row", "options", "message"),
    [
        ({"problem": "p"}, {}, "problem '1': no tests; the task code needs a field 'tests'"),
        ({"problem": "p", "tests": []}, {}, r"tests must be a text, or a list that is not empty, got \[\]"),
        ({"problem": "p", "tests": [3]}, {}, "a test must be Python, or .*, got 3"),
        ({"problem": "p", "tests": [{"input": "1"}]}, {}, "a test must be Python, or"),
        ({"problem": "p", "tests": " "}, {}, "a test must be Python, or"),
        ({"problem": "p", "tests": "pass"}, {"seconds": 0}, "seconds of a program must be a number above 0, got 0"),
        ({"problem": "p", "tests": "pass"}, {"memory": 1.5}, "memory of a program must be a number above 0, got 1.5"),
        ({"problem": "p", "tests": "pass"}, {"isolation": "docker"}, "unknown isolation 'docker'"),
        ({"problem": "p", "tests": "pass"}, {"second": 1}, "did you mean 'seconds'"),
    ],
)
def test_mistakes(row: dict[str, Any], options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        list(open_task(rows(tmp_path / "a.jsonl", row), {"isolation": "limits", **options}).problems())


class Nan:
    """A verifier that has no number."""

    description: dict[str, Any] = {}  # noqa: RUF012

    def score(self, answer: str) -> float:
        return float("nan")


def test_a_score_that_is_none_is_refused() -> None:
    problem = Problem("p", "text", verifier=Nan())
    for judged in (lambda: problem.is_right("x"), lambda: problem.verdicts(["x"])):
        with pytest.raises(ValueError, match=r"the verifier of problem 'p' must give a score in \[0, 1\], got nan for the answer 'x'"):
            judged()
