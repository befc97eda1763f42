"""Fetching and unpacking archives: gone on with after a break, checked, and never outside of their folder."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import http.client
import lzma
import shutil
import stat
import tarfile
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from .. import files
from ..errors import DataError, DownloadError, WriteError

LIMIT = 4 * 2**30  # bytes of an archive, and of what it holds
MEMBERS = 200_000  # files in an archive
_CHUNK = 2**18
_DAMAGED = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    gzip.BadGzipFile,
    EOFError,
    NotImplementedError,  # a way of compression that Python does not know
    RuntimeError,  # encrypted
)


def sha256_of(path: str | Path) -> str:
    """Raises OSError."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def download(
    url: str,
    target: Path,
    sha256: str | None = None,
    *,
    limit: int = LIMIT,
    tries: int = 5,
    timeout: float = 30,
    pause: float = 1,
    on_bytes: Callable[[int, int | None], None] | None = None,
) -> str:
    """Fetches a file and returns its SHA-256.

    A download that breaks off is tried again from where it was, ``tries`` times in a row without progress; what came is kept
    beside ``target`` for the next call, and used only if the server says that its file is still the same.
    on_bytes: called as ``on_bytes(done, total or None)``.

    Raises DownloadError: where it cannot be had, is larger than ``limit``, or does not have ``sha256``; WriteError where what
    comes cannot be written.
    """
    part = target.with_name(target.name + ".part")
    failures = 0
    while True:
        before = _size(part)
        try:
            _go_on(url, part, limit, timeout, on_bytes)
            break
        except WriteError:
            raise
        except (urllib.error.URLError, http.client.HTTPException, OSError) as problem:
            if isinstance(problem, urllib.error.HTTPError) and problem.code < 500:
                raise DownloadError(
                    f"{url}: cannot be fetched: {problem}; see whether the address still holds"
                ) from problem
            failures = 1 if _size(part) > before else failures + 1
            if failures >= tries:
                came = (
                    f"broke off after {_size(part):,} bytes, which are kept in {part}"
                    if _size(part)
                    else "cannot be reached"
                )
                raise DownloadError(
                    f"{url}: {came} ({problem}); say the same again to go on, or fetch the file elsewhere and name it with --from"
                ) from problem
            time.sleep(pause * failures)
    found = sha256_of(part)
    if sha256 is not None and found != sha256:
        _forget(part)
        raise DownloadError(
            f"{url}: what came has SHA-256 {found}, not {sha256}; it was deleted. Try again; if it stays so, the file was changed "
            "at its source: do not use it"
        )
    part.replace(target)
    _forget(part)
    return found


def _go_on(
    url: str, part: Path, limit: int, timeout: float, on_bytes: Callable[[int, int | None], None] | None
) -> None:
    """Fetches what is missing of a part. Raises OSError or HTTPException where it breaks off."""
    done, known = _size(part), _state(part)
    headers = {"User-Agent": "msdetr", "Accept-Encoding": "identity"}
    if done and known.get("url") == url and known.get("validator"):
        headers |= {"Range": f"bytes={done}-", "If-Range": known["validator"]}
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=timeout)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing is missing, or the file is another one
            if error.headers.get("Content-Range", "").endswith(f"/{done}"):
                return
            _forget(part)
            raise OSError("the file has changed at its source") from error
        raise
    with response:
        partial = response.status == 206
        if partial and not response.headers.get("Content-Range", "").startswith(f"bytes {done}-"):
            _forget(part)
            raise OSError("the server sent another range than was asked for")
        done = done if partial else 0
        length = response.headers.get("Content-Length")
        total = done + int(length) if length and length.isdecimal() else None
        if total is not None and total > limit:
            raise DownloadError(f"{url}: has {total:,} bytes, the limit is {limit:,}; is it another file?")
        tag = response.headers.get("ETag", "")
        validator = tag if tag and not tag.startswith("W/") else response.headers.get("Last-Modified", "")
        files.write_json(_state_file(part), {"url": url, "validator": validator})
        with contextlib.ExitStack() as stack:
            with files.writing(part):
                file = stack.enter_context(open(part, "ab" if partial else "wb"))
            while chunk := response.read(_CHUNK):
                with files.writing(part):
                    file.write(chunk)
                done += len(chunk)
                if done > limit:
                    raise DownloadError(f"{url}: has more than {limit:,} bytes; is it another file?")
                if on_bytes:
                    on_bytes(done, total)
    if total is not None and done != total:
        raise OSError(f"{done:,} of {total:,} bytes came")


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _state_file(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _state(part: Path) -> dict[str, str]:
    with contextlib.suppress(DataError):
        found = files.read_json(_state_file(part), DataError)
        if isinstance(found, dict) and all(isinstance(value, str) for value in found.values()):
            return found
    return {}


def _forget(part: Path) -> None:
    for path in (part, _state_file(part)):
        path.unlink(missing_ok=True)


# ---------------------------------------------------------------- unpacking


def unpack(archive: Path, folder: Path, limit: int = LIMIT) -> None:
    """Unpacks a .zip or tar archive into a folder.

    Raises DataError, before anything is written, for a member that would lie outside of the folder, for links and devices,
    and for more than ``limit`` bytes or MEMBERS files; also for a file that is no archive or is damaged. Raises WriteError
    where there is no room.
    """
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as source:
                members = source.infolist()
                _check(
                    archive,
                    [(m.filename, m.file_size, stat.S_ISLNK(m.external_attr >> 16)) for m in members],
                    limit,
                )
                with files.writing(folder):
                    source.extractall(folder)
        elif tarfile.is_tarfile(archive):
            with tarfile.open(archive) as source:
                tar_members = source.getmembers()
                _check(archive, [(m.name, m.size, not (m.isfile() or m.isdir())) for m in tar_members], limit)
                while source.fileobj.read(_CHUNK):  # to the end, where the checksum of what was compressed is
                    pass
                with files.writing(folder):
                    source.extractall(folder, filter="data")
        else:
            raise DataError(f"{archive}: is no .zip or tar archive, or is cut short; fetch it again")
    except _DAMAGED as problem:
        raise DataError(f"{archive}: cannot be unpacked: {problem}; fetch it again") from problem


def _check(archive: Path, members: list[tuple[str, int, bool]], limit: int) -> None:
    """members: (name, bytes, whether it is neither file nor folder)."""
    for name, _, special in members:
        path = PurePosixPath(name.replace("\\", "/"))
        outside = path.is_absolute() or ".." in path.parts or "\0" in name or ":" in (path.parts or (":",))[0]
        if outside or special:
            what = "a link or device" if special else "a path that leads out of the folder"
            raise DataError(
                f"{archive}: its member {name[:200]!r} is {what}; nothing was unpacked. Do not use this archive"
            )
    total = sum(size for _, size, _ in members)
    if total > limit or len(members) > MEMBERS:
        raise DataError(
            f"{archive}: would unpack to {total:,} bytes in {len(members):,} files, the limits are {limit:,} and {MEMBERS:,}; is "
            "it another file?"
        )


def copy_folder(source: Path, target: Path) -> None:
    """Copies a folder's files, without their modes. Raises DataError for links and devices in it, OSError."""
    target.mkdir()
    for path in sorted(source.rglob("*")):
        copy = target / path.relative_to(source)
        if path.is_symlink() or not (path.is_dir() or path.is_file()):
            raise DataError(f"{path}: is a link or device; put the file or folder itself in its place")
        if path.is_dir():
            copy.mkdir()
        else:
            shutil.copyfile(path, copy)
