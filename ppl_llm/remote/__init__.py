"""Requests to model servers, shared by the language model and the reward model that live on one."""

from typing import TYPE_CHECKING

from ..lazy_exports import lazy_exports

if TYPE_CHECKING:
    from .address import Address, is_address
    from .client import ServerClient
    from .completion_service import CompletionService
    from .completions import Choice, Completion
    from .errors import MalformedReply, ServerError, TransientError
    from .served import ServedModel
    from .served_tokenizer import ServedTokenizer
    from .text_mode import TextMode
    from .token_mode import TokenMode

_MODULES = {
    "Address": "address",
    "Choice": "completions",
    "Completion": "completions",
    "CompletionService": "completion_service",
    "MalformedReply": "errors",
    "ServedModel": "served",
    "ServedTokenizer": "served_tokenizer",
    "ServerClient": "client",
    "ServerError": "errors",
    "TextMode": "text_mode",
    "TokenMode": "token_mode",
    "TransientError": "errors",
    "is_address": "address",
}

__all__ = [
    "Address",
    "Choice",
    "Completion",
    "CompletionService",
    "MalformedReply",
    "ServedModel",
    "ServedTokenizer",
    "ServerClient",
    "ServerError",
    "TextMode",
    "TokenMode",
    "TransientError",
    "is_address",
]

__getattr__, __dir__ = lazy_exports(__name__, _MODULES)
