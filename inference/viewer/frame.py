"""The page of a posterior inside a notebook."""

from __future__ import annotations

import html


class Viewer:
    """Shows a page in its own frame, apart from the notebook's scripts and styles.

    :param str page: text of the page.
    :param int height: in pixels.
    """

    def __init__(self, page: str, height: int) -> None:
        self.page, self.height = page, height

    def _repr_html_(self) -> str:
        return (
            f'<iframe srcdoc="{html.escape(self.page)}" sandbox="allow-scripts" loading="lazy" title="particle viewer" '
            f'style="width:100%;height:{int(self.height)}px;border:1px solid #c3ccd6;border-radius:6px"></iframe>'
        )
