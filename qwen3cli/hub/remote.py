"""The Hugging Face Hub over HTTP: what a repository holds, and the bytes of its files.

Whatever a server sends is checked before it is used: names, sizes, ranges, redirects. The
token goes to the hub's own origin and nowhere else.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from time import sleep
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

import httpx2

from qwen3cli import __version__
from qwen3cli.errors import FormatError, ModelNotFound, Qwen3Error, UsageError

if TYPE_CHECKING:
    from hashlib import _Hash

_MOST_REDIRECTS = 5
_MOST_LISTING = 32 * 2**20  # bytes
_LONGEST_WAIT = 300.0  # seconds that a server may ask for: the hub counts requests in 5 minutes
_PASSING = {408, 425, 429, 500, 502, 503, 504}
_COMMIT = re.compile(r"[0-9a-f]{40}\Z")
_RANGE = re.compile(r"bytes (\d{1,18})-\d{1,18}/(\d{1,18})\Z")
_LOOPBACK = re.compile(r"localhost|127(\.\d+){3}|::1")


class Unreachable(Qwen3Error):
    """The network, or the server, fails again and again."""


class Passing(Exception):
    """A failure that another attempt may not meet. wait: the seconds asked for."""

    def __init__(self, text: str, wait: float | None = None) -> None:
        super().__init__(text)
        self.wait = wait


class WrongRange(Passing):
    """The server cannot go on from where it was asked to."""


class Patience:
    """How often to try again, and when."""

    def __init__(self, attempts: int, note: Callable[[str], None]) -> None:
        """attempts: as many in a row that brought nothing are the end."""
        self._attempts = attempts
        self._note = note
        self._failures = 0

    def renew(self) -> None:
        """Something was received."""
        self._failures = 0

    def wait(self, error: Passing) -> None:
        """Until the next attempt. Raises Unreachable when there is none."""
        self._failures += 1
        if self._failures >= self._attempts:
            raise Unreachable(
                f"{error} (tried {self._failures} times); check the connection, or try again later"
            )
        seconds = min(0.5 * 2 ** (self._failures - 1), 30.0)
        if error.wait is not None:
            if error.wait > _LONGEST_WAIT:
                raise Unreachable(f"{error}; try again in {error.wait:,.0f} s, as it asks")
            seconds = error.wait
        if seconds > 2:
            self._note(f"{error}; trying again in {seconds:.0f} s")
        sleep(seconds)


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository, as the hub describes it."""

    name: str
    size: int
    digest: str  # the sha256 of a large file, the git blob id of a small one; its name in caches

    def hasher(self) -> _Hash:
        """What a digest of the content is computed with."""
        if len(self.digest) == 64:
            return hashlib.sha256()
        return hashlib.sha1(b"blob %d\0" % self.size, usedforsecurity=False)


@dataclass(frozen=True)
class Listing:
    """The files of a repository at a commit."""

    repository: str
    commit: str
    _entries: dict[str, Any] = field(repr=False)

    @property
    def names(self) -> list[str]:
        """As the hub lists them, hostile ones too."""
        return list(self._entries)

    def file(self, name: str) -> RemoteFile:
        """Raises FormatError for a file whose size and digest are not told."""
        entry = self._entries[name]
        large = entry.get("lfs")
        told = large if isinstance(large, dict) else entry
        size, digest = told.get("size"), told.get("blobId" if told is entry else "sha256")
        n_digits = 40 if told is entry else 64
        whole = isinstance(digest, str) and re.fullmatch(f"[0-9a-f]{{{n_digits}}}", digest)
        if type(size) is not int or not 0 <= size < 2**50 or not whole:
            raise FormatError(
                f"{self.repository}: the hub tells no size and checksum of {name}; "
                "it cannot be checked and was not fetched"
            )
        return RemoteFile(name, size, str(digest))


class Hub:
    """A hub, by default that of $HF_ENDPOINT. Closes its connections at the end of a with."""

    def __init__(self, note: Callable[[str], None]) -> None:
        """note: is told of long waits."""
        from huggingface_hub import constants, get_token

        if constants.HF_HUB_OFFLINE:
            raise Unreachable("HF_HUB_OFFLINE is set: the hub is not asked; unset it for that")
        self.endpoint = constants.ENDPOINT
        try:
            at, self._url = urlsplit(self.endpoint), httpx2.URL(self.endpoint)
        except (ValueError, httpx2.InvalidURL):
            at = urlsplit("")
        if at.scheme not in ("http", "https") or not at.hostname:
            raise UsageError(f"HF_ENDPOINT {self.endpoint}: an address is needed, https://...")
        if "@" in at.netloc:  # messages tell the address
            raise UsageError("HF_ENDPOINT: has a password in it; set HF_TOKEN instead")
        self._note = note
        tokens = f"({self.endpoint}/settings/tokens)"
        self._way_in = f"set HF_TOKEN to your token {tokens}"  # for who is refused
        headers = {"User-Agent": f"qwen3/{__version__}", "Accept-Encoding": "identity"}
        # Nobody on the way reads the token: not a proxy either, that of a hub on this machine.
        local = _LOOPBACK.fullmatch(at.hostname)
        direct: dict[str, None] = {f"http://{at.netloc}": None} if local else {}
        if at.scheme == "http" and not local:
            self._way_in = "set HF_ENDPOINT to an https address: no token is sent by plain http"
        elif constants.HF_HUB_DISABLE_IMPLICIT_TOKEN:  # nothing here takes an explicit one
            self._way_in = "unset HF_HUB_DISABLE_IMPLICIT_TOKEN: no token is sent while it is set"
        elif token := get_token():
            if not token.isascii() or not token.isprintable():
                raise UsageError("HF_TOKEN: has characters that no token has")
            headers["Authorization"] = f"Bearer {token}"
            self._way_in = f"set HF_TOKEN to a token that may read it {tokens}"
        try:
            self._client = httpx2.Client(
                headers=headers,
                timeout=float(constants.HF_HUB_DOWNLOAD_TIMEOUT),
                mounts=direct,
            )
        except (ValueError, ImportError) as error:  # of HTTPS_PROXY and the like
            raise Qwen3Error(f"the settings of the proxy are wrong: {error}") from None

    def __enter__(self) -> Hub:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def listing(self, repository: str, revision: str) -> Listing:
        """The files at a branch, tag or commit. Raises ModelNotFound, Unreachable."""
        url = f"{self.endpoint}/api/models/{repository}/revision/{quote(revision, safe='')}"
        patience = Patience(5, self._note)
        while True:
            try:
                body = bytearray()
                with self._get(f"{url}?blobs=true", repository, revision) as response:
                    for chunk in response.iter_raw():
                        body += chunk
                        if len(body) > _MOST_LISTING:
                            raise FormatError(f"{repository}: the hub's list of files has no end")
                listing = _parsed(repository, bytes(body))
                if _COMMIT.match(revision) and listing.commit != revision:
                    raise FormatError(
                        f"{repository}: the hub was asked for {revision} and tells of "
                        f"{listing.commit}; nothing was fetched"
                    )
                return listing
            except Passing as error:
                patience.wait(error)

    @contextmanager
    def body(self, listing: Listing, file: RemoteFile, start: int) -> Iterator[Iterator[bytes]]:
        """The bytes of a file from start on. Raises Passing for what another attempt may not
        meet, there and while they are read; WrongRange if only a start at 0 can go on."""
        at = f"{listing.repository}/resolve/{listing.commit}/{quote(file.name)}"
        headers = {"Range": f"bytes={start}-"} if start else {}
        with self._get(
            f"{self.endpoint}/{at}", listing.repository, listing.commit, **headers
        ) as response:
            _check_extent(response, start, file.size)
            yield response.iter_raw()

    @contextmanager
    def _get(
        self, url: str, repository: str, revision: str, **headers: str
    ) -> Iterator[httpx2.Response]:
        """The answer at the end of all redirects, with status 200 or 206."""
        try:
            request = self._client.build_request("GET", url, headers=headers)
            for _ in range(_MOST_REDIRECTS + 1):
                with closing(self._client.send(request, stream=True)) as response:
                    if not response.has_redirect_location:
                        self._check_status(response, repository, revision)
                        yield response
                        return
                request = self._redirected(response)
        except (httpx2.TransportError, UnicodeError) as error:  # the latter of a host's name
            host = urlsplit(url).netloc
            why = re.sub(r"^\[Errno -?\d+\] ", "", str(error)) or type(error).__name__
            raise Passing(f"{host}: {why}") from None
        raise Qwen3Error(f"{url}: more than {_MOST_REDIRECTS} redirects; nothing was fetched")

    def _redirected(self, response: httpx2.Response) -> httpx2.Request:
        """The next request, if it is no less private than the last one."""
        at, request = response.request.url, response.next_request
        if request is None:
            raise Qwen3Error(f"{at.host}: redirects to what is no address; nothing was fetched")
        if request.url.scheme not in ("https", at.scheme):
            raise Qwen3Error(
                f"{at.host}: redirects from {at.scheme}:// to {request.url.scheme}://; refused"
            )
        if request.url.origin != self._url.origin:
            request.headers.pop("Authorization", None)
        return request

    def _check_status(self, response: httpx2.Response, repository: str, revision: str) -> None:
        status, at = response.status_code, response.request.url
        if status in (200, 206):
            return
        text = f"{at.netloc.decode('ascii')}: answers {status} {response.reason_phrase}".rstrip()
        if status == 416:
            raise WrongRange(text)
        # Another host's refusals: an address that was signed for a while may have expired.
        if status in _PASSING or at.origin != self._url.origin:
            raise Passing(text, _retry_after(response.headers.get("Retry-After")))
        raise self._refusal(text, response, repository, revision)

    def _refusal(
        self, text: str, response: httpx2.Response, repository: str, revision: str
    ) -> Qwen3Error:
        """The error for a status that stays, with the step to take."""
        status, code = response.status_code, response.headers.get("X-Error-Code", "")
        if code == "GatedRepo":
            return Qwen3Error(
                f"{repository}: is gated; accept its licence at {self.endpoint}/{repository} "
                f"and {self._way_in}"
            )
        if code == "RevisionNotFound":
            return ModelNotFound(f"{repository}: has no revision {revision}")
        if code == "EntryNotFound":
            return ModelNotFound(f"{response.request.url.path}: is listed, but not there")
        if code == "RepoNotFound" or status == 404:
            return ModelNotFound(
                f"{repository}: there is no such repository on {self.endpoint}; if it is a "
                f"private one, {self._way_in}"
            )
        if status in (401, 403):
            return Qwen3Error(f"{text}; {self._way_in}")
        return Qwen3Error(f"{text}; nothing was fetched")


def _parsed(repository: str, body: bytes) -> Listing:
    try:
        told = json.loads(body)
        commit, entries = told["sha"], {each["rfilename"]: each for each in told["siblings"]}
        if _COMMIT.match(commit) and all(isinstance(name, str) for name in entries):
            return Listing(repository, commit, entries)
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    raise FormatError(f"{repository}: the hub's answer is no list of files; check HF_ENDPOINT")


def _check_extent(response: httpx2.Response, start: int, size: int) -> None:
    """Raises Passing unless the answer is the file from start to its end."""
    host = response.request.url.host
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise Passing(f"{host}: sends the file compressed")
    if response.status_code == 206:
        told = response.headers.get("Content-Range", "")
        found = _RANGE.match(told)
        if not found or (int(found[1]), int(found[2])) != (start, size):
            raise WrongRange(
                f"{host}: was asked for bytes from {start} on, sends {told or 'others'}"
            )
    elif start:
        raise WrongRange(f"{host}: sends files from their beginning only")
    else:
        length = response.headers.get("Content-Length", str(size))
        if length != str(size):
            raise Passing(f"{host}: sends {length} bytes, the hub lists {size}")


def _retry_after(told: str | None) -> float | None:
    """Seconds, from a number of them or a date."""
    if told is None:
        return None
    if told.strip().isascii() and told.strip().isdigit():
        return float(told.strip()[:9])
    try:
        date = parsedate_to_datetime(told)
    except ValueError:
        return None
    if date.tzinfo is None:
        date = date.replace(tzinfo=timezone.utc)
    return max(0.0, (date - datetime.now(timezone.utc)).total_seconds())
