"""Every folder with more than a handful of files says what lives in it, and source files are short."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = ("inference", "distributions", "ppl_llm", "tests", "docs", "notebooks", "benchmarks")
MOST = 5
NOT_READ = ("__pycache__", "_build", "_static", "assets")
MODELS = "ppl_llm/demo/"
"""Directories of the demo models hold the files of one model, as transformers writes them; the model card describes them."""

SOURCES = ("inference", "distributions", "ppl_llm")
LINES = 300
"""Of a source file at most; a longer one holds more than one idea."""


def folders(root: Path) -> list[Path]:
    found = [root / name for name in FOLDERS]
    return [path for top in found for path in (top, *sorted(top.rglob("*"))) if path.is_dir() and not set(path.parts) & set(NOT_READ)]


def without_readme(root: Path) -> list[str]:
    """Folders with more than five files and no README."""
    found = []
    for path in folders(root):
        files = [each for each in path.iterdir() if each.is_file()]
        if len(files) > MOST and not (path / "README.md").is_file() and not path.relative_to(root).as_posix().startswith(MODELS):
            found.append(path.relative_to(root).as_posix())
    return found


def test_folders_have_a_readme() -> None:
    assert without_readme(ROOT) == []


def test_a_folder_without_one_is_named(tmp_path: Path) -> None:
    for name in FOLDERS:
        (tmp_path / name).mkdir()
    (tmp_path / "inference" / "many").mkdir()
    for number in range(MOST + 1):
        (tmp_path / "inference" / "many" / f"{number}.py").touch()
    assert without_readme(tmp_path) == ["inference/many"]
    (tmp_path / "inference" / "many" / "README.md").touch()
    assert without_readme(tmp_path) == []


def too_long(root: Path) -> list[str]:
    """Source files of more than 300 lines; those behind links of folders under their own names."""
    found = {path.resolve() for name in SOURCES for path in (root / name).rglob("*.py")}
    lengths = {path.relative_to(root.resolve()).as_posix(): len(path.read_text(encoding="utf-8").splitlines()) for path in found}
    return sorted(f"{name} has {length} lines" for name, length in lengths.items() if length > LINES)


def test_source_files_are_short() -> None:
    assert too_long(ROOT) == [], f"split them by idea: {LINES} lines at most"


def test_a_long_source_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "inference" / "mcmc").mkdir(parents=True)
    (tmp_path / "ppl_llm").mkdir()
    (tmp_path / "ppl_llm" / "inference").symlink_to(tmp_path / "inference")
    (tmp_path / "ppl_llm" / "short.py").write_text("x = 1\n" * LINES)
    (tmp_path / "inference" / "mcmc" / "long.py").write_text("x = 1\n" * (LINES + 1))
    assert too_long(tmp_path) == ["inference/mcmc/long.py has 301 lines"]
