"""transformers is passed on as a module, so its types are never seen: to read them takes pyright half a minute."""

from typing import Any

__version__: str

def __getattr__(name: str) -> Any: ...
