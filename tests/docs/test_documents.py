"""README, docs and notebooks say what is true: their code runs, and their command lines exist."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyro
import pytest
import typer
import typer.main
from typer.testing import CliRunner

from ppl_llm.cli import app
from tests.helpers.documents import NOT_RUN, PAGES, ROOT, Command, blocks, commands, furnish, run


def with_python(path: Path) -> bool:
    return any(block.language in ("python", "pycon") for block in blocks(path))


@pytest.mark.parametrize("path", [p for p in PAGES if with_python(p)], ids=lambda path: path.stem)
def test_code_blocks_run(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    furnish(tmp_path, monkeypatch)
    pyro.set_rng_seed(0)
    capfd.readouterr()
    names = run(path)
    if path.stem in ("README", "index", "getting_started"):
        assert capfd.readouterr().err == "", "a newcomer sees progress bars or warnings"
    if path.name == "README.md":
        assert names["posterior"].num_particles == 16


def test_a_wrong_block_is_noticed(tmp_path: Path) -> None:
    """The runner itself: an exception, a wrong output and a name that no block defines are failures."""
    for broken in (
        "```python\n1 / 0\n```",
        "```pycon\n>>> 1 + 1\n3\n```",
        "```python\nundefined\n```",
        "```python\nprint(1 + 1)\n```\n\n```text\n3\n```",
    ):
        page = tmp_path / "page.md"
        page.write_text(f"Text.\n\n```python\nx = 1\n```\n\n{broken}\n")
        with pytest.raises(Exception):  # noqa: B017 - each raises its own
            run(page)


def test_blocks_are_run_or_say_why_not() -> None:
    """Python in a block of another kind would never run; a block that is left out gives its reason."""
    for path in PAGES:
        for block in blocks(path):
            place = f"{path.relative_to(ROOT)}:{block.line}"
            if block.text.startswith(NOT_RUN.strip()):
                assert len(block.text.splitlines()[0]) > len(NOT_RUN) + 10, f"{place} gives no reason"
                compile(block.text, place, "exec")
            if block.language == "":
                assert not re.search(r"^(import|from) \w+", block.text, flags=re.MULTILINE), f"{place} holds Python without saying so"
            assert block.language in ("", "python", "pycon", "sh", "text", "json", "{eval-rst}", "{toctree}", "{math}"), place


def test_no_placeholder_is_left_in_the_readme() -> None:
    text = (ROOT / "README.md").read_text()
    assert "@" not in re.sub(r"pass@\d|best@\d|\S+@\S+\.\S+", "", text)


def test_the_readme_is_one_screen_long() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 110


def test_prose_is_wrapped() -> None:
    """At 100 columns. Tables, headings, code and formulas are as long as they must be, and so is the text of the study with its markers."""
    for path in [*(page for page in PAGES if page.name != "study.md"), ROOT / "CHANGELOG.md"]:
        code = {number for block in blocks(path) for number in range(block.line, block.line + block.text.count("\n"))}
        lines = enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        prose = ((number, line) for number, line in lines if number not in code and not line.lstrip().startswith(("|", "#", "$$")))
        long = [number for number, line in prose if len(line) > 100]
        assert not long, f"{path.relative_to(ROOT)} is not wrapped at 100 columns: lines {long}"


def python_sources() -> Iterator[tuple[str, str]]:
    """Place and text of the Python of all pages and notebooks."""
    for path in PAGES:
        for block in blocks(path):
            if block.language == "python":
                yield f"{path.relative_to(ROOT)}:{block.line}", block.text
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        for cell in json.loads(path.read_text())["cells"]:
            if cell["cell_type"] == "code":
                yield path.name, "".join(cell["source"])


def imported(source: str) -> set[str]:
    """Modules that a text imports, or imports names from."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def is_package(name: str) -> bool:
    spec = importlib.util.find_spec(name)
    return spec is not None and spec.submodule_search_locations is not None


def test_pages_import_from_packages() -> None:
    """Readers learn names of packages; the files inside them may move."""
    found = [(place, name) for place, text in python_sources() for name in imported(text) if name.split(".")[0] == "ppl_llm"]
    assert len(found) > 20
    assert [(place, name) for place, name in found if not is_package(name)] == []
    assert imported("from ppl_llm.reward.calibration import Calibration") == {"ppl_llm.reward.calibration"}
    assert is_package("ppl_llm.reward") and not is_package("ppl_llm.reward.calibration")


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_links_to_files_hold(name: str) -> None:
    """Links of the pages outside of the site, which the builder of the site does not see."""
    targets = [t for t in re.findall(r"\]\(([^)\s]+)\)", (ROOT / name).read_text()) if "://" not in t]
    assert targets
    assert [target for target in targets if not (ROOT / target.split("#")[0]).exists()] == []


def measured(values: Any) -> Iterator[str]:
    """Every interval of a file of results, as tables show it."""
    if isinstance(values, dict):
        if {"mean", "low", "high"} <= values.keys():
            yield "{mean:.3f} [{low:.3f}, {high:.3f}]".format(**values)
        else:
            for value in values.values():
                yield from measured(value)


def test_figures_are_those_of_the_results() -> None:
    """The table of accuracy is that of the committed run, so that a new run changes all of it or nothing."""
    known = set(measured(json.loads((ROOT / "benchmarks" / "results" / "accuracy.json").read_text())))
    shown = re.findall(r"(?<![+-])\b0\.\d{3} \[0\.\d{3}, 0\.\d{3}\]", (ROOT / "docs" / "targets.md").read_text())
    assert len(shown) >= 16
    assert not set(shown) - known, "targets.md has figures that no run gave"


def ratios(values: Any) -> Iterator[str]:
    """Every spread of a file of benchmark results, as tables show it."""
    if isinstance(values, dict):
        if {"median", "least", "most"} <= values.keys():
            for digits in (1, 2):
                yield "{median:.{d}f} [{least:.{d}f}, {most:.{d}f}]".format(d=digits, **values)
        else:
            for value in values.values():
                yield from ratios(value)


def test_ratios_are_those_of_the_results() -> None:
    results = (ROOT / "benchmarks" / "results").glob("*.jsonl")
    known = {text for path in results for line in path.read_text().splitlines() for text in ratios(json.loads(line))}
    for path, least in ((ROOT / "docs" / "comparison.md", 10), (ROOT / "docs" / "servers.md", 1), (ROOT / "docs" / "speed.md", 1)):
        shown = re.findall(r"\b\d+\.\d+ \[\d+\.\d+, \d+\.\d+\]", path.read_text())
        assert len(shown) >= least
        assert not set(shown) - known, f"{path.name} has ratios that no run gave"


def test_figures_of_twists_are_those_of_the_results() -> None:
    rows = [json.loads(line) for line in (ROOT / "benchmarks/results/hidden_reward.jsonl").read_text().splitlines()]
    known = {str(value) for row in rows for value in row.values()}
    shown = re.findall(r"\d\.\d{3} \[\d\.\d{3}, \d\.\d{3}\]", (ROOT / "docs/twists.md").read_text())
    assert len(shown) == 6 * 5 + 9 and not set(shown) - known


# Command lines ------------------------------------------------------------------------------------------------------------------------


def complaint(words: list[str]) -> str | None:
    """What is wrong with a command of this project; ``None`` for a right one and for those of others."""
    program, *arguments = words
    if program == "ppl-llm":
        return _refused(arguments)
    if program in ("torchrun", "accelerate") and "ppl_llm.cli" in arguments:
        return _refused(arguments[arguments.index("ppl_llm.cli") + 1 :])
    if program == "make":
        makefile = (ROOT / "Makefile").read_text()
        targets = set(re.findall(r"^([\w-]+):", makefile, flags=re.MULTILINE))
        variables = set(re.findall(r"^(?:export )?(\w+) \?=", makefile, flags=re.MULTILINE))
        known = {word: (word.partition("=")[0] in variables) if "=" in word else (word in targets) for word in arguments}
        return next((f"no target or variable {word!r}" for word, found in known.items() if not found), None)
    if program == "pip" and arguments[0] == "install":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        wanted = [extra for word in arguments for extra in re.findall(r"ppl-llm\[([\w,-]+)\]", word)]
        return next((f"no extra {extra!r}" for each in wanted for extra in each.split(",") if extra not in extras), None)
    if program == "python" and arguments[0] == "-m" and arguments[1].startswith("benchmarks."):
        arguments = [f"{arguments[1].replace('.', '/')}/__main__.py", *arguments[2:]]
    if program == "python" and arguments[0].endswith(".py"):
        script = ROOT / arguments[0]
        source = script.read_text() if script.is_file() else ""
        unknown = [word for word in arguments[1:] if word.startswith("--") and f'"{word.split("=")[0]}"' not in source]
        return f"no file {arguments[0]!r}" if not source else (f"no option {unknown[0]!r}" if unknown else None)
    return None


def _refused(arguments: list[str]) -> str | None:
    """What the parser says to the arguments of ``ppl-llm``; no command is run."""
    commands: Any = typer.main.get_command(app)
    with commands.make_context("ppl-llm", [], resilient_parsing=True) as context:
        if not arguments or arguments[0].startswith("-"):
            known = {name for option in commands.get_params(context) for name in option.opts}
            return next((f"no option {word!r}" for word in arguments if word not in known), None)
        command = commands.get_command(context, arguments[0])
        if command is None:
            return f"no command {arguments[0]!r}"
        try:
            command.make_context(arguments[0], arguments[1:], parent=context)
        except typer.Exit:
            return None  # --help and the like
        except Exception as error:
            if not hasattr(error, "format_message"):  # what typer's parser raises has one
                raise
            return str(error.format_message())
    return None


def command_lines(path: Path) -> list[Command]:
    return [command for block in blocks(path) if block.language in ("", "sh") for command in commands(block)]


def test_command_lines_parse() -> None:
    found = 0
    for path in PAGES:
        for command in command_lines(path):
            found += command.words[0] == "ppl-llm"
            wrong = complaint(command.words)
            assert wrong is None, f"{path.relative_to(ROOT)}: {shlex.join(command.words)}: {wrong}"
    assert found > 10


@pytest.mark.parametrize(
    "line",
    [
        "ppl-llm slove x",
        "ppl-llm solve x --partciles 3",
        "ppl-llm solve x --particles many",
        "ppl-llm evaluate demo",
        "make everything",
        "pip install 'ppl-llm[gpu]'",
        "python benchmarks/nothing.py",
        "python -m benchmarks.study --nonsense 3",
    ],
)
def test_wrong_command_lines_are_noticed(line: str) -> None:
    assert complaint(shlex.split(line)) is not None


def missing(words: list[str]) -> str | None:
    """What a command of ``ppl-llm`` needs that is not at hand here; ``None`` if it can be run."""
    absent = [word for word in words if word.endswith(".jsonl") and not Path(word).exists()]
    if absent:
        return f"the file {absent[0]}"
    if words[:1] == ["serve"]:
        return "somebody to end it; tests/ppl_llm/gateway/ starts servers"
    if {"--ray", "cuda"} & set(words):
        return "a cluster or a GPU"
    if any(word.startswith("reasoning-gym:") for word in words) and importlib.util.find_spec("reasoning_gym") is None:
        return "the extra reasoning-gym"
    return None


@pytest.mark.docs
@pytest.mark.parametrize("path", [p for p in PAGES if any(c.words[0] == "ppl-llm" for c in command_lines(p))], ids=lambda path: path.stem)
def test_command_lines_run(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the order of the page and in one folder, so that a report finds the run that the line before it made."""
    furnish(tmp_path, monkeypatch)
    left_out, outputs = [], []
    for command in command_lines(path):
        program, *arguments = command.words
        if program != "ppl-llm":
            continue
        if missing(arguments):
            left_out.append(shlex.join(arguments))
            continue
        done = CliRunner().invoke(app, arguments, input=command.stdin)
        assert done.exit_code == 0, f"{shlex.join(command.words)}\n{done.output}"
        assert done.stdout.strip() or done.stderr.strip()
        outputs.append(done.stdout)
    if path.stem in ("README", "getting_started"):
        assert not left_out, "a newcomer's first commands need nothing"
        assert any(re.search(r"resampled [1-9]\d* of", output) for output in outputs), "the first example shows resampling at work"


def test_the_runner_of_command_lines_notices_a_refusal() -> None:
    done = CliRunner().invoke(app, ["solve", "How many primes are below 60?"])
    assert done.exit_code != 0
    assert missing(["evaluate", "nowhere.jsonl"]) == "the file nowhere.jsonl"
    assert missing(["evaluate", "demo"]) is None


# Docstrings ---------------------------------------------------------------------------------------------------------------------------


def docstring_examples() -> list[tuple[str, str]]:
    """The code behind ``Example::`` in the docstrings of the package."""
    found = []
    for path in sorted(file for folder in ("ppl_llm", "inference", "distributions") for file in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.Module)):
                for part in re.findall(r"Example[^\n]*::\n\n((?:    [^\n]*\n|\n)+)", (ast.get_docstring(node) or "") + "\n"):
                    found.append((f"{path.relative_to(ROOT)}:{getattr(node, 'name', 'module')}", part))
    return found


def test_examples_in_docstrings_are_python() -> None:
    examples = docstring_examples()
    assert len(examples) > 10
    for place, code in examples:
        compile("if True:\n" + code, place, "exec")


# Notebooks ----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.docs
@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebooks_run(path: Path) -> None:
    cells = json.loads(path.read_text())["cells"]
    names: dict[str, Any] = {}
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert code
    assert all(cell["execution_count"] for cell in cells if cell["cell_type"] == "code"), "the notebook is committed without its outputs"
    for number, source in enumerate(code):
        exec(compile(source, f"{path.name}[{number}]", "exec"), names)
