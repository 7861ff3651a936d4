"""Files of the package, under the path prefix tcl_d2:// (Detectron2's PathManager), and the configs."""

from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path

from detectron2.utils.file_io import PathManager
from iopath.common.file_io import PathHandler

FOLDER = Path(__file__).parent
_CONFIGS = FOLDER / "configs"
if not _CONFIGS.is_dir():  # in a clone they lie beside the package
    _CONFIGS = FOLDER.parent.parent / "configs"


class FolderHandler(PathHandler):
    """Handler of a prefix that stands for a folder, which may change between calls: prefix + X is the file X in it."""

    def __init__(self, prefix: str, folder: Callable[[], Path]):
        super().__init__()
        self.prefix, self.folder = prefix, folder

    def _get_supported_prefixes(self) -> list[str]:
        return [self.prefix]

    def _get_local_path(self, path: str, force: bool = False, **kwargs) -> str:
        return str(self.folder() / path.removeprefix(self.prefix))

    def _open(self, path: str, mode: str = "r", **kwargs):
        return PathManager.open(self._get_local_path(path), mode, **kwargs)

    def _isfile(self, path: str, **kwargs) -> bool:
        return Path(self._get_local_path(path)).is_file()

    _exists = _isfile


PREFIX = "tcl_d2://"
PathManager.register_handler(FolderHandler(PREFIX, lambda: FOLDER))


def list_configs() -> list[str]:
    """List the project's configs by name, such as "shapes/tcl.yaml", and LazyConfigs (.py)."""
    paths = (path for suffix in (".yaml", ".py") for path in _CONFIGS.rglob(f"*{suffix}"))
    return sorted(path.relative_to(_CONFIGS).as_posix() for path in paths)


def get_config_file(config_path: str) -> str:
    """Return the path of a config of the project, such as "shapes/tcl.yaml", or of a LazyConfig (.py).

    Raises:
        FileNotFoundError: there is no config of this name; lists the nearest names, or all.
    """
    names = list_configs()
    if config_path in names:
        return str(_CONFIGS / config_path)

    nearest = get_close_matches(config_path, names, n=3) or names
    raise FileNotFoundError(
        f"no config '{config_path}': there is no such file, and no config of this name comes with the project; "
        f"names: {', '.join(nearest)}"
    )
