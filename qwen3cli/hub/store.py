"""Files of a repository into the local Hugging Face cache, whose layout other tools share:

    .locks/models--OWNER--NAME/DIGEST.lock
    models--OWNER--NAME/blobs/DIGEST                 a file; DIGEST.incomplete: its beginning
    models--OWNER--NAME/snapshots/COMMIT/PATH        a link to it
    models--OWNER--NAME/refs/REVISION                a commit

A file gets its name in blobs when its digest was found right, and the links of a pull come
when all its files are there: what is killed leaves beginnings, never a model.
"""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from quant.output import sync
from qwen3cli.errors import DamagedFile, Qwen3Error
from qwen3cli.hub import local
from qwen3cli.hub.remote import Hub, Listing, Passing, Patience, RemoteFile, WrongRange

if TYPE_CHECKING:
    from hashlib import _Hash

_PIECE = 2**20  # bytes, of what is read to be hashed
_ATTEMPTS = 10  # in a row without a byte: two minutes


@contextmanager
def locked(repository: str, note: Callable[[str], None] | None) -> Iterator[None]:
    """Keeps what is fetched and what is removed of a repository apart. With a note, which is told
    of a wait, beside others that fetch; without one alone, to remove. Raises Qwen3Error when
    somebody is fetching."""
    folder = local.folder(repository)
    path = folder.parent / ".locks" / folder.name / "qwen3.lock"
    inside(path, folder.parent).parent.mkdir(parents=True, exist_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    kind = fcntl.LOCK_SH if note else fcntl.LOCK_EX
    try:
        try:
            fcntl.flock(fd, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            if not note:
                raise Qwen3Error(
                    f"{repository}: another process is fetching or removing of it; wait for that"
                ) from None
            note(f"{repository}: another process removes of it; waiting for that")
            fcntl.flock(fd, kind)
        yield
    finally:
        os.close(fd)


def inside(path: Path, root: Path, what: str = "the cache") -> Path:
    """The path, if no link on its way leads out of the folder root. Raises Qwen3Error."""
    real = local.real(path)
    if not real.is_relative_to(local.real(root)):
        raise Qwen3Error(f"{path}: leads out of {what}, to {real}; remove that link")
    return path


class Store:
    """The cached files of a repository at a commit."""

    def __init__(self, listing: Listing, note: Callable[[str], None]) -> None:
        self._listing = listing
        self._note = note
        self._folder = local.folder(listing.repository)
        self.root = self._folder.parent  # the cache
        self._blobs = self._folder / "blobs"
        self.snapshot = self._folder / "snapshots" / listing.commit

    def has(self, file: RemoteFile) -> bool:
        """Whether it is in the snapshot, in its size. What is there was hashed before."""
        try:
            found = self._own(self.snapshot / file.name).stat()
        except OSError:
            return False
        return stat.S_ISREG(found.st_mode) and found.st_size == file.size

    def missing_bytes(self, file: RemoteFile) -> int:
        """What of a file has to be fetched yet."""
        return _missing(file, *self._blob(file))

    def missing_again(self, file: RemoteFile) -> int:
        """The same where the file is there, but damaged."""
        return _missing(file, self._blob(file)[1])

    def fetch(self, source: Hub, file: RemoteFile, received: Callable[[int], None]) -> None:
        """Brings a file among the blobs, from where an earlier fetch ended. received: is
        told how many bytes came, or, as less than 0, how many have to come again. Raises
        DamagedFile when the content is not what the hub lists; it is gone then."""
        blob, part = self._blob(file)
        lock = self.root / ".locks" / self._folder.name / f"{file.digest}.lock"
        for folder in (blob.parent, lock.parent):
            self._make(folder)
        with self._locked(self._own(lock), file):
            if self._is_whole(self._own(blob), file):
                part.unlink(missing_ok=True)
                return
            with _opened(self._own(part)) as out:
                _Download(source, self._listing, file, out, received, self._note).run(part)
                part.replace(blob)
            sync(blob.parent)

    def publish(self, files: Iterable[RemoteFile], revision: str) -> None:
        """Puts fetched files into the snapshot; config.json, without which weights are none,
        last. revision: the name that the commit is known by from then on."""
        for file in sorted(files, key=lambda file: file.name == "config.json"):
            link = self.snapshot / file.name
            self._make(link.parent)
            _link(link, self._blob(file)[0])
        if revision != self._listing.commit:
            self._name(revision)

    def _name(self, revision: str) -> None:
        ref = self._folder / "refs" / revision
        self._make(ref.parent)
        part = ref.with_name(f".{ref.name}.{os.getpid()}")
        part.write_text(self._listing.commit, "ascii")
        part.replace(ref)

    def _blob(self, file: RemoteFile) -> tuple[Path, Path]:
        """The file, and the beginning of it."""
        return self._blobs / file.digest, self._blobs / f"{file.digest}.incomplete"

    def _own(self, path: Path) -> Path:
        return inside(path, self.root)

    def _make(self, folder: Path) -> None:
        self._own(folder).mkdir(parents=True, exist_ok=True)

    def _is_whole(self, blob: Path, file: RemoteFile) -> bool:
        """Whether the file is there already, by whatever tool."""
        try:
            with blob.open("rb") as data:
                hasher = file.hasher()
                return _read(data, hasher) == file.size and hasher.hexdigest() == file.digest
        except FileNotFoundError:
            return False

    @contextmanager
    def _locked(self, lock: Path, file: RemoteFile) -> Iterator[None]:
        """The cache's lock of the file, which its other users take as well."""
        from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

        with ExitStack() as stack:
            try:
                stack.enter_context(WeakFileLock(lock, timeout=0.2))
            except TimeoutError:
                self._note(f"{file.name}: another process fetches it; waiting for that")
                stack.enter_context(WeakFileLock(lock))
            yield


class _Download:
    """One file, by as many requests as it takes."""

    def __init__(
        self,
        source: Hub,
        listing: Listing,
        file: RemoteFile,
        out: BinaryIO,
        received: Callable[[int], None],
        note: Callable[[str], None],
    ) -> None:
        """out: what there is of the file."""
        self._source, self._listing, self._file = source, listing, file
        self._out = out
        self._received = received
        self._patience = Patience(_ATTEMPTS, note)
        self._hasher = file.hasher()
        self._position = 0  # bytes written and hashed
        self._furthest = 0  # that it ever was
        self._patched = False  # it did not come in answer to one request

    def run(self, part: Path) -> None:
        """Fills out, to the disk. part: its path, removed when the content is wrong."""
        if os.fstat(self._out.fileno()).st_size <= self._file.size:
            self._position = _read(self._out, self._hasher)
            self._patched = self._position > 0
        self._fill()
        if not self._is_right() and self._patched:
            # A beginning from another day may be at fault: once more.
            self._restart()
            self._fill()
        if not self._is_right():
            part.unlink()
            raise DamagedFile(
                f"{self._file.name}: what {self._source.endpoint} sent has another checksum "
                f"than it lists for {self._listing.repository}; the file was removed"
            )
        self._out.flush()
        os.fsync(self._out.fileno())

    def _is_right(self) -> bool:
        return self._hasher.hexdigest() == self._file.digest

    def _fill(self) -> None:
        """Receives what is missing."""
        self._out.seek(self._position)
        self._out.truncate()
        while self._position < self._file.size:
            self._patched |= self._position > 0
            try:
                self._receive()
            except Passing as error:
                if self._position > self._furthest:
                    self._patience.renew()
                self._furthest = max(self._furthest, self._position)
                if isinstance(error, WrongRange):
                    self._restart()
                self._patience.wait(error)

    def _receive(self) -> None:
        """What one request brings."""
        with self._source.body(self._listing, self._file, self._position) as chunks:
            for chunk in chunks:
                if self._position + len(chunk) > self._file.size:
                    raise WrongRange(f"{self._file.name}: more comes than the hub lists")
                self._out.write(chunk)
                self._hasher.update(chunk)
                self._position += len(chunk)
                self._received(len(chunk))
        if self._position < self._file.size:
            raise Passing(f"{self._file.name}: the connection ended early")

    def _restart(self) -> None:
        self._received(-self._position)
        self._position, self._hasher, self._patched = 0, self._file.hasher(), False
        self._out.seek(0)
        self._out.truncate()


def _missing(file: RemoteFile, *places: Path) -> int:
    """Bytes of a file that are not in the first of these that may be, or begin, it."""
    for path in places:
        try:
            size = path.stat().st_size
        except OSError:
            continue
        if size <= file.size:
            return file.size - size
    return file.size


def _opened(part: Path) -> BinaryIO:
    """To read and to go on, without following a link."""
    fd = os.open(part, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise Qwen3Error(f"{part}: is no regular file; remove it")
    return open(fd, "r+b")  # noqa: PTH123


def _read(data: BinaryIO, hasher: _Hash) -> int:
    """Hashes a file to its end; its bytes."""
    n = 0
    while piece := data.read(_PIECE):
        hasher.update(piece)
        n += len(piece)
    return n


def _link(link: Path, blob: Path) -> None:
    """A relative link, as the cache has them, in place of whatever is there."""
    while True:
        try:
            link.symlink_to(os.path.relpath(blob, link.parent))
            return
        except FileExistsError:  # an old one, or that of another process, or a copied file
            if link.exists() and (not blob.exists() or link.samefile(blob)):
                return
            link.unlink(missing_ok=True)
