"""What an installation without the extra says."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

from ppl_llm.constraints import Choices, JsonSchema, Lark, Regex


@pytest.mark.parametrize("make", [lambda: JsonSchema({}), lambda: Regex("a"), lambda: Lark('start: "a"')])
def test_grammars_name_the_extra(make: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(ImportError, match=r"needs the package llguidance: pip install 'ppl-llm\[constraints\]'"):
        make()
    assert repr(Choices(["a"])) == "Choices(['a'])"
