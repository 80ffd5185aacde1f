"""README and notebooks say what is true: their code runs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


def test_readme_code_blocks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "README.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert blocks
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    assert names["posterior"].num_particles == 16
    assert "@" not in re.sub(r"pass@\d|best@\d|\S+@\S+\.\S+", "", text.split("## Develop")[0])  # no placeholder left


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebooks_run(path: Path) -> None:
    cells = json.loads(path.read_text())["cells"]
    names: dict[str, Any] = {}
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert code
    assert all(cell["execution_count"] for cell in cells if cell["cell_type"] == "code"), "the notebook is committed without its outputs"
    for number, source in enumerate(code):
        exec(compile(source, f"{path.name}[{number}]", "exec"), names)
