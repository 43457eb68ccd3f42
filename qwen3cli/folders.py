"""Where the user's files are, the XDG base directories, and how they are written."""

from __future__ import annotations

import errno
import os
from pathlib import Path


def xdg(variable: str, fallback: str) -> Path:
    """qwen3's folder below one of the XDG base directories. Raises OSError where the
    user has no home directory."""
    base = Path(os.environ.get(variable, ""))
    if not base.is_absolute():
        try:
            base = Path.home() / fallback
        except RuntimeError:
            raise OSError(errno.ENOENT, "there is no home directory; set it", "HOME") from None
    return base / "qwen3"


def replace(path: Path, text: str) -> None:
    """Writes a file that no kill can leave half written. Raises OSError, with its name."""
    new = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with new.open("x", encoding="utf-8", errors="replace") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    except OSError as error:  # whatever the new file is called is of no interest
        raise type(error)(error.errno, error.strerror, str(path)) from None
    finally:
        new.unlink(missing_ok=True)
