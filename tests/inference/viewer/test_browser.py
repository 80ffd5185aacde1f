"""The page in a browser without a network: pointing, clicking, keys, and nothing that complains."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import ppl_llm.inference.viewer.page as page_module
from ppl_llm import SMC
from ppl_llm.inference.viewer.genealogy import Genealogy
from ppl_llm.inference.viewer.populations import populations
from tests.inference.viewer.browser import Browser, executable
from tests.inference.viewer.models import HOSTILE, run, solutions, three_problems, walk

pytestmark = pytest.mark.skipif(executable() is None, reason="no Chromium on this machine")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    started = Browser(tmp_path_factory.mktemp("profile"))
    yield started
    started.close()


@pytest.fixture
def show(browser: Browser, tmp_path: Path) -> Any:
    def opened(posterior: Any, **kwargs: Any) -> Browser:
        browser.complaints.clear()
        browser.open(posterior.to_html(tmp_path / "run.html", **kwargs))
        return browser

    return opened


DETAIL = "document.getElementById('detail').textContent"
FOCUS = "document.activeElement.getAttribute('aria-label')"
PINNED = "document.querySelectorAll('svg [aria-pressed=true]').length"


def place(browser: Browser, column: int, row: int) -> tuple[float, float]:
    """Where the mark of a column and row is on the screen."""
    label = f"step {column + 1}, particle"
    marks = browser.evaluate(
        f"""[...document.querySelectorAll('#tree [role=button]')].filter((e) => e.getAttribute('aria-label').startsWith({label!r}))
        .map((e) => e.getBoundingClientRect()).map((b) => [b.x + b.width / 2, b.y + b.height / 2]).sort((a, b) => a[1] - b[1])"""
    )
    x, y = marks[row]
    return float(x), float(y)


def particle_at(found: Genealogy, column: int, row: int) -> int:
    return found.rows[column].tolist().index(row)


def test_pointing_shows_the_step(show: Any) -> None:
    browser, found = show(solutions()), Genealogy.of(populations(solutions())[0]).trimmed()
    hostile = [(c, particle) for c, column in enumerate(found.texts) for particle, text in enumerate(column) if HOSTILE in text]
    for c, particle in [(0, particle_at(found, 0, 5)), (2, particle_at(found, 2, 11)), hostile[0], hostile[-1]]:
        browser.point(*place(browser, c, int(found.rows[c, particle])))
        told = browser.evaluate(DETAIL)
        assert told.startswith(f"Step {c + 1}, particle {particle}") and found.texts[c][particle].strip() in told
        assert ("died out" in told) == (not bool(found.alive[c, particle]))
    assert browser.evaluate("[...document.querySelectorAll('script')].length") == 2
    assert browser.evaluate("document.querySelectorAll('img, b').length") == 0
    assert browser.complaints == []


def test_clicking_keeps_it(show: Any) -> None:
    browser, found = show(solutions()), Genealogy.of(populations(solutions())[0]).trimmed()
    there, elsewhere = place(browser, 1, 3), place(browser, 3, 12)
    browser.click(*there)
    kept = browser.evaluate(DETAIL)
    assert kept.startswith(f"Step 2, particle {particle_at(found, 1, 3)} (kept)") and browser.evaluate(PINNED) == 1
    browser.point(*elsewhere)
    assert browser.evaluate(DETAIL) == kept
    browser.click(*there)
    assert browser.evaluate(PINNED) == 0
    browser.point(*elsewhere)
    assert browser.evaluate(DETAIL).startswith(f"Step 4, particle {particle_at(found, 3, 12)}")
    assert browser.complaints == []


def test_keys(show: Any) -> None:
    browser, found = show(solutions()), Genealogy.of(populations(solutions())[0]).trimmed()
    browser.evaluate("document.getElementById('colour').focus()")
    browser.press("Tab")
    assert browser.evaluate(FOCUS).startswith("result, particle")
    assert browser.evaluate("document.querySelectorAll('#tree [tabindex=\"0\"]').length") == 1
    assert browser.evaluate("getComputedStyle(document.querySelector('.ring')).visibility") == "visible"
    heaviest = int(found.weights.argmax())
    c, particle = int(found.column[heaviest]), int(found.particle[heaviest])
    browser.press("ArrowLeft")
    assert browser.evaluate(FOCUS).startswith(f"step {c + 1}, particle {particle},")
    browser.press("ArrowLeft")
    assert browser.evaluate(FOCUS).startswith(f"step {c}, particle {int(found.parents[c - 1][particle])},")
    browser.press("Home")
    assert browser.evaluate(FOCUS).startswith("step 1,")
    row = int(found.rows[0, int(browser.evaluate(FOCUS).split("particle ")[1].split(",")[0])])
    key, step = ("ArrowDown", 1) if row < 15 else ("ArrowUp", -1)
    browser.press(key)
    assert browser.evaluate(FOCUS).startswith(f"step 1, particle {particle_at(found, 0, row + step)},")
    browser.press("Enter")
    assert browser.evaluate(PINNED) == 1 and "(kept)" in browser.evaluate(DETAIL)
    browser.press("Escape")
    assert browser.evaluate(PINNED) == 0 and "(kept)" not in browser.evaluate(DETAIL)
    browser.press("End")
    assert not browser.evaluate(FOCUS).startswith("step 1,")
    assert browser.complaints == []


def test_edges_are_the_ancestors(show: Any) -> None:
    """Each drawn edge starts at its parent's place."""
    browser, found = show(solutions()), Genealogy.of(populations(solutions())[0]).trimmed()
    drawn = browser.evaluate("[...document.querySelectorAll('path.edge')].map((e) => e.getAttribute('d').match(/-?[0-9.]+/g).map(Number))")
    lefts, ys = sorted({edge[0] for edge in drawn}), sorted({edge[1] for edge in drawn} | {edge[7] for edge in drawn})
    assert len(drawn) == 16 * found.num_columns and len(ys) == 16
    # From (column, row) to the row it leads to; the x of an edge's end depends on the size of its node.
    edges = sorted((lefts.index(edge[0]), ys.index(edge[1]), ys.index(edge[7])) for edge in drawn)
    expected = [
        (c, int(found.rows[c, p]), int(found.rows[c + 1, particle]))
        for c, ps in enumerate(found.parents.tolist())
        for particle, p in enumerate(ps)
    ]
    ends = zip(found.column.tolist(), found.particle.tolist(), found.last_rows.tolist(), strict=True)
    expected += [(c, int(found.rows[c, particle]), row) for c, particle, row in ends]
    assert edges == sorted(expected)


def test_problems_and_colours(show: Any) -> None:
    browser = show(three_problems())
    assert browser.evaluate("document.getElementById('problem').textContent") == "g"
    for plate, problem in enumerate(["g", "gg", "g;"]):
        browser.evaluate(f"{{ const s = document.getElementById('population'); s.value = {plate}; s.dispatchEvent(new Event('change')); }}")
        assert browser.evaluate("document.getElementById('problem').textContent") == problem
        told = [float(p) for p in browser.evaluate("[...document.querySelectorAll('.answer .p')].map((e) => e.textContent)")]
        probs = list(three_problems().answers()[plate].probs.values())
        assert told[: len(probs)] == pytest.approx(probs, abs=6e-4)
    for name in ("score", "weight", "answer"):
        browser.evaluate(f"{{ const s = document.getElementById('colour'); s.value = '{name}'; s.dispatchEvent(new Event('change')); }}")
    browser.evaluate("document.querySelector('.answer').click()")
    assert browser.evaluate("document.querySelector('.answer').getAttribute('aria-pressed')") == "true"
    assert (
        0
        < browser.evaluate("document.querySelectorAll('circle.on').length")
        < browser.evaluate("document.querySelectorAll('circle.node').length")
    )
    assert browser.complaints == []


def test_large(show: Any) -> None:
    browser = show(run(SMC(walk(40), 64)), answer=lambda z: "up" if z > 0 else "down")
    assert browser.evaluate("document.querySelectorAll('circle.node').length") == 64 * 40
    browser.point(*place(browser, 20, 40))
    assert browser.evaluate(DETAIL).startswith("Step 21,")
    assert browser.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert browser.complaints == []


def test_what_goes_wrong_is_noticed(show: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Markup in place of text, and a script that throws or loads, are complained about."""
    asset = page_module._asset
    monkeypatch.setattr(page_module, "_asset", lambda name: asset(name) + ("throw new Error('oh')" if name == "panel.js" else ""))
    assert any("oh" in complaint for complaint in show(solutions()).complaints)
    monkeypatch.setattr(page_module, "_asset", lambda name: asset(name) + ("fetch('https://x.invalid')" if name == "panel.js" else ""))
    assert show(solutions()).complaints
    monkeypatch.setattr(page_module, "_asset", asset)
    monkeypatch.setattr(page_module, "_digest", lambda text: "'unsafe-inline'")
    monkeypatch.setattr(page_module, "embedded", page_module.json.dumps)
    assert any("a dialog: 1" in complaint for complaint in show(solutions()).complaints)


def test_a_browser_leaves_nothing_behind(tmp_path: Path) -> None:
    started = Browser(tmp_path / "profile")
    left = Path(started.scratch.name)
    assert any(left.iterdir()), "its own temporary files lie there"
    started.close()
    assert not left.exists()
