"""Files that come with the package, under the path prefix tcl_d2:// (Detectron2's PathManager)."""

from pathlib import Path

from detectron2.utils.file_io import PathManager
from iopath.common.file_io import PathHandler

FOLDER = Path(__file__).parent


class AssetHandler(PathHandler):
    """Handler of tcl_d2://X, the file X in this folder, wherever the package is installed."""

    PREFIX = "tcl_d2://"

    def _get_supported_prefixes(self) -> list[str]:
        return [self.PREFIX]

    def _get_local_path(self, path: str, force: bool = False, **kwargs) -> str:
        return str(FOLDER / path.removeprefix(self.PREFIX))

    def _open(self, path: str, mode: str = "r", **kwargs):
        return PathManager.open(self._get_local_path(path), mode, **kwargs)

    def _isfile(self, path: str, **kwargs) -> bool:
        return Path(self._get_local_path(path)).is_file()

    _exists = _isfile


PathManager.register_handler(AssetHandler())
