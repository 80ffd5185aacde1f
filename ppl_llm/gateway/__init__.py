"""An OpenAI-compatible server in front of the algorithms: any client gets inference-time scaling, and sees why (extra ``serve``)."""

from ..lazy_exports import lazy_exports

_MODULES = {
    "Gateway": "gateway",
    "Limits": "limits",
    "Served": "solver",
    "create_app": "app",
    "serve": "server",
}

__all__ = ["Gateway", "Limits", "Served", "create_app", "serve"]

__getattr__, __dir__ = lazy_exports(__name__, _MODULES)
