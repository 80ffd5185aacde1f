"""What a client asks for, read from a request's body."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..methods import METHODS, MODEL_OPTIONS
from .catalogue import Catalogue, Choice
from .errors import ApiError, bad_value, unsupported
from .fields import Fields
from .limits import Limits

if TYPE_CHECKING:
    from ..constraints import Constraint

_SAY_NOTHING = ("user", "metadata", "safety_identifier", "prompt_cache_key", "prompt_cache_retention", "store", "service_tier")
_WHY: dict[str, tuple[tuple[Any, ...], str]] = {
    "frequency_penalty": ((0,), "it changes the distribution from token to token; the target is the language model's own"),
    "presence_penalty": ((0,), "it changes the distribution from token to token; the target is the language model's own"),
    "logit_bias": (({},), "it changes the distribution that the posterior is defined by"),
    "logprobs": (
        (False,),
        "an answer is chosen among many by its steps' scores, so the probabilities of its tokens are not those it was drawn with; "
        "ppl.answers of the reply has the posterior",
    ),
    "top_logprobs": ((0,), "see logprobs"),
    "tools": (([],), "solutions are texts"),
    "tool_choice": (("none", "auto"), "solutions are texts"),
    "parallel_tool_calls": ((True, False), "solutions are texts"),
    "functions": (([],), "solutions are texts"),
    "function_call": (("none", "auto"), "solutions are texts"),
    "modalities": ((["text"],), "solutions are texts"),
    "audio": ((), "solutions are texts"),
    "prediction": ((), "nothing is known of the answer beforehand"),
    "reasoning_effort": ((), "choose a method and its size by the model's name or by ppl"),
    "verbosity": ((), "the language model decides how much it writes"),
    "web_search_options": ((), "this server searches nothing"),
    "echo": ((False,), "the prompt is known to the client"),
    "suffix": (("",), "solutions are written from left to right"),
    "best_of": ((), "choose a method by the model's name, such as NAME:best-of-n-8"),
}
"""Fields that cannot be honoured: the values that ask for nothing, and why others are refused."""

_NO_FEEDBACK = "it names files and models, which no request may; leave it out for a request to check the draft"
_MOST_TURNS = 8

_LEAST = 1e-6
"""Temperatures and ``top_p`` below are as good as 0: logits divided by them leave the range of float32."""

_LONGEST_REGEX, _MOST_CHOICES, _LONGEST_SCHEMA = 1000, 1000, 20_000
"""Bounds on constraints, which are compiled while other requests wait: a schema of 5000 properties takes seconds."""
_LONGEST_REASON = 500

_LENGTHS = ("max_tokens", "max_completion_tokens")
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_MESSAGE_SAYS_NOTHING = ("name", "type", "refusal")


@dataclass(frozen=True)
class Asked:
    """A request.

    :ivar bool chat: whether it is one for a chat completion.
    :ivar str model: as the client named it.
    :ivar Choice choice: what it stands for.
    :ivar tuple problems: one for each prompt.
    :ivar int n: answers to each.
    :ivar int seed: as given.
    :ivar str constraint: of the solutions' texts.
    :ivar dict options: of :func:`ppl_llm.reasoning`, where they differ from the server's.
    :ivar int rounds: how often a solution is written, see :func:`ppl_llm.revise`.
    :ivar bool details: whether every step is told of while the run is under way.
    """

    chat: bool
    model: str
    choice: Choice
    problems: tuple[Any, ...]
    n: int
    seed: int | None
    stream: bool
    usage: bool
    rounds: int
    details: bool
    deadline: float
    constraint: Constraint | None
    options: dict[str, Any]


def read(body: Any, chat: bool, catalogue: Catalogue, limits: Limits) -> Asked:
    """
    :param body: decoded JSON.
    :raises ApiError: for what cannot be honoured, naming the field.
    """
    fields = Fields(body)
    model = fields.text("model")
    if not model:
        raise ApiError(400, "you must provide a model, see /v1/models", param="model", code="missing_parameter")
    own = Fields(fields.raw("ppl", {}), "ppl.")
    choice = catalogue.choose(model, own)
    constraint = _constraint(fields, own, choice, chat)
    catalogue.check(choice, constrained=constraint is not None)
    options = _options(fields, own, limits)
    streams = fields.flag("stream")
    stream_options = Fields(fields.raw("stream_options", {}), "stream_options.")
    usage = stream_options.flag("include_usage")
    stream_options.ignore(("include_obfuscation",))
    stream_options.finish()
    if fields.has("stream_options") and not streams:
        raise bad_value("stream_options", "stream_options goes with stream: true")
    problems: tuple[Any, ...] = (_messages(fields),) if chat else _prompts(fields, limits)
    asked = Asked(
        chat=chat,
        model=model,
        choice=choice,
        problems=problems,
        n=fields.integer("n", 1, limits.choices) or 1,
        seed=fields.integer("seed", -(2**63), 2**64 - 1),
        stream=streams,
        usage=usage,
        rounds=_turns(own, problems if chat else None, constraint is not None),
        details=own.flag("progress"),
        deadline=own.number("deadline", 0.001, limits.deadline) or limits.deadline,
        constraint=constraint,
        options=options,
    )
    fields.ignore(_SAY_NOTHING)
    for name in fields.left():
        if name in _WHY:
            neutral, why = _WHY[name]
            value = fields.raw(name)
            if not any(value == each and (isinstance(value, bool) is isinstance(each, bool)) for each in neutral):
                raise unsupported(name, why)
    for name in own.left():
        if any(name == option.name for option in _all_options()):
            raise bad_value(own.name(name), f"{own.name(name)} has no effect with method {choice.method.name}")
    own.finish(option.name for option in (*choice.method.options, *MODEL_OPTIONS.values()))
    fields.finish((*_LENGTHS, *_WHY))
    return asked


def _all_options() -> list[Any]:
    return [option for method in METHODS.values() for option in method.options]


def _options(fields: Fields, own: Fields, limits: Limits) -> dict[str, Any]:
    """Keywords of :func:`ppl_llm.reasoning`."""
    found: dict[str, Any] = {
        "temperature": fields.number("temperature", 0.0, 2.0),
        "top_p": fields.number("top_p", 0.0, 1.0),
        "top_k": own.integer("top_k", 1, 1_000_000),
        "max_steps": own.integer("max_steps", 1, limits.steps),
        "final_stop": _stops(fields),
    }
    if fields.has("max_tokens") and fields.has("max_completion_tokens"):
        raise bad_value("max_tokens", "max_tokens and max_completion_tokens are the same; give one")
    for name in _LENGTHS:
        if fields.has(name):
            found["max_tokens_completion"] = fields.integer(name, 1, limits.tokens)
    options = {name: value for name, value in found.items() if value is not None}
    for name in ("temperature", "top_p"):
        if options.get(name, 1) < _LEAST:  # the likeliest token every time
            options |= {"top_k": 1, name: 1.0}
    return options


def _turns(own: Fields, chats: tuple[Any, ...] | None, constrained: bool) -> int:
    rounds = own.integer("rounds", 1, _MOST_TURNS) or 1
    if own.has("feedback"):
        raise unsupported(own.name("feedback"), _NO_FEEDBACK)
    if rounds > 1 and chats is None:
        raise unsupported(own.name("rounds"), "a draft is shown in a chat's next turn, and a prompt is continued as it stands")
    if rounds > 1 and any(chat[-1]["role"] == "assistant" for chat in chats or ()):
        raise unsupported(own.name("rounds"), "the last turn is the assistant's, which is continued and not answered")
    if rounds > 1 and constrained:
        raise unsupported(own.name("rounds"), "a constraint holds for one text, and drafts are others")
    return rounds


def _stops(fields: Fields) -> tuple[str, ...] | None:
    value = fields.raw("stop")
    if value is None:
        return None
    stops = [value] if isinstance(value, str) else value
    fine = isinstance(stops, list) and len(stops) <= 4 and all(isinstance(each, str) and 0 < len(each) <= 1000 for each in stops)
    if not fine:
        raise bad_value("stop", "stop must be a non-empty string or a list of at most 4 of them")
    return tuple(dict.fromkeys(stops)) or None


def _messages(fields: Fields) -> list[dict[str, str]]:
    messages = fields.raw("messages")
    if messages is None:
        raise ApiError(400, "you must provide messages", param="messages", code="missing_parameter")
    if not isinstance(messages, list) or not messages:
        raise bad_value("messages", "messages must be a list of at least one message")
    found = [_message(Fields(each, f"messages[{i}].")) for i, each in enumerate(messages)]
    if not any(each["role"] == "user" and each["content"].strip() for each in found):
        raise bad_value("messages", "messages must hold a user's message with a text")
    return found


def _message(fields: Fields) -> dict[str, str]:
    role = fields.text("role")
    if role in ("tool", "function"):
        raise unsupported(fields.name("role"), "solutions are texts")
    if role not in _ROLES:
        raise bad_value(fields.name("role"), f"{fields.name('role')} must be one of {', '.join(_ROLES)}")
    content = fields.raw("content")
    if isinstance(content, list):
        content = "".join(_part(Fields(part, fields.name(f"content[{i}]."))) for i, part in enumerate(content))
    if not isinstance(content, str):
        raise bad_value(fields.name("content"), f"{fields.name('content')} must be a string or a list of parts of type text")
    fields.ignore(_MESSAGE_SAYS_NOTHING)
    fields.finish()
    return {"role": _ROLES[role], "content": content}


def _part(fields: Fields) -> str:
    if fields.text("type") != "text":
        raise unsupported(fields.name("type"), "only parts of type text can be read")
    text = fields.text("text")
    if text is None:
        raise bad_value(fields.name("text"), f"{fields.name('text')} must be a string")
    fields.finish()
    return text


def _prompts(fields: Fields, limits: Limits) -> tuple[Any, ...]:
    from ..lm.prompts import PlainText

    value = fields.raw("prompt")
    if value is None:
        raise ApiError(400, "you must provide a prompt", param="prompt", code="missing_parameter")
    prompts = [value] if isinstance(value, str) else value
    if not isinstance(prompts, list) or not prompts or not all(isinstance(each, str) for each in prompts):
        raise bad_value("prompt", "prompt must be a string or a list of strings; token ids cannot be read")
    if len(prompts) > limits.choices:
        raise bad_value("prompt", f"prompt must hold at most {limits.choices} texts here, got {len(prompts)}")
    if not all(each.strip() for each in prompts):
        raise bad_value("prompt", "prompt must not be empty")
    return tuple(PlainText(each) for each in prompts)


def _constraint(fields: Fields, own: Fields, choice: Choice, chat: bool) -> Constraint | None:
    """Of ``response_format`` and ``ppl.constraint``, all of what is given at once."""
    from ..constraints.choice import constraint_of

    schema = _response_format(fields) if chat else None
    given = Fields(own.raw("constraint", {}), own.name("constraint."))
    regex, choices = given.text("regex"), given.raw("choices")
    given.finish()
    if regex is not None and not 0 < len(regex) <= _LONGEST_REGEX:
        raise bad_value(given.name("regex"), f"{given.name('regex')} must have 1 to {_LONGEST_REGEX} characters")
    if choices is not None and not (
        isinstance(choices, list) and 0 < len(choices) <= _MOST_CHOICES and all(isinstance(each, str) and each for each in choices)
    ):
        raise bad_value(given.name("choices"), f"{given.name('choices')} must be a list of 1 to {_MOST_CHOICES} texts")
    if schema is None and regex is None and choices is None:
        return None
    blamed = "response_format" if schema is not None else own.name("constraint")
    if not choice.method.proposes:
        raise unsupported(blamed, f"method {choice.method.name} weighs no proposals; choose smc or importance")
    text = None if schema is None else json.dumps(schema)
    if text is not None and len(text) > _LONGEST_SCHEMA:
        raise bad_value(blamed, f"{blamed} must hold a schema of at most {_LONGEST_SCHEMA} characters here, got {len(text)}")
    try:
        return constraint_of(text, regex, choices)
    except ValueError as error:
        raise bad_value(blamed, str(error)[-_LONGEST_REASON:]) from error


def _response_format(fields: Fields) -> Any:
    """A JSON schema, ``None`` for any text."""
    form = Fields(fields.raw("response_format", {"type": "text"}), "response_format.")
    kind = form.text("type")
    readers: dict[str, Callable[[], Any]] = {
        "text": lambda: None,
        "json_object": lambda: {"type": "object"},
        "json_schema": lambda: _schema(Fields(form.raw("json_schema"), "response_format.json_schema.")),
    }
    if kind not in readers:
        raise bad_value("response_format.type", f"response_format.type must be one of {', '.join(readers)}")
    schema = readers[kind]()
    form.finish()
    return schema


def _schema(fields: Fields) -> Any:
    schema = fields.raw("schema")
    fields.ignore(("name", "description", "strict"))
    fields.finish()
    if not isinstance(schema, dict):
        raise bad_value(fields.name("schema"), f"{fields.name('schema')} must be a JSON schema")
    return schema
