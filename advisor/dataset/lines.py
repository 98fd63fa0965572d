"""Bytes of a file -> lines of UTF-8 text; everything that is not clean text is refused with its byte position."""

import gzip
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from profiles.errors import InvalidInputError
from profiles.units import MIB, format_bytes

MAX_ROW_BYTES = 16 * MIB  # about 4 million tokens: longer than any context, so a missing line break
MAX_WHOLE_BYTES = 2048 * MIB  # .json and plain text are held in memory whole
_BOM = b"\xef\xbb\xbf"
_FOREIGN_BOMS = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}

Watch = Callable[[int], None]  # is told the position in the (compressed) file


def open_bytes(path: Path) -> IO[bytes]:
    """Open a file, through gzip if its name ends in .gz."""
    try:
        raw = path.open("rb")
    except OSError as error:
        raise InvalidInputError(str(path), f"cannot be opened: {error.strerror}") from None
    return gzip.GzipFile(fileobj=raw, mode="rb") if path.suffix.lower() == ".gz" else raw  # type: ignore[return-value]


def read_lines(path: Path, watch: Watch | None = None, max_line: int = MAX_ROW_BYTES) -> Iterator[tuple[int, str]]:
    """Yield (line number from 1, text with its line end). A leading UTF-8 byte order mark is dropped.

    Raises InvalidInputError for other encodings, NUL bytes, a line above `max_line` bytes and a broken .gz.
    """
    position = 0
    with open_bytes(path) as file:
        raw = getattr(file, "fileobj", file)
        try:
            for number, line in enumerate(iter(lambda: file.readline(max_line + 1), b""), 1):
                if len(line) > max_line:
                    raise InvalidInputError(
                        f"{path}:{number}",
                        f"the line is longer than {format_bytes(max_line)}",
                        "One example must be one line; check for missing line breaks.",
                    )
                yield number, _decode(path, number, line, position)
                position += len(line)
                if watch is not None and not number % 256:
                    watch(raw.tell())
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise InvalidInputError(
                str(path), f"the gzip data is damaged or cut off ({error})", "Copy or download the file again."
            ) from None
        finally:
            raw.close()


def read_text(path: Path, watch: Watch | None = None) -> str:
    """The whole text of a file. Raises as `read_lines` does, and above `MAX_WHOLE_BYTES`."""
    lines, size = [], 0
    for _, line in read_lines(path, watch, MAX_WHOLE_BYTES):
        lines.append(line)
        size += len(line)
        if size > MAX_WHOLE_BYTES:
            raise InvalidInputError(
                str(path),
                f"holds more than {format_bytes(MAX_WHOLE_BYTES)}",
                "Convert it to .jsonl, which is read line by line.",
            )
    return "".join(lines)


def _decode(path: Path, number: int, line: bytes, position: int) -> str:
    if number == 1:
        if foreign := _FOREIGN_BOMS.get(line[:2]):
            raise InvalidInputError(
                str(path),
                f"is {foreign} text (byte order mark at byte 0), expected utf-8",
                f"Convert it: iconv -f {foreign} -t utf-8 {path.name} > converted{path.suffix}",
            )
        line = line.removeprefix(_BOM)
    if b"\0" in line:
        raise InvalidInputError(
            f"{path}:{number}",
            f"NUL byte at byte {position + line.index(0)}: a binary file, utf-16 text without a byte order mark, "
            "or a damaged file",
            "Save it as utf-8 text.",
        )
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidInputError(
            f"{path}:{number}",
            f"byte {position + error.start} (0x{line[error.start]:02x}) is not valid utf-8",
            f"If the file is Latin-1 or Windows-1252: iconv -f cp1252 -t utf-8 {path.name} > converted{path.suffix}",
        ) from None
