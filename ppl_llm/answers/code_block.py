"""Programs in the text of solutions."""

from __future__ import annotations

from markdown_it import MarkdownIt

_BLOCKS = MarkdownIt("zero").enable(["fence", "list", "blockquote"])


def last_code_block(text: str) -> str | None:
    """What the last fenced code block of a text in Markdown holds, of any language and also within a list; ``None`` if there is none.

    A block that is not closed, as where a solution was cut off, is none.
    """
    found = None
    for token in _BLOCKS.parse(f"{text}\n"):
        if token.type == "fence" and token.map is not None and token.map[1] - token.map[0] == token.content.count("\n") + 2:
            found = token.content
    return found if found and found.strip() else None
