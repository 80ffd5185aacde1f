"""Process reward models of the published families, local and on a server."""

from typing import TYPE_CHECKING

from ...lazy_exports import lazy_exports

if TYPE_CHECKING:
    from .families import FAMILIES, PRMFamily, detect_family, get_family, read_config
    from .formats.base import PRMFormat
    from .networks import Qwen2PRM, SkyworkPRM, TokenPairPRM
    from .remote_prm import RemotePRM
    from .transformers_prm import TransformersPRM

_MODULES = {
    "FAMILIES": "families",
    "PRMFamily": "families",
    "PRMFormat": "formats.base",
    "Qwen2PRM": "networks",
    "RemotePRM": "remote_prm",
    "SkyworkPRM": "networks",
    "TokenPairPRM": "networks",
    "TransformersPRM": "transformers_prm",
    "detect_family": "families",
    "get_family": "families",
    "read_config": "families",
}

__all__ = [
    "FAMILIES",
    "PRMFamily",
    "PRMFormat",
    "Qwen2PRM",
    "RemotePRM",
    "SkyworkPRM",
    "TokenPairPRM",
    "TransformersPRM",
    "detect_family",
    "get_family",
    "read_config",
]

__getattr__, __dir__ = lazy_exports(__name__, _MODULES)
