"""Checks the links of a built site without a network: every page, file and anchor that a link names must be there.

``python docs/check_links.py build/docs``. Links that leave the site are counted and not fetched.
"""

from __future__ import annotations

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """Anchors of a page, and what it links to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = {"", "top"}
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.anchors.update(value for name, value in attrs if value and (name == "id" or (tag == "a" and name == "name")))
        target = given.get("src" if tag in ("img", "script") else "href")
        if target and tag in ("a", "link", "img", "script"):
            self.links.append(target)


def check(site: Path) -> tuple[list[str], int, int]:
    """Broken links in words, and the numbers of links inside the site and out of it."""
    pages = {path.resolve(): Page(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}
    broken, inside, outside = [], 0, 0
    for path, page in pages.items():
        for link in page.links:
            url = urlsplit(link)
            if url.scheme or url.netloc:
                outside += 1
                continue
            inside += 1
            target = (path.parent / unquote(url.path)).resolve() if url.path else path
            if target.is_dir():
                target /= "index.html"
            missing = not target.exists() or (target in pages and unquote(url.fragment) not in pages[target].anchors)
            if missing:
                broken.append(f"{path.relative_to(site.resolve())}: {link}")
    return broken, inside, outside


def main() -> int:
    site = Path(sys.argv[1])
    broken, inside, outside = check(site)
    if not inside:
        print(f"{site} holds no pages with links; build the site first", file=sys.stderr)
        return 2
    for line in broken:
        print(f"broken link: {line}", file=sys.stderr)
    print(f"{inside} links inside the site checked, {len(broken)} broken; {outside} links to other sites not fetched")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
