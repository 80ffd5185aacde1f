"""What a child of the process in ``code_runner`` does: it runs a program and a test of it. Imports nothing of this package."""

from __future__ import annotations

import ast
import json
import os
import sys
from typing import Any

_SHOWN = 300
"""Characters of a value or an error that a message quotes."""


def quoted(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


def failure(error: BaseException, program: str) -> str:
    """An error in words, with the line of the program that it came from."""
    lines = program.splitlines()
    where, trace = "", error.__traceback__
    number = error.lineno if isinstance(error, SyntaxError) and error.filename == "program" else None
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "program":
            number = trace.tb_lineno
        trace = trace.tb_next
    if number is not None and 0 < number <= len(lines):
        where = f" in line {number} of the program, {quoted(lines[number - 1].strip())}"
    said = error.msg if isinstance(error, SyntaxError) else str(error)
    return quoted(f"{type(error).__name__}{': ' if said else ''}{said}") + where


def compared(test: str, names: dict[str, Any]) -> str:
    """What the left side of a failed ``assert left == right`` is."""
    try:
        (statement,) = ast.parse(test).body
        condition = statement.test if isinstance(statement, ast.Assert) else None
        if isinstance(condition, ast.Compare) and len(condition.ops) == 1 and isinstance(condition.ops[0], ast.Eq):
            return (
                f"{quoted(ast.unparse(condition.left))} is {quoted(eval(compile(ast.Expression(condition.left), 'test', 'eval'), names))}"
            )
    except Exception:  # the sides of a test are the program's
        return ""
    return ""


def tested(program: str, test: str, names: dict[str, Any]) -> dict[str, str]:
    try:
        exec(compile(test, "test", "exec"), names)
    except AssertionError as error:
        text = str(error) or compared(test, names)
        return {"error": "the assertion fails" + (f": {quoted(text)}" if text else "")}
    except BaseException as error:
        return {"error": failure(error, program)}
    return {}


def child(program: str, test: Any, result: int) -> None:
    """Run the program and the test, and say how it went."""
    names: dict[str, Any] = {"__name__": "__main__" if isinstance(test, dict) else "program"}
    try:
        said: dict[str, Any] = {}
        try:
            exec(compile(program, "program", "exec"), names)
        except SystemExit as error:
            if not isinstance(test, dict):
                said = {"error": f"the program ends itself (exit {error.code}) before the test"}
            elif error.code not in (None, 0):
                said = {"error": f"the program ends with exit {quoted(error.code)}"}
        except BaseException as error:
            said = {"error": failure(error, program)}
        if not said and not isinstance(test, dict):
            said = tested(program, test, names)
        sys.stdout.flush()
        os.write(result, json.dumps(said).encode())
    finally:
        os._exit(0)
