"""Constraints of llguidance: the common properties, schemas and their values, tokens that merge or cut what the grammar tells apart."""

from __future__ import annotations

import itertools
import json
import random
import re
from collections.abc import Callable

import pyro
import pytest
import torch

from ppl_llm import SMC, Context, LLMStep, TabularLM, barrier
from ppl_llm.constraints import Choices, Constraint, JsonSchema, Lark, Regex, Vocabulary, grammar
from tests.helpers.constraint_properties import TOKENS, ConstraintProperties, allowed
from tests.helpers.tiny_models import language_model

pytest.importorskip("llguidance", reason="the extra `constraints`")
jsonschema = pytest.importorskip("jsonschema")


def text_of(tokens: list[int]) -> str | None:
    if not all(TOKENS[v] for v in tokens):
        return None
    try:
        return b"".join(TOKENS[v] for v in tokens).decode()
    except UnicodeDecodeError:
        return None


class TestRegex(ConstraintProperties):
    pattern = "a+(1|bé?)?| *"

    def constraint(self) -> Constraint:
        return Regex(self.pattern)

    def member(self, tokens: list[int]) -> bool:
        text = text_of(tokens)
        return text is not None and re.fullmatch(self.pattern, text) is not None


class TestLark(ConstraintProperties):
    """Balanced braces around letters, which no regular expression tells."""

    def constraint(self) -> Constraint:
        return Lark('start: "a" | "{" start "}" | "é"')

    def member(self, tokens: list[int]) -> bool:
        text = text_of(tokens)
        return text is not None and re.fullmatch(r"(\{*)(a|é)(\}*)", text) is not None and text.count("{") == text.count("}")


class TestJsonSchema(ConstraintProperties):
    depth = 4

    def constraint(self) -> Constraint:
        return JsonSchema({"anyOf": [{"type": "object", "additionalProperties": False}, {"enum": ["a", 1, 11]}]})

    def member(self, tokens: list[int]) -> bool:
        text = text_of(tokens)
        if text is None or text != text.strip():  # llguidance begins and ends with the value
            return False
        try:
            return json.loads(text) in ({}, "a", 1, 11)
        except json.JSONDecodeError:
            return False


# schemas --------------------------------------------------------------------------------------------------------------------------------

STRING, INTEGER = {"type": "string", "maxLength": 8}, {"type": "integer", "minimum": -99, "maximum": 99}
LEAVES: dict[str, dict] = {
    "string": STRING,
    "lengths": {"type": "string", "minLength": 2, "maxLength": 3},
    "pattern": {"type": "string", "pattern": "^[a-c]{1,4}$"},
    "unanchored pattern": {"type": "string", "pattern": "ab", "maxLength": 12},
    "date": {"type": "string", "format": "date"},
    "time": {"type": "string", "format": "date-time"},
    "uuid": {"type": "string", "format": "uuid"},
    "integer": INTEGER,
    "bounds": {"type": "integer", "exclusiveMinimum": 3, "exclusiveMaximum": 12},
    "number": {"type": "number", "minimum": 0, "maximum": 1.5},
    "multiples": {"type": "integer", "multipleOf": 5, "minimum": 0, "maximum": 100},
    "boolean": {"type": "boolean"},
    "null": {"type": "null"},
    "enumeration": {"enum": ["red", "green", 3, None, True, "é", '"', "\n", "🙂"]},
    "constant": {"const": {"a": [1, "b"]}},
    "several types": {"type": ["integer", "null"], "minimum": 0, "maximum": 9},
    "any of": {"anyOf": [STRING, {"type": "boolean"}]},
    "one of": {"oneOf": [{"type": "boolean"}, {"type": "null"}]},
    "all of": {"allOf": [{"type": "integer", "minimum": 0}, {"maximum": 20}]},
    "reference": {"$ref": "#/$defs/leaf"},
    "named reference": {"$ref": "#leaf"},
    "pattern properties": {"type": "object", "patternProperties": {"^a[0-9]$": INTEGER}, "additionalProperties": False},
    "counted properties": {"type": "object", "additionalProperties": INTEGER, "minProperties": 1, "maxProperties": 2},
    "any value": {"type": ["boolean", "null", "integer"]},
}
WRAPPED = {
    "alone": lambda leaf: leaf,
    "required": lambda leaf: {"type": "object", "properties": {"k": leaf}, "required": ["k"], "additionalProperties": False},
    "optional": lambda leaf: {"type": "object", "properties": {"k": leaf, "l": INTEGER}, "additionalProperties": False},
    "additional": lambda leaf: {"type": "object", "properties": {"k": leaf}, "additionalProperties": INTEGER},
    "items": lambda leaf: {"type": "array", "items": leaf, "minItems": 1, "maxItems": 3},
    "tuple": lambda leaf: {"type": "array", "prefixItems": [leaf, INTEGER], "items": False, "minItems": 2},
    "nested": lambda leaf: {
        "type": "object",
        "properties": {"a": {"type": "object", "properties": {"b": {"type": "array", "items": leaf, "maxItems": 2}}, "required": ["b"]}},
        "required": ["a"],
        "additionalProperties": False,
    },
    "either": lambda leaf: {"anyOf": [{"type": "array", "items": leaf, "maxItems": 2}, {"type": "boolean"}]},
    "tree": lambda leaf: {"$ref": "#/$defs/tree"},
    "labelled": lambda leaf: {
        "oneOf": [
            {"type": "object", "properties": {"kind": {"const": "x"}, "v": leaf}, "required": ["kind", "v"], "additionalProperties": False},
            {"type": "object", "properties": {"kind": {"const": "y"}}, "required": ["kind"], "additionalProperties": False},
        ]
    },
}
SCHEMAS = list(itertools.product(WRAPPED, LEAVES))
CLOSING = (b'"', b"}", b"]", b'"}', b"0", b"1", b",")


def schema_of(wrapped: str, leaf: str) -> dict:
    tree = {
        "type": "object",
        "properties": {"v": LEAVES[leaf], "below": {"type": "array", "items": {"$ref": "#/$defs/tree"}, "maxItems": 1}},
        "required": ["v"],
        "additionalProperties": False,
    }
    return {**WRAPPED[wrapped](LEAVES[leaf]), "$defs": {"leaf": {"$anchor": "leaf", **INTEGER}, "tree": tree}}


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return language_model().vocabulary


def walk(constraint: Constraint, vocabulary: Vocabulary, rng: random.Random, limit: int = 150) -> tuple[str, bool]:
    """A text by tokens drawn at random, with a liking for those that close something; and whether it has come to an end."""
    states, written = constraint.states(vocabulary, torch.zeros(1, 0, dtype=torch.long)), b""
    for _ in range(limit):
        follow = allowed(states, vocabulary)[0].nonzero()[:, 0].tolist()
        if bool(states.may_end()) and (not follow or rng.random() < 0.5):
            return written.decode(), True
        assert follow, f"nothing follows {written!r}"
        closing = [v for v in follow if vocabulary.token_bytes[v] in CLOSING]
        token = rng.choice(closing if closing and rng.random() < 0.6 else follow)
        written += vocabulary.token_bytes[token]
        states.advance(torch.tensor([token]), torch.tensor([True]))
    return written.decode(errors="replace"), False


@pytest.mark.parametrize(("wrapped", "leaf"), SCHEMAS)
def test_finished_texts_are_values_of_the_schema(wrapped: str, leaf: str, vocabulary: Vocabulary) -> None:
    schema = schema_of(wrapped, leaf)
    validator = jsonschema.Draft202012Validator(schema, format_checker=jsonschema.FormatChecker(["uuid"]))
    constraint, rng, finished = JsonSchema(schema, whitespace=leaf == "string"), random.Random(len(wrapped) * 100 + len(leaf)), 0
    for _ in range(6):
        text, ended = walk(constraint, vocabulary, rng)
        if ended:
            validator.validate(json.loads(text))
            finished += 1
    assert finished >= 1


def test_there_are_two_hundred_schemas() -> None:
    assert len(SCHEMAS) >= 200


def test_without_whitespace_a_text_is_compact(vocabulary: Vocabulary) -> None:
    constraint, rng = JsonSchema(schema_of("nested", "integer"), whitespace=False), random.Random(0)
    for _ in range(5):
        text, ended = walk(constraint, vocabulary, rng)
        assert not re.search(r"\s", re.sub(r'"(\\.|[^"\\])*"', '""', text)) or not ended


# tokens, steps and spaces -----------------------------------------------------------------------------------------------------------------

MERGED = rb'{" ": ":" "} "," " a a" { } : , \" 1} 1'.split()
CROSSING = Vocabulary([*MERGED, b" ", b"\xc3", b"\xa9", b'\xa9"', b""], (len(MERGED) + 4,), torch.device("cpu"))
"""Tokens that lie across what the grammar tells apart: the end of a string, a colon and the next string in one; half characters."""


def written(states: object, tokens: list[bytes], vocabulary: Vocabulary = CROSSING) -> bool:
    """Advance one sequence by tokens, all of which must be allowed; whether the text may end there."""
    for token in tokens:
        number = vocabulary.token_bytes.index(token)
        assert bool(allowed(states, vocabulary)[0, number]), token  # type: ignore[arg-type]
        states.advance(torch.tensor([number]), torch.tensor([True]))  # type: ignore[attr-defined]
    return bool(states.may_end())  # type: ignore[attr-defined]


def fresh(constraint: Constraint, vocabulary: Vocabulary = CROSSING) -> object:
    return constraint.states(vocabulary, torch.zeros(1, 0, dtype=torch.long))


def test_tokens_across_terminals() -> None:
    """Every cutting of the same texts into tokens is allowed."""
    pair = {"type": "object", "properties": {"a": {"type": "string"}, "é": {"const": 1}}, "required": ["a"], "additionalProperties": False}
    compact = JsonSchema(pair, whitespace=False)
    for tokens in (
        [b'{"', b'a"', b":", b'"', b"a", b'"}'],
        [b"{", b'"', b"a", b'":"', b'"}'],
        [b'{"', b"a", b'":"', b'\\"', b"a", b'","', b"\xc3", b'\xa9"', b":", b"1}"],
        [b'{"', b"a", b'":', b'"', b"\xc3", b"\xa9", b'"', b",", b'"', b"\xc3", b"\xa9", b'":', b"1", b"}"],
    ):
        states = fresh(compact)
        assert written(states, tokens)
        json.loads(b"".join(tokens))
        follow = allowed(states, CROSSING)  # type: ignore[arg-type]
        assert not follow.any(), "nothing follows the closing brace"
    assert not bool(allowed(fresh(compact), CROSSING)[0, CROSSING.token_bytes.index(b'":')])  # type: ignore[arg-type]


def test_the_end_of_the_text_is_masked_within_a_value() -> None:
    """Also in the middle of a string and of a character; a number may end wherever it is one."""
    states = fresh(JsonSchema({"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}, whitespace=False))
    for token in (b'{"', b"a", b'":"', b"\xc3", b"\xa9", b'"'):
        assert not written(states, [token])
    assert written(states, [b"}"])
    number = fresh(JsonSchema({"type": "integer"}))
    assert not bool(number.may_end())  # type: ignore[attr-defined]
    assert written(number, [b"1"]) and written(number, [b"1"])


def test_forms_of_whitespace() -> None:
    """Spaces between the parts where they are asked for, never within a number, and always within a string."""
    schema = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"], "additionalProperties": False}
    spaced = [b"{", b" ", b'"', b'a"', b" ", b":", b" ", b'"', b" ", b'"', b" ", b"}"]
    assert written(fresh(JsonSchema(schema)), spaced)
    compact = [b"{", b'"', b'a"', b":", b'"', b" ", b'"', b"}"]
    assert written(fresh(JsonSchema(schema, whitespace=False)), compact) and written(fresh(JsonSchema(schema)), compact)
    states = fresh(JsonSchema(schema, whitespace=False))
    written(states, [b"{"])
    assert not bool(allowed(states, CROSSING)[0, CROSSING.token_bytes.index(b" ")])  # type: ignore[arg-type]


def test_steps_may_end_within_a_string(vocabulary: Vocabulary) -> None:
    """Steps of one, three and five tokens, with resampling in between, end wherever they fall: texts are values, or begin one."""
    lm, schema = language_model(), {"enum": ["é 7 * 6 = 42", {"result": ["12 + 30 = 42", "→"]}, {"result": []}]}
    texts = [json.dumps(value, ensure_ascii=False, separators=(",", ":")) for value in schema["enum"]]
    for width in (1, 3, 5):
        torch.manual_seed(width)

        def program(width: int = width) -> Context:
            ctx = lm.start("What is 7 * 6?")
            for t in range(45 // width):
                ctx = barrier(ctx.extend(pyro.sample(f"step_{t}", LLMStep(ctx, tokens_per_step=width)), stop=()))
            return ctx

        posterior = SMC(program, 6, ess_threshold=1.0, proposals=JsonSchema(schema, whitespace=False)).run()
        alive = (posterior.log_weights > -torch.inf).tolist()
        tokens, ends, begin = posterior.value.tokens, posterior.value.ends, int(posterior.value.prompt_lengths[0])
        cut = set()
        for row, bounds, lives in zip(tokens.tolist(), ends.tolist(), alive, strict=True):
            text = b"".join(vocabulary.token_bytes[v] for v in row[begin:] if v >= 0)
            assert not lives or any(whole.encode().startswith(text) for whole in texts)
            steps = [b"".join(vocabulary.token_bytes[v] for v in row[begin:end]) for end in bounds]
            cut |= {step for step in steps if step.count(b'"') % 2}
        assert cut, "some steps end within a string"


# programs -------------------------------------------------------------------------------------------------------------------------------


def weighed(constraint: Constraint) -> tuple[torch.Tensor, torch.Tensor]:
    lm = language_model()
    torch.manual_seed(3)

    def program() -> Context:
        ctx = lm.start("What is 7 * 6?")
        for t in range(3):
            ctx = barrier(ctx.extend(pyro.sample(f"step_{t}", LLMStep(ctx, max_tokens=6, stop=(), temperature=1.5)), stop=()))
        return ctx

    posterior = SMC(program, 8, ess_threshold=0.9, proposals=constraint).run()
    return posterior.value.tokens, posterior.log_weights


def test_grammars_weigh_as_a_list_of_their_texts() -> None:
    """Masks, ends and states over several steps with resampling, token for token."""
    texts = ["7 * 6 = 42.", "7 * 6 = 43.", "42", "é42"]
    expected = weighed(Choices(texts))
    for constraint in (Regex(r"7 \* 6 = 4[23]\.|é?42"), Lark('start: "7 * 6 = 4" ("2"|"3") "." | "é"? "42"')):
        tokens, log_weights = weighed(constraint)
        assert torch.equal(tokens, expected[0])
        torch.testing.assert_close(log_weights, expected[1], atol=1e-6, rtol=1e-6)


def test_states_that_were_not_kept_are_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = weighed(Regex("[0-9 =*.]+"))
    monkeypatch.setattr(grammar, "_KEPT", 1)
    tokens, log_weights = weighed(Regex("[0-9 =*.]+"))
    assert torch.equal(tokens, expected[0]) and torch.equal(log_weights, expected[1])


@pytest.mark.parametrize("make", [lambda: Regex("ac|b"), lambda: Lark('start: "ac" | "b"'), lambda: JsonSchema({"enum": [1]}) & Regex("1")])
@pytest.mark.parametrize("masked", [False, True])
def test_what_the_model_has_no_token_for_is_a_dead_end(make: Callable[[], Constraint], masked: bool) -> None:
    """No error: after such a text nothing may follow, it may not end, and others continue."""
    few = Vocabulary([b"a", b"b", b""], (2,), torch.device("cpu"))
    states = make().states(few, torch.zeros(2, 0, dtype=torch.long))
    if masked:
        states.masks()
    states.advance(torch.tensor([0, 1]), torch.tensor([True, True]))
    for _ in range(2):
        assert not allowed(states, few).any() and not states.may_end()[0]
        states = states.select(torch.tensor([0, 1]))
    states.advance(torch.tensor([0, 0]), torch.tensor([True, True]))
    assert not allowed(states, few).any() and not states.may_end().any()


def test_evidence_with_dead_ends_is_that_of_what_can_be_written() -> None:
    """Two steps of one token each: "a" begins a text and cannot continue, so that p("b" and the end) is left. No draw is random."""
    lm = TabularLM(torch.zeros(3, 3), ["a", "b", "$"], eos="$")

    def model(problem: str) -> Context:
        ctx = lm.start(problem)
        for t in range(2):
            ctx = barrier(ctx.extend(pyro.sample(f"step_{t}", LLMStep(ctx, stop=(), max_tokens=1)), stop=()))
        return ctx

    pyro.set_rng_seed(0)
    posterior = SMC(model, 64, ess_threshold=0.0, proposals=Regex("ac|b")).run("a")
    alive = posterior.log_weights > -torch.inf
    assert 0 < int(alive.sum()) < 64 and posterior.value.tokens[alive].unique(dim=0).tolist() == [[0, 1, 2]]
    torch.testing.assert_close(posterior.log_weights[alive].exp(), torch.full((int(alive.sum()),), 2 / 9, dtype=torch.float64))


# mistakes -------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: JsonSchema('{"type": '), "the schema is not JSON"),
        (lambda: JsonSchema("[1]"), "must be an object"),
        (lambda: JsonSchema({"type": "strin"}), "cannot be compiled: .*strin"),
        (lambda: JsonSchema({"type": "object", "unevaluatedProperties": False}), "cannot be compiled: .*unevaluatedProperties"),
        (lambda: JsonSchema({"properties": {"k": {}}, "maxProperties": 3}), "cannot be compiled: .*maxProperties"),
        (lambda: JsonSchema({"type": "string", "format": "frobnicate"}), "cannot be compiled: .*frobnicate"),
        (lambda: JsonSchema({"type": "string", "pattern": "(?=a)b"}), "cannot be compiled: .*look-around"),
        (lambda: JsonSchema({"$ref": "http://example.org/elsewhere"}), "cannot be compiled: .*elsewhere"),
        (lambda: JsonSchema({"oneOf": [{"type": "integer"}, {"type": "number"}]}), "cannot be compiled: .*oneOf"),
        (lambda: JsonSchema({"type": "integer", "minimum": 3, "maximum": 1}), "cannot be compiled: .*Unsatisfiable"),
        (lambda: JsonSchema({"enum": []}), "cannot be compiled: .*Unsatisfiable"),
        (lambda: Regex("a(b"), r"Regex\('a\(b'\) cannot be compiled"),
        (lambda: Regex("(?=a)b"), "cannot be compiled"),
        (lambda: Lark("start: missing"), "cannot be compiled: .*missing"),
        (lambda: JsonSchema({"x-guidance": 3}), "x-guidance of a JSON schema must be an object, got 3"),
        (lambda: JsonSchema({"enum": {1, 2}}), "cannot be written as JSON: .*set"),
        (lambda: JsonSchema({"const": float("nan")}), "cannot be written as JSON: .*not JSON compliant"),
        (lambda: JsonSchema("[" * 100_000), "the schema is not JSON: maximum recursion depth"),
        (lambda: Regex("\ud800"), "lone surrogate at 0"),
        (lambda: Lark('start: "\ud800"'), "lone surrogate at 8"),
        (lambda: JsonSchema({"type": "strng", "enum": ["x" * 9] * 90_000}), "cannot be compiled: .*strng"),
        (lambda: Regex("(" * 100_000), r"cannot be compiled: .*\.\.\..*group"),
    ],
)
def test_grammars_that_cannot_be_compiled_are_one_clear_error(make: Callable[[], object], says: str) -> None:
    with pytest.raises(ValueError, match=says) as caught:
        make()
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000


BEYOND: dict[str, object] = {
    "not": {"type": "integer"},
    "if": {"minimum": 3},
    "contains": {"type": "integer"},
    "uniqueItems": True,
    "propertyNames": {"maxLength": 2},
    "dependentRequired": {"a": ["b"]},
    "dependentSchemas": {"a": {"type": "object"}},
    "dependencies": {"a": ["b"]},
    "unevaluatedItems": False,
    "minContains": 2,
    "$dynamicRef": "#a",
}
"""Keywords that llguidance has no grammar for."""


@pytest.mark.parametrize("keyword", BEYOND)
def test_keywords_are_never_left_out_in_silence(keyword: str) -> None:
    with pytest.raises(ValueError, match=rf'cannot be compiled: .*"{re.escape(keyword)}"') as caught:
        JsonSchema({keyword: BEYOND[keyword]})
    assert "\n" not in str(caught.value)
