"""Files that are whole or absent: a file is written beside its place under a name of its own, then moved there in one
step.

Whatever happens while a file is written (a full disk, a kill, a power cut), the old file or the new one is there,
whole. A link is written through: what it points to is replaced, and the link stays.
"""

import contextlib
import errno
import glob
import hashlib
import os
import secrets
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # not on Windows, where nothing is locked
    fcntl = None

DISK_IS_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class Busy(ValueError):
    """A file that another run holds."""


def target_of(path: str | os.PathLike, name: str = "path") -> Path:
    """The place where a file will be written: `~` is the home folder, and links are followed. Raises ValueError for a
    path that cannot be a file of results."""
    path = Path(path).expanduser()
    target = Path(os.path.realpath(path))
    if not target.parent.is_dir():
        raise ValueError(
            f"Argument `{name}` must name a file in a folder that exists, but is {str(path)!r}: make the folder first."
        )
    try:
        mode = target.stat().st_mode
    except FileNotFoundError:
        return target
    except OSError as error:  # a name too long, links in a circle
        raise ValueError(
            f"Argument `{name}` must name a file, but {str(path)!r} cannot be one: {error.strerror}."
        ) from error
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a device, pipe or socket"
        raise ValueError(f"Argument `{name}` must name a file, but {str(path)!r} is {kind}: choose another name.")
    return target


def write_whole(path: str | os.PathLike, content: bytes | memoryview, name: str = "path") -> Path:
    """Replace a file by `content` in one step; returns `path` as it was given.

    Raises ValueError for a path that can be no file, and OSError, with a sentence, if nothing could be written: the old
    file is then untouched.
    """
    target = target_of(path, name)
    _sweep(target)
    try:
        _replace(target, content)
    except OSError as error:
        why = "the disk or a quota is full" if error.errno in DISK_IS_FULL else os.strerror(error.errno or 0)
        kept = "the file that was there is unchanged" if target.exists() else "no file was left behind"
        raise OSError(error.errno, f"Nothing was written, because {why}; {kept}", str(path)) from error
    return Path(path)


def check_writable(path: str | os.PathLike, name: str = "path") -> Path:
    """Check that a file can be written, by writing a small file beside it. Call this before the work whose result the
    file will hold."""
    target = target_of(path, name)
    try:
        with _beside(target) as (file, _):
            file.write(bytes(1024))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise ValueError(
            f"Argument `{name}` must name a file that can be written, but {str(path)!r} cannot: {error.strerror}. "
            "Nothing was computed yet: choose another place."
        ) from error
    return target


@contextlib.contextmanager
def held(path: str | os.PathLike) -> Iterator[None]:
    """Hold a file for one run, by a lock on a small file beside it. Raises Busy, with the name of the holder, if
    another run holds the file.

    A lock ends with its process, however the process ends. Where the file system knows no locks, nothing is held.
    """
    lock = _short(target_of(path), "lock")
    while True:
        file = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if not _lock(file):
                holder = os.read(file, 200).decode(errors="replace") or "another process"
                raise Busy(f"{path} is in use by {holder}: wait until that run ends, or name another file.")
            if os.fstat(file).st_nlink:  # else its last holder removed it between our two calls
                os.truncate(file, 0)
                os.write(file, f"process {os.getpid()} on {socket.gethostname()}".encode())
                try:
                    yield
                finally:
                    lock.unlink(missing_ok=True)
                return
        finally:
            os.close(file)


def _replace(target, content):
    with _beside(target) as (file, part):
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
        if target.exists():
            part.chmod(stat.S_IMODE(target.stat().st_mode))
        if fcntl is None:  # Windows moves no open file
            file.close()
        os.replace(part, target)
    with contextlib.suppress(OSError):  # the folder's entry, where folders can be synchronised
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


@contextlib.contextmanager
def _beside(target):
    """A new, locked file in the target's folder, which is gone afterwards unless it was moved."""
    if target.exists() and not os.access(target, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(target))
    part = _short(target, f"{secrets.token_hex(6)}.part")
    file = part.open("xb")
    try:
        _lock(file.fileno())  # tells others that its writer lives
        yield file, part
    finally:
        with contextlib.suppress(OSError):  # what a full disk did not take is written again on closing
            file.close()
        part.unlink(missing_ok=True)


def _short(target, ending):
    """A hidden name beside a file, which fits a file system whatever the file's own length."""
    digest = hashlib.sha256(os.fsencode(target.name)).hexdigest()[:8]
    return target.with_name(f".{target.name[:40]}.{digest}.{ending}")


def _sweep(target):
    """Remove the parts of this file that killed writers left: those whose lock nobody holds any more."""
    if fcntl is None:
        return
    for part in target.parent.glob(f"{glob.escape(_short(target, '').name)}*.part"):
        with contextlib.suppress(OSError), part.open("rb+") as file:
            if _lock(file.fileno()):
                part.unlink(missing_ok=True)


def _lock(file):
    """Lock an open file. False if another process holds the lock; True also where the file system knows no locks."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True
