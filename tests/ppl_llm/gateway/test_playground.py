"""The page of the server in a browser that reaches nothing but the server."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ppl_llm.gateway import Keys
from tests.helpers.gateway import PATIENCE, Running, running
from tests.inference.viewer.browser import Browser, executable

pytestmark = pytest.mark.skipif(executable() is None, reason="no Chromium on this machine")

KEY = "a-key-of-the-tests"
STATUS = "document.getElementById('status').textContent"
TEXT = "document.getElementById('text').textContent"
WIDER = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
PICTURES = os.environ.get("PPL_LLM_PICTURES")
"""Folder for screenshots, to be looked at."""


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running() as up:
        yield up


@pytest.fixture(params=[False, True], ids=["light", "dark"])
def browser(request: pytest.FixtureRequest, server: Running, tmp_path: Path) -> Iterator[Browser]:
    started = Browser(tmp_path / "profile", request.param, server.url)
    try:
        started.visit(server.url)
        wait(started, "document.getElementById('model').options.length > 3")
        yield started
    finally:
        started.close()


def wait(browser: Browser, expression: str) -> None:
    end = time.monotonic() + PATIENCE
    while not browser.evaluate(expression):
        assert time.monotonic() < end, (expression, browser.evaluate(STATUS), browser.complaints)
        time.sleep(0.02)


def choose(browser: Browser, model: str, **values: Any) -> None:
    fields = {"model": model, **values}
    for name, value in fields.items():
        browser.evaluate(f"document.getElementById({name!r}).value = {value!r}")


def picture(browser: Browser, name: str, width: int, height: int) -> None:
    data = browser.screenshot(width, height)
    assert len(data) > 10_000, "an empty picture"
    if PICTURES is not None:
        (Path(PICTURES) / name).write_bytes(data)


def test_a_run_from_the_problem_to_the_posterior(browser: Browser, server: Running, request: pytest.FixtureRequest) -> None:
    """By keyboard alone: the text settles, the genealogy grows, and the posterior is that of the reply."""
    shade = request.node.callspec.id
    choose(browser, "demo:smc-16", seed="2")
    browser.evaluate("document.getElementById('problem').focus()")
    browser.press("Enter", control=True)
    wait(browser, f"{STATUS} === 'Finished.'")
    problem = browser.evaluate("document.getElementById('problem').value")
    reply = server.chat(problem, model="demo:smc-16", seed=2).json()
    assert browser.evaluate(TEXT) == reply["choices"][0]["message"]["content"]
    settled = browser.evaluate("[...document.querySelectorAll('#text .settled')].map((each) => each.textContent).join('')")
    assert settled and reply["choices"][0]["message"]["content"].startswith(settled)
    bars = browser.evaluate("[...document.querySelectorAll('#answers li')].map((each) => [...each.children].map((c) => c.textContent))")
    told = reply["ppl"]["answers"]
    assert [[name, float(p)] for name, _, p in bars] == [
        [each["answer"], pytest.approx(each["probability"], abs=0.002)] for each in told[:12]
    ]
    steps = len(reply["ppl"]["ess"])
    assert browser.evaluate("document.querySelectorAll('#tree circle').length") == 16 * steps
    assert browser.evaluate("document.querySelectorAll('#tree path').length") == 16 * (steps - 1)
    last = browser.evaluate("[...document.querySelectorAll('#tree circle')].slice(-16).map((each) => each.classList[1])")
    first_bar = browser.evaluate("document.querySelector('#answers .bar').classList[1]")
    assert last.count(first_bar) >= last.count("none") and first_bar in last, "a particle has the colour of its answer"
    resampled = sum(reply["ppl"]["resampled"])
    label = f"16 particles, {steps} steps, resampled {resampled} times"
    assert browser.evaluate("document.getElementById('tree').getAttribute('aria-label')") == label
    assert resampled and browser.evaluate("document.querySelectorAll('#tree circle.dropped').length") > 0
    link = browser.evaluate("document.querySelector('#figures a').getAttribute('href')")
    assert server.http.get(link).status_code == 200
    picture(browser, f"playground-{shade}.png", 1400, 950)
    picture(browser, f"playground-{shade}-narrow.png", 390, 1500)
    assert browser.evaluate(WIDER) <= 0, "it is wider than a narrow window"
    assert browser.complaints == []


def test_stopping_a_run(browser: Browser, server: Running) -> None:
    browser.evaluate("document.getElementById('model').append(new Option('demo:suffix-mh:iterations=10000'))")
    choose(browser, "demo:suffix-mh:iterations=10000")
    browser.evaluate("document.getElementById('run').focus()")
    browser.press("Enter")
    wait(browser, f"{STATUS}.startsWith('Iteration')")
    assert browser.evaluate("document.activeElement.id") == "stop", "the focus is on what can be pressed next"
    browser.press("Escape")
    wait(browser, f"{STATUS} === 'Stopped.'")
    assert browser.evaluate("document.activeElement.id") == "run"
    end = time.monotonic() + PATIENCE
    while not server.idle():
        assert time.monotonic() < end, "the server still works on it"
        time.sleep(0.02)
    assert not browser.evaluate("document.getElementById('run').disabled") and browser.complaints == []


def test_nothing_of_a_reply_becomes_markup(browser: Browser, server: Running) -> None:
    """An error quotes what was sent."""
    hostile = "<img src=x onerror=alert(1)>"
    browser.evaluate(f"document.getElementById('model').append(new Option({hostile!r}))")
    choose(browser, hostile)
    browser.evaluate("document.getElementById('form').requestSubmit()")
    wait(browser, f"{STATUS}.includes('does not exist')")
    assert hostile in browser.evaluate(STATUS) and browser.evaluate("document.querySelectorAll('img').length") == 0
    assert [each for each in browser.complaints if "404" not in each] == []


def test_a_server_with_keys(tmp_path: Path) -> None:
    with running(Keys([KEY])) as up:
        started = Browser(tmp_path / "profile", False, up.url)
        try:
            started.visit(up.url)
            wait(started, f"{STATUS}.includes('key')")
            assert started.evaluate("document.getElementById('model').options.length") == 0
            choose_key = f"const k = document.getElementById('key'); k.value = {KEY!r}; k.dispatchEvent(new Event('change'))"
            started.evaluate(f"(() => {{ {choose_key} }})()")
            wait(started, "document.getElementById('model').options.length > 3")
            choose(started, "demo:smc-4", seed="1")
            started.evaluate("document.getElementById('form').requestSubmit()")
            wait(started, f"{STATUS} === 'Finished.'")
            assert [each for each in started.complaints if "401" not in each] == []
        finally:
            started.close()
