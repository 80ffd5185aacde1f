"""Addresses of servers, their replies, and what is said without the extra."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest

from ppl_llm.remote.address import Address, is_address
from ppl_llm.remote.client import ServerClient
from ppl_llm.remote.completions import Completion
from ppl_llm.remote.errors import MalformedReply

SECRET = "do-not-show-me"


def test_addresses() -> None:
    assert Address.parse("http://host:8000") == Address.parse("http://host:8000/v1/") == ("http://host:8000/v1", "http://host:8000")
    assert Address.parse("https://host/gateway/v1") == ("https://host/gateway/v1", "https://host/gateway")
    assert is_address("https://host") and not is_address("org/model")
    assert is_address(" HTTP://host") and Address.parse(" HTTP://host ") == ("http://host/v1", "http://host")
    with pytest.raises(ValueError, match="looks like http://host:8000/v1") as caught:
        Address.parse("ftp://host")
    with pytest.raises(ValueError, match="user name or password") as caught:
        Address.parse(f"http://me:{SECRET}@host/v1")
    assert SECRET not in str(caught.value)
    with pytest.raises(ValueError, match="no query") as caught:
        Address.parse(f"http://host/v1?key={SECRET}")
    assert SECRET not in str(caught.value)


CHOICE = {"index": 0, "text": "a", "finish_reason": "stop", "token_ids": [1]}


@pytest.mark.parametrize(
    "reply",
    [
        {"choices": []},
        {"choices": [CHOICE, CHOICE]},
        {"choices": [CHOICE, {**CHOICE, "index": 2}]},
        {"choices": [{**CHOICE, "finish_reason": "abort"}]},
        {"choices": [{**CHOICE, "finish_reason": None}]},
        {"choices": [{**CHOICE, "logprobs": {"token_logprobs": [0.0, 0.0]}}]},
        {"choices": None},
        {"error": "busy"},
        [],
        "text",
    ],
)
def test_malformed_completions(reply: Any) -> None:
    with pytest.raises(MalformedReply):
        Completion.parse(reply, 1)
    assert Completion.parse({"choices": [CHOICE]}, 1).choices[0].token_ids == [1]


def test_options_out_of_range() -> None:
    for options, message in [({"max_attempts": 0}, "max_attempts"), ({"timeout": 0}, "timeout"), ({"concurrency": True}, "concurrency")]:
        with pytest.raises(ValueError, match=message):
            ServerClient("http://fake/v1", **options)


def test_a_missing_extra_says_what_to_install() -> None:
    """Everything can be imported without it, and only a model on a server asks for it."""
    code = (
        "import sys; sys.modules['httpx'] = sys.modules['tenacity'] = None\n"
        "from ppl_llm import *\nfrom ppl_llm.remote import *\nfrom ppl_llm.reward import *\n"
        "for make in (OpenAILM, RemotePRM):\n"
        "    try: make('http://fake/v1')\n"
        "    except ImportError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": os.getcwd()})
    message = 'models on a server need httpx and tenacity: pip install "ppl-llm[remote]"'
    assert done.stdout.splitlines() == [message] * 2, done.stderr
