"""The library transformers, which takes seconds to import and is optional."""

from types import ModuleType


def import_transformers(method: str, oldest: tuple[int, int]) -> ModuleType:
    """Import transformers for a method; RuntimeError says what to install, also for an older one than `oldest`."""
    version = ".".join(map(str, oldest))
    remedy = f"pip install 'transformers>={version}'"
    try:
        import transformers
    except ImportError as error:
        raise RuntimeError(f"{method} needs transformers, which cannot be imported ({error}): {remedy}") from None

    if tuple(map(int, transformers.__version__.split(".")[:2])) < oldest:
        raise RuntimeError(
            f"{method} needs transformers {version} or newer, but {transformers.__version__} is installed: {remedy}"
        )
    return transformers
