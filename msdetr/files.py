"""Reading files without believing them, and writing files whole or not at all.

What is read may have been written by anyone, or by a process that was killed: text is UTF-8 without a byte order mark, a
key is given once, nesting and aliases are bounded, and only regular files are opened. Every reader takes the error class
that its caller promises. What is written is flushed to the disk under another name and then renamed.
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import json
import math
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn

import yaml

from .errors import FileError, MSDETRError, WriteError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

YAML_BYTES = 64 * 2**10  # a configuration has 3 KB
YAML_NODES = 10_000  # values, with every alias counted as what it stands for
JSON_BYTES = 64 * 2**20  # of the package's own files; an annotation file may be of any size
_PIECE, _SPACE = 2**20, re.compile(r"[ \t\n\r]*")
BYTE_ORDER_MARKS = {
    "UTF-32": (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE),  # before UTF-16, whose mark it begins with
    "UTF-16": (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE),
    "UTF-8 with a byte order mark": (codecs.BOM_UTF8,),
}
_NEVER_FLUSHED = (errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.EACCES, errno.EPERM)  # of a directory
Error = type[MSDETRError]


def read_bytes(path: str | Path, error: Error = FileError, limit: int | None = None) -> bytes:
    """The contents of a regular file of at most ``limit`` bytes. Raises ``error``."""
    try:
        with open(path, "rb", opener=_open_without_waiting) as file:
            status = os.fstat(file.fileno())
            regular, size = stat.S_ISREG(status.st_mode), status.st_size
            data = file.read() if regular and (limit is None or size <= limit) else b""
    except (OSError, ValueError) as problem:  # ValueError: a path with a null byte
        raise error(f"{path}: cannot be read: {getattr(problem, 'strerror', None) or problem}") from problem
    if not regular:
        raise error(f"{path}: cannot be read: is not a regular file")
    if limit is not None and size > limit:
        raise error(
            f"{path}: has {size:,} bytes, more than the {limit:,} that such a file may have; is it another file?"
        )
    return data


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # a named pipe would wait for a writer


def decode(data: bytes, where: str | Path, error: Error = FileError) -> str:
    """Bytes as UTF-8 text. Raises ``error`` naming the encoding that it has instead, or the first byte that is wrong."""
    for encoding, marks in BYTE_ORDER_MARKS.items():
        if data.startswith(marks):
            raise error(f"{where}: is encoded as {encoding}; save it as plain UTF-8")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as problem:
        raise error(
            f"{where}: is not UTF-8 (byte {problem.start} is 0x{data[problem.start]:02x}); save it as plain UTF-8"
        ) from problem


def encode(text: str) -> bytes:
    r"""Text as UTF-8. What UTF-8 cannot hold, as of a file's name in another encoding, is escaped: \udcff."""
    return text.encode("utf-8", "backslashreplace")


# ---------------------------------------------------------------- JSON


def read_json(path: str | Path, error: Error = FileError) -> Any:
    """The value in a JSON file of this package. Raises ``error``; see ``parse_json``."""
    return parse_json(read_bytes(path, error, JSON_BYTES), path, error)


def parse_json(data: bytes | str, where: str | Path, error: Error = FileError, own: bool = True) -> Any:
    """The value that JSON text stands for. Raises ``error`` for a key given twice, too deep nesting or another encoding.

    own: also for numbers that this package never writes: NaN, infinity, and whole numbers beyond 64 bits. Without it they
    are left to the caller, who can name the field.
    """
    text = decode(data, where, error) if isinstance(data, bytes) else data
    numbers = {"parse_constant": _refuse_number, "parse_float": _finite_float, "parse_int": _int64} if own else {}
    try:
        value = json.loads(text, object_pairs_hook=_without_repeats, **numbers)
        if own and "\\ud" in text.lower():
            json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair is no text
        return value
    except json.JSONDecodeError as problem:
        raise error(
            f"{where}: {'is empty' if not text.strip() else 'not valid JSON'} at offset {problem.pos} (line {problem.lineno}): "
            f"{problem.msg}; the file may be truncated: fetch or write it again"
        ) from problem
    except (ValueError, RecursionError) as problem:
        reason = "nested too deeply" if isinstance(problem, RecursionError) else problem
        raise error(f"{where}: not usable JSON: {reason}; fetch or write it again") from problem


def stream_json(path: str | Path, take: Mapping[str, Callable[[Any], Any]]) -> dict[str, Any] | None:
    """The object in a JSON file of any size, of which only a piece is in memory at a time; see ``parse_json`` for what it
    otherwise is.

    take: by the name of a member of the object: what is made of each element of that list, and kept in its place.
    Returns None where the file is no such object: ``parse_json`` says what is wrong with it, or reads it.
    """
    try:
        with open(path, "rb", opener=_open_without_waiting) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                return None
            text = _Text(file)
            return dict(_members(text, take))
    except (OSError, ValueError, RecursionError):  # of which errors of JSON and of UTF-8 are kinds
        return None


def _members(text: _Text, take: Mapping[str, Callable[[Any], Any]]) -> Iterator[tuple[str, Any]]:
    """Names and values of the object that a text consists of."""
    names = set()
    text.expect("{")
    while True:
        name = text.value()
        if not isinstance(name, str) or name in names:
            raise ValueError(f"{name!r} is no name of a member, or is given twice")
        names.add(name)
        text.expect(":")
        yield name, list(text.elements(take[name])) if name in take else text.value()
        if text.expect(",}") == "}":
            return text.end()


class _Text:
    """What is left to read of a JSON file."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._scan = json.JSONDecoder(object_pairs_hook=_without_repeats).scan_once
        self._text, self._at, self._over = "", 0, False

    def _more(self) -> bool:
        """Reads the next piece, as long as what is still unread, so that a long value is not begun too often."""
        if self._over:
            return False
        self._text = self._text[self._at :]
        self._at = 0
        data = self._file.read(max(_PIECE, len(self._text)))
        self._text += self._decoder.decode(data, final=not data)
        self._over = not data
        return True

    def _skip_space(self) -> None:
        while True:
            self._at = _SPACE.match(self._text, self._at).end()
            if self._at < len(self._text) or not self._more():
                return

    def next(self) -> str:
        """The next character that is no space; '' at the end."""
        self._skip_space()
        return self._text[self._at : self._at + 1]

    def expect(self, characters: str) -> str:
        """Passes over one of these characters. Raises ValueError."""
        found = self.next()
        if not found or found not in characters:
            raise ValueError(f"{found!r} where one of {characters!r} should be")
        self._at += 1
        return found

    def end(self) -> None:
        if self.next():
            raise ValueError("something follows the object")

    def value(self) -> Any:
        """Passes over a value and gives it. Raises ValueError."""
        self._skip_space()
        while True:
            try:
                value, end = self._scan(self._text, self._at)
                if end < len(self._text) or not self._more():  # the rest of a number may follow
                    self._at = end
                    return value
            except (StopIteration, json.JSONDecodeError):
                if not self._more():
                    raise ValueError("no value") from None

    def elements(self, make: Callable[[Any], Any]) -> Iterator[Any]:
        """Passes over a list; what ``make`` makes of each element. Raises ValueError."""
        self.expect("[")
        if self.next() == "]":
            self.expect("]")
            return
        while True:
            yield make(self.value())
            if self.expect(",]") == "]":
                return


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {repeated[:80]!r} is given twice in one object")
    return value


def _refuse_number(text: str) -> NoReturn:
    raise ValueError(f"the number {text[:80]} is not finite")


def _finite_float(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _refuse_number(text)


def _int64(text: str) -> int:
    if len(text) > 20 or not -(2**63) <= (value := int(text)) < 2**63:
        raise ValueError(f"the number {text[:80]} does not fit into 64 bits")
    return value


def json_text(values: Any, indent: int | None = 1) -> str:
    """Values as JSON. A number that is NaN or infinite is written as null, which is how undefined numbers are written."""
    return json.dumps(_finite(values), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# ---------------------------------------------------------------- YAML


class _OnceOnly:
    """A PyYAML loader that refuses a key given twice."""

    def compose_mapping_node(self, anchor):
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in seen:
                    raise yaml.composer.ComposerError(
                        None, None, f"the key {key.value[:80]!r} is given twice", key.start_mark
                    )
                seen.add((key.tag, key.value))
        return node


class _Loader(_OnceOnly, yaml.SafeLoader):
    """PyYAML's safe loader, which also refuses whole numbers beyond 64 bits."""

    def construct_int64(self, node):
        return _int64(str(self.construct_yaml_int(node)))


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_int64)


class _TextLoader(_OnceOnly, yaml.BaseLoader):
    """Every value is the text it was written as: 007 and yes are names of classes, too."""


def read_yaml(path: str | Path, error: Error = FileError) -> dict[str, Any]:
    """The mapping in a YAML file. Raises ``error``; see ``parse_yaml``."""
    return parse_yaml(decode(read_bytes(path, error, YAML_BYTES), path, error), path, error)


def read_yaml_text(path: str | Path, error: Error = FileError) -> dict[str, Any]:
    """As ``read_yaml``, with every number, word and key as the text it was written as. Raises ``error``."""
    return parse_yaml(decode(read_bytes(path, error, YAML_BYTES), path, error), path, error, _TextLoader)


def parse_yaml(text: str, where: str | Path, error: Error = FileError, loader_class: type = _Loader) -> dict[str, Any]:
    """The mapping that YAML text stands for.

    Raises ``error`` for text that is empty or no mapping, a key given twice, aliases that multiply or contain
    themselves, too deep nesting, and values that their tag does not allow.
    """
    try:
        loader = loader_class(text)
        node = loader.get_single_node()
        if node is None:
            raise yaml.YAMLError("it is empty; expected settings, one 'name: value' a line")
        if not isinstance(node, yaml.MappingNode):
            raise yaml.YAMLError(f"it holds a {node.id}, not a mapping; expected settings, one 'name: value' a line")
        _count(node, {})
        return loader.construct_document(node)
    except RecursionError as problem:
        raise error(f"{where}: not usable YAML: nested too deeply") from problem
    except (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError) as problem:
        # the last three are what PyYAML raises for a tag like !!bool before text that is none
        raise error(f"{where}: not valid YAML: {problem}") from problem


def parse_scalar(text: str) -> bool | int | float | str | None:
    """What a word of a command line stands for: true, 3, 1e-4 and null are values, anything else is text."""
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        value = loader.construct_document(node) if isinstance(node, yaml.ScalarNode) else text
    except (yaml.YAMLError, RecursionError, ValueError, LookupError, TypeError, AttributeError):
        return text
    return value if isinstance(value, (bool, int, float, type(None))) else text


def _count(node: yaml.Node, known: dict[int, int | None]) -> int:
    """How many values a node stands for, aliases followed; ValueError where they are too many or contain themselves."""
    if id(node) in known:
        if (size := known[id(node)]) is None:
            raise ValueError(f"an alias contains itself (line {node.start_mark.line + 1})")
        return size
    known[id(node)], size = None, 1
    if isinstance(node, yaml.CollectionNode):
        for part in node.value:
            size += sum(_count(inner, known) for inner in (part if isinstance(part, tuple) else (part,)))
            if size > YAML_NODES:
                raise ValueError(f"it stands for more than {YAML_NODES:,} values, aliases followed")
    known[id(node)] = size
    return size


# ---------------------------------------------------------------- writing


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A path to write to; when the block ends well, what is there takes the place of ``path``, flushed to the disk.

    Raises WriteError, an OSError, where that fails; what was at ``path`` before is then still there.
    """
    path = Path(path)
    # not the process's number: those of two containers may be equal
    staging = path.with_name(f".{path.stem}.{secrets.token_hex(4)}.tmp{path.suffix}")
    if path.exists() and not path.is_file() and not path.is_dir():
        staging = path  # /dev/stdout and the like
    try:
        yield staging
        if staging != path:
            _flush(staging)
            os.replace(staging, path)
            sync_directory(path.parent)
    except OSError as problem:
        raise write_error(path, problem) from problem
    finally:
        if staging != path:
            with contextlib.suppress(OSError):
                staging.unlink(missing_ok=True)


def write_atomically(path: str | Path, content: str | bytes | memoryview) -> None:
    """Writes a file whole or not at all; text as ``encode`` has it. Raises WriteError."""
    with replacing(path) as staging:
        staging.write_bytes(encode(content) if isinstance(content, str) else content)


def write_durably(path: Path, data: bytes) -> None:
    """Writes a file and flushes it to the disk. Raises OSError."""
    path.write_bytes(data)
    _flush(path)


def write_json(path: str | Path, values: Any) -> None:
    """Writes values as JSON (see ``json_text``), whole or not at all. Raises WriteError."""
    write_atomically(path, json_text(values) + "\n")


def save_figure(figure: Figure, path: str | Path, dpi: int) -> None:
    """Draws a figure into a file, whole or not at all. Raises WriteError."""
    with replacing(path) as staging:
        figure.savefig(staging, dpi=dpi)


def append_json_line(path: str | Path, values: Any) -> None:
    """Appends a line of JSON. Raises WriteError; no part of the line is then left."""
    line = memoryview((json_text(values, indent=None) + "\n").encode())
    try:
        with open(path, "ab", buffering=0) as file:
            end = file.seek(0, os.SEEK_END)
            try:
                while line:
                    line = line[file.write(line) :]
            except OSError:
                file.truncate(end)
                raise
    except OSError as problem:
        raise write_error(path, problem) from problem


@contextlib.contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Raises WriteError about ``path`` where the block raises an OSError."""
    try:
        yield
    except OSError as problem:
        raise write_error(path, problem) from problem


def make_folder(path: str | Path) -> None:
    """A folder, with those it is in, where it is not there yet. Raises WriteError."""
    with writing(path):
        Path(path).mkdir(parents=True, exist_ok=True)


def write_error(path: str | Path, problem: OSError) -> WriteError:
    """The error for a file that cannot be written, with what to do about it."""
    if isinstance(problem, WriteError):
        return problem
    return WriteError(
        f"{path}: cannot be written: {problem.strerror or problem}. What was there before is intact; make room, allow "
        "writing, or choose another place, then go on"
    )


def sync_directory(path: Path) -> None:
    """Flushes a directory, so that a name in it survives a power cut. Some network drives do not flush directories, and
    one that may be written need not be one that may be opened: nothing is flushed then. Raises OSError for any other
    failure."""
    try:
        _flush(path)
    except OSError as problem:
        if problem.errno not in _NEVER_FLUSHED:
            raise


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
