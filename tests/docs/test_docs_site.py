"""The documentation site builds without a warning, its links hold without a network, and it knows every public name."""

from __future__ import annotations

import importlib
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

from tests.helpers.documents import ROOT

for module in ("sphinx", "myst_parser", "furo"):
    pytest.importorskip(module, reason="the site needs the extra docs")

pytestmark = pytest.mark.docs

PUBLIC = ("ppl_llm", "ppl_llm.inference", "ppl_llm.distributions", "ppl_llm.evaluation", "ppl_llm.tasks")


def sphinx(source: Path, out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """What ``make docs`` runs."""
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-n", "-q", "-b", "html", *options, str(source), str(out)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def check_links(site: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(ROOT / "docs" / "check_links.py"), str(site)], capture_output=True, text=True)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    built = sphinx(ROOT / "docs", folder / "html", "-d", str(folder / "doctrees"))
    assert built.returncode == 0, built.stderr
    return folder / "html"


def test_links_hold(site: Path) -> None:
    checked = check_links(site)
    assert checked.returncode == 0, checked.stderr


def test_every_public_name_is_documented(site: Path) -> None:
    """Under one of the packages that export it; the inventory is what other projects would link to."""
    raw = (site / "objects.inv").read_bytes()
    lines = zlib.decompress(raw.split(b"zlib.\n", 1)[1]).decode().splitlines()
    known = {line.split(" ")[0] for line in lines}
    missing = []
    for package in PUBLIC:
        module = importlib.import_module(package)
        for name in module.__all__:
            try:
                found = getattr(module, name)
            except ImportError as error:  # of an extra that is not installed: documented by hand, under the package
                assert "pip install 'ppl-llm[" in str(error)
                if f"{package}.{name}" not in known:
                    missing.append(f"{package}.{name}")
                continue
            home = f"{getattr(found, '__module__', '')}.{getattr(found, '__qualname__', '')}"
            again = any(f"{other}.{name}" in known and getattr(importlib.import_module(other), name, None) is found for other in PUBLIC)
            if not again and home not in known:
                missing.append(f"{package}.{name}")
    assert not missing, "add them to docs/api/"


def test_pages_need_no_network(site: Path) -> None:
    """No script, style, font or image comes from elsewhere; only links lead out."""
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        for attribute in ('src="http', "src='http", '<link rel="stylesheet" href="http', "@import url(http"):
            assert attribute not in text, f"{page.name} loads something from another site"


def test_a_wrong_page_is_rejected(tmp_path: Path) -> None:
    """What the builder must not let pass: a page, an anchor, a reference and a name that are not there."""
    (tmp_path / "index.md").write_text(
        "# Title\n\n[page](missing.md), [anchor](#nowhere), {ref}`nothing`, {class}`~ppl_llm.NoSuchName`, {class}`~ppl_llm.SMC.nothing`\n"
    )
    built = sphinx(tmp_path, tmp_path / "html", "-c", str(ROOT / "docs"), "-D", "html_static_path=")
    assert built.returncode != 0
    for name in ("missing.md", "nowhere", "nothing", "NoSuchName", "SMC.nothing"):
        assert name in built.stderr, f"{name} went unnoticed"


def test_wrong_links_are_noticed(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(
        '<a href="b.html#here">1</a><a href="b.html#gone">2</a><a href="c.html">3</a><a href="https://x.y">4</a>'
    )
    (tmp_path / "b.html").write_text('<p id="here"><img src="none.png"></p>')
    checked = check_links(tmp_path)
    assert checked.returncode == 1
    assert checked.stderr.splitlines() == [f"broken link: {link}" for link in ("a.html: b.html#gone", "a.html: c.html", "b.html: none.png")]
    assert "1 links to other sites not fetched" in checked.stdout
    (tmp_path / "empty").mkdir()
    assert check_links(tmp_path / "empty").returncode == 2
