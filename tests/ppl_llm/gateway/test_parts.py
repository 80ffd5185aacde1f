"""Names of models, keys, pages and bounds."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from ppl_llm.gateway import Choice, Gateway, Keys, Limits, Served
from ppl_llm.gateway.asked import read
from ppl_llm.gateway.catalogue import Catalogue
from ppl_llm.gateway.errors import ApiError
from ppl_llm.gateway.fields import Fields
from ppl_llm.gateway.guard import is_loopback
from ppl_llm.gateway.pages import Pages
from ppl_llm.methods import METHODS, MODEL_OPTIONS, SOLVING, get_method
from tests.helpers.gateway import PROBLEM, gateway, models


@pytest.fixture
def catalogue() -> Catalogue:
    return Catalogue("org/name", Choice(METHODS["smc"], {"particles": 5}, {"preset": "twisted"}), True, 64)


@pytest.mark.parametrize("name", [name for name, method in SOLVING.items() if method.budget is not None])
def test_a_number_is_the_budget_of_an_evaluation(catalogue: Catalogue, name: str) -> None:
    chosen, budgeted = catalogue.find(f"org/name:{name}-32"), get_method(name)
    sizes = budgeted.sized(32)
    assert chosen.method is METHODS[name]
    for option in chosen.method.options:
        assert chosen.options.get(option.name, option.default) == sizes[option.name]


def test_names_and_options_together(catalogue: Catalogue) -> None:
    assert catalogue.find("org/name").options == {"particles": 5}
    chosen = catalogue.find("org/name:smc-8:islands=2:preset=as_paper")
    assert chosen.options["particles"] == 4 and chosen.options["islands"] == 2 and chosen.model_options == {"preset": "as_paper"}
    assert catalogue.choose("org/name", Fields({"particles": 9}, "ppl.")).options == {"particles": 9}
    other = catalogue.choose("org/name", Fields({"method": "beam-search-16", "filter_duplicates": True, "expand": 8}, "ppl."))
    assert other.options == {"beam_width": 2, "expand": 8, "filter_duplicates": True}
    assert other.model_options == {}, "the options of the default method are its own"
    for model, options, param in [
        ("org/name:smc-8", {"method": "smc"}, "ppl.method"),
        ("org/name:smc-8", {"particles": 4}, "ppl"),
        ("org/name:smc:islands=2", {"islands": 2}, "ppl.islands"),
        ("org/name", {"particles": True}, "ppl.particles"),
        ("org/name", {"particles": 1.5}, "ppl.particles"),
        ("org/name", {"audit": 1}, "ppl.audit"),
        ("org/name", {"ess_threshold": 2}, "ppl.ess_threshold"),
        ("org/name", {"method": "parallel-tempering", "betas": "0," * 200}, "ppl.betas"),
    ]:
        with pytest.raises(ApiError) as refused:
            catalogue.choose(model, Fields(options, "ppl."))
        assert refused.value.param == param and refused.value.status == 400


def test_every_option_of_the_registry_can_be_asked_for() -> None:
    served = gateway()
    try:
        for name, method in SOLVING.items():
            for option in (*method.options, *MODEL_OPTIONS.values()):
                if option.default is not None:
                    body = {"model": "demo", "messages": [{"role": "user", "content": PROBLEM}]}
                    asked = served.read({**body, "ppl": {"method": name, option.name: option.default}}, chat=True)
                    where = asked.choice.model_options if option.name in MODEL_OPTIONS else asked.choice.options
                    assert where[option.name] == option.default
    finally:
        served.dispatcher.close()


@pytest.mark.parametrize(
    ("fields", "meant"),
    [
        ({"temprature": 1}, "temperature"),
        ({"max_token": 5}, "max_tokens"),
        ({"tool": []}, "tools"),
        ({"ppl": {"particle": 4}}, "ppl.particles"),
        ({"ppl": {"presett": "exact"}}, "ppl.preset"),
        ({"ppl": {"deadlin": 1}}, "ppl.deadline"),
    ],
)
def test_a_misspelt_field_is_told_of_the_right_one(catalogue: Catalogue, fields: dict[str, Any], meant: str) -> None:
    body = {"model": "org/name", "messages": [{"role": "user", "content": PROBLEM}], **fields}
    with pytest.raises(ApiError, match=f"did you mean {re.escape(meant)}\\?$"):
        read(body, True, catalogue, Limits())


def test_a_field_like_no_other_is_only_named(catalogue: Catalogue) -> None:
    with pytest.raises(ApiError, match=r"supplied: zzzzzz$"):
        read({"model": "org/name", "messages": [{"role": "user", "content": PROBLEM}], "zzzzzz": 1}, True, catalogue, Limits())


def test_what_multiplies_particles_is_bounded(catalogue: Catalogue) -> None:
    for options in ({"particles": 65}, {"particles": 33, "islands": 2}):
        with pytest.raises(ApiError, match="at most 64"):
            catalogue.check(Choice(METHODS["smc"], options, {}))
    catalogue.check(Choice(METHODS["smc"], {"particles": 32, "islands": 2}, {}))
    assert "org/name:smc-64" in catalogue.names() and not any(name.endswith("-128") for name in catalogue.names())


def test_without_a_reward_only_methods_that_need_none_are_offered() -> None:
    lm, _ = models()
    served = Gateway(Served("bare", lm, None))
    try:
        offered = [served.catalogue.find(name).method for name in served.models()]
        assert METHODS["self-consistency"] in offered and METHODS["smc"] not in offered
        assert not any(method.needs_reward() for method in offered)
        with pytest.raises(ApiError, match="needs a reward"):
            served.read({"model": "bare:smc-4", "messages": [{"role": "user", "content": PROBLEM}]}, chat=True)
    finally:
        served.dispatcher.close()
    with pytest.raises(ValueError, match="needs a reward"):
        Gateway(Served("bare", lm, None), Choice(METHODS["smc"], {}, {}))


def test_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PPL_LLM_SERVE_KEYS", "key-number-1, key-number-2")
    file = tmp_path / "keys"
    file.write_text("# of a friend\nkey-number-3\n\n")
    keys = Keys.read(file)
    for number in (1, 2, 3):
        assert keys.accept(f"Bearer key-number-{number}") and keys.accept(f"bearer  key-number-{number} ")
    for wrong in (None, "", "Bearer", "Bearer key-number-4", "Basic key-number-1", "key-number-1", "Bearer # of a friend", "Bearer \udcff"):
        assert not keys.accept(wrong), wrong
    assert "key-number" not in repr(vars(keys))
    monkeypatch.delenv("PPL_LLM_SERVE_KEYS")
    assert not Keys.read(None) and Keys.read(None).accept(None)
    file.write_text("\n")
    with pytest.raises(ValueError, match="holds no key"):
        Keys.read(file)
    with pytest.raises(ValueError, match="at least 8"):
        Keys(["short"])


def test_pages_are_kept_for_a_bounded_time_and_number() -> None:
    now = [0.0]
    pages = Pages(3, 10.0, clock=lambda: now[0])
    numbers = []
    for number in range(5):
        now[0] = float(number)
        numbers.append(pages.put(f"page {number}"))
    assert [pages.get(str(number)) for number in numbers] == [None, None, "page 2", "page 3", "page 4"]
    assert len(set(numbers)) == 5 and all(number is not None and len(number) >= 22 for number in numbers)
    now[0] = 12.5
    assert [pages.get(str(number)) for number in numbers[2:]] == [None, "page 3", "page 4"] and len(pages) == 2
    assert Pages(0, 10.0).put("page") is None


def test_loopback_addresses() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "127.1.2.3", "localhost", "LOCALHOST", "::1", "[::1]")))
    assert not any(map(is_loopback, ("0.0.0.0", "192.168.0.1", "::", "localhost.evil.example", "evil.example", "")))


def test_bounds_are_checked() -> None:
    for name in ("particles", "deadline", "concurrent", "body_bytes"):
        with pytest.raises(ValueError, match=name):
            Limits(**{name: 0})
    assert Limits(queue=0, runs=0, grace=0).queue == 0
