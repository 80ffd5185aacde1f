"""Every folder with more than a handful of files says what lives in it."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = ("inference", "distributions", "ppl_llm", "tests", "docs", "notebooks", "benchmarks")
MOST = 5
NOT_READ = ("__pycache__", "_build", "_static", "assets")
MODELS = "ppl_llm/demo/"
"""Directories of the demo models hold the files of one model, as transformers writes them; the model card describes them."""


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
