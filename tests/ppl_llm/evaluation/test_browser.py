"""The report in a browser without a network: nothing on the console, and every figure seen."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from ppl_llm.evaluation.comparison import Comparison
from ppl_llm.evaluation.report import write
from tests.helpers.runs import write_run
from tests.inference.viewer.browser import scratch

BROWSER = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)

# All that would leave the machine is refused, also by name.
OPTIONS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
OPTIONS += ["--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--enable-logging=stderr"]
OPTIONS += [
    "--host-resolver-rules=MAP * ~NOTFOUND",
    "--proxy-server=127.0.0.1:9",
    "--proxy-bypass-list=<-loopback>",
    "--window-size=1200,900",
]

PROBE = """<script>
const box = element => element.getBoundingClientRect();
const seen = svg => ({
  name: svg.id, width: box(svg).width, height: box(svg).height,
  visible: getComputedStyle(svg).visibility === 'visible' && +getComputedStyle(svg).opacity === 1,
  paths: [...svg.querySelectorAll('path')].filter(path => box(path).width + box(path).height > 0).length
});
const outside = document.documentElement.scrollWidth - document.documentElement.clientWidth;
document.body.dataset.seen = JSON.stringify({ figures: [...document.querySelectorAll('figure svg')].map(seen), outside });
</script></body>"""

pytestmark = [pytest.mark.skipif(BROWSER is None, reason="there is no chromium here"), pytest.mark.slow]


def visit(page: Path, folder: Path) -> tuple[dict[str, Any], list[str]]:
    """What a browser sees of a page, and what it writes to the console."""
    probed = folder / f"probed-{page.name}"
    probed.write_text(page.read_text().replace("</body>", PROBE))
    command = [str(BROWSER), *OPTIONS, f"--user-data-dir={folder / 'profile'}", "--dump-dom", probed.as_uri()]
    with scratch() as left:
        environment = {**os.environ, "TMPDIR": left}
        done = subprocess.run(command, capture_output=True, text=True, timeout=180, env=environment)
    found = re.search(r'data-seen="([^"]*)"', done.stdout)
    assert found, (done.returncode, done.stderr[-2000:])
    return json.loads(html.unescape(found[1])), [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def faults(page: Path, folder: Path) -> list[str]:
    """What is wrong with a page as it is seen."""
    seen, console = visit(page, folder)
    hidden = [f["name"] for f in seen["figures"] if not (f["visible"] and f["width"] > 200 and f["height"] > 100 and f["paths"] > 5)]
    return [*console, *(f"{name} is not seen" for name in hidden), *(["wider than the window"] if seen["outside"] > 0 else [])]


def test_report_and_comparison_in_a_browser(tmp_path: Path) -> None:
    first, second = write_run(tmp_path / "one"), write_run(tmp_path / "two", skill=0.2, temperature=0.7)
    report = write(first)
    assert faults(report, tmp_path) == []
    assert faults(Comparison.read(first, second).write(first), tmp_path) == []
    text = report.read_text()
    hidden = text.replace("</style>", "#coverage { display: none }</style>")
    report.write_text(hidden.replace("</main>", "<script>nothing.at.all</script></main>"))
    found = faults(report, tmp_path)
    assert "coverage is not seen" in found and any("nothing is not defined" in line for line in found)
