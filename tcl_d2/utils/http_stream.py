"""A file on the web as a stream, which reconnects and resumes at the byte where the connection broke."""

import io
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from http.client import HTTPException, HTTPResponse
from typing import Any, BinaryIO
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

logger = logging.getLogger(__name__)

PAUSES = (1, 2, 4, 8, 16, 32)  # seconds before each further try; reading on begins the count anew
_TIMEOUT = 60.0  # seconds without a byte after which a connection counts as broken
_PASSING_STATUS = (408, 425, 429, 500, 502, 503, 504)  # a server that answers so may answer otherwise soon


class UnreadableAddress(OSError):
    """An address that cannot be read, also after further tries.

    Attributes:
        reason: what went wrong, in a few words.
        status: the server's status, such as 404; None if it did not answer.
    """

    def __init__(self, address: str, reason: str, status: int | None = None):
        super().__init__(f"{address} cannot be read: {reason}")
        self.address = address
        self.reason = reason
        self.status = status


class _Changed(OSError):
    """The file changed on the server while it was read."""


class _RedirectHandler(HTTPRedirectHandler):
    """Keeps headers such as a token on the same host, and gives them to no other."""

    def redirect_request(self, request: Request, *args) -> Request | None:
        redirected = super().redirect_request(request, *args)
        if redirected is not None and urlsplit(redirected.full_url)[:2] == urlsplit(request.full_url)[:2]:
            redirected.unredirected_hdrs.update(request.unredirected_hdrs)
        return redirected


_OPENER = build_opener(_RedirectHandler)


class HTTPStream(io.RawIOBase):
    """The content of an http(s) address, seekable from its beginning.

    Attributes:
        size: bytes in all; None if the server does not tell.
        version: distinguishes this content of the address from a later one; "" if the server does not tell.
    """

    def __init__(self, address: str, headers: Mapping[str, str] | None = None, pauses: Sequence[float] = PAUSES):
        """Connect; UnreadableAddress if there is no connection, or no such file.

        Args:
            headers: for the host of the address alone, such as a token.
            pauses: seconds to wait before each further try where the connection fails.
        """
        super().__init__()
        self._address = address
        self._headers = headers or {}
        self._pauses = pauses
        self._position = 0
        self._response: HTTPResponse | None = None
        self.size: int | None = None
        self.version: str | None = None
        self._persist(lambda: None)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence != io.SEEK_SET:
            raise io.UnsupportedOperation("only from the beginning")
        if offset != self._position:
            self._disconnect()
            self._position = offset
        return offset

    def readinto(self, buffer: memoryview) -> int:
        """Read some bytes; 0 at the end. UnreadableAddress if the connection broke for good."""
        if self._position == self.size:
            return 0
        return self._persist(lambda: self._read_some(buffer))

    def close(self) -> None:
        self._disconnect()
        super().close()

    def _persist(self, step: Callable[[], Any]) -> Any:
        """Do a step with a connection; if that fails, retry with a new one after a pause."""
        for pause in (*self._pauses, None):
            try:
                if self._response is None:
                    self._connect()
                return step()
            except (OSError, HTTPException) as error:
                self._disconnect()
                reason = _reason(error)
                if pause is None or not _may_pass(error):
                    raise UnreadableAddress(self._address, reason, getattr(error, "code", None)) from None
                logger.warning("%s: %s; trying again in %g s", self._address, reason, pause)
                time.sleep(pause)

    def _connect(self) -> None:
        """Request the content from the position on."""
        request = Request(self._address)
        request.unredirected_hdrs.update(self._headers)
        if self._position:
            request.add_header("Range", f"bytes={self._position}-")
        response = self._response = _OPENER.open(request, timeout=_TIMEOUT)

        # Check that it is the content that was begun
        is_part = response.status == 206
        length = response.headers.get("Content-Range", "").rpartition("/")[2] if is_part else response.length
        size = int(length) if str(length).isdigit() else None
        version = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
        if self.version is not None and (size, version) != (self.size, self.version):
            raise _Changed("the file has changed on the server while it was read")
        self.size, self.version = size, version

        # A server that gives no parts begins at the beginning
        remaining = 0 if is_part else self._position
        while remaining:
            skipped = response.read(min(remaining, 1 << 20))
            if not skipped:
                raise ConnectionError("the connection was cut")
            remaining -= len(skipped)

    def _read_some(self, buffer: memoryview) -> int:
        count = self._response.readinto(buffer)
        if count == 0 and self.size is not None:
            raise ConnectionError(f"the connection was cut after {self._position:,} of {self.size:,} bytes")
        self._position += count
        return count

    def _disconnect(self) -> None:
        if self._response is not None:
            self._response.close()
            self._response = None


def _may_pass(error: Exception) -> bool:
    if isinstance(error, HTTPError):
        return error.code in _PASSING_STATUS
    return not isinstance(error, _Changed)


def _reason(error: Exception) -> str:
    if isinstance(error, HTTPError):
        return f"HTTP {error.code} {error.reason}"
    reason = error.reason if isinstance(error, URLError) else error
    return str(reason) or type(reason).__name__


def is_web_page(file: BinaryIO) -> bool:
    """Return whether a newly opened file begins as HTML or XML: sites send pages in place of files."""
    return file.read(512).lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml"))
