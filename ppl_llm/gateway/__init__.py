"""An OpenAI-compatible server in front of the algorithms: any client gets inference-time scaling, and sees why (extra ``serve``)."""

from ..lazy_exports import lazy_exports

_MODULES = {
    "Choice": "catalogue",
    "Gateway": "gateway",
    "GatewayServer": "server",
    "Keys": "guard",
    "Limits": "limits",
    "Served": "solver",
    "create_app": "app",
}

__all__ = ["Choice", "Gateway", "GatewayServer", "Keys", "Limits", "Served", "create_app"]

__getattr__, __dir__ = lazy_exports(__name__, _MODULES)
