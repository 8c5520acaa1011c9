"""How names, numbers, paths and texts of people's data are read: one rule each, the same for every source.

`pack`, `index`, `check` and the job `build_shards` read arrays (.npz, HDF5), tables (CSV, JSON lines, Parquet), members
of archives and text files beside clips. The same value must mean the same in all of them, so all of them ask here:

bytes      A file's own mark (BOM) says what it is: UTF-8, UTF-16 or UTF-32. Without one it is UTF-8; UTF-16 without a
           mark is known by its zero bytes. Anything else is refused by name, and read with `--encoding NAME`, which
           holds for all files without a mark. Nothing is ever replaced by U+FFFD. Bytes within an array (numpy `S`,
           HDF5 strings) are UTF-8, too, or refused.
text       Unicode in its composed form (NFC), without white space around it. Empty text is missing. "NA", "nan" and
           "null" are text, as somebody may be called so; that they look like missing values is reported as a doubt.
missing    None, empty text, NaN, NaT and pandas' NA.
names      Keys, speakers, splits and classes are text. A whole number is its digits: 1, 1.0, True and the text "1.0"
           are all "1" (data frames write whole numbers as floats once a column has a gap). Leading zeros make it text:
           "007" stays "007". Any other number, a list or an object is refused.
classes    A name; where every value of a column is a whole number, class numbers.
numbers    A number, or text that Python's `float` reads and that holds no underscore; "0,5" is refused (write 0.5).
paths      Relative, with `/`. Where no file has that very name, `\\` is read as `/` and a leading `./` left out.
           A file is found whatever composition of Unicode (NFC, NFD) either side uses; files that differ in nothing
           else can't be told apart and are refused.
suffixes   Their case does not matter: `.CSV` is `.csv`.
intervals  Seconds. The key of an interval holds start and end as the shortest decimals that give the same floats.
"""

from __future__ import annotations

import codecs
import math
import re
import unicodedata
from collections.abc import Callable, Iterable
from decimal import Decimal
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

# Longest first: the mark of UTF-16 begins that of UTF-32.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_WHOLE = re.compile(r"-?(?:0|[1-9][0-9]*)")
_WHOLE_FLOAT = re.compile(r"(-?(?:0|[1-9][0-9]*))\.0+")
_DRIVE = re.compile(r"[A-Za-z]:[/\\]")
_MISSING_WORDS = frozenset(["na", "n/a", "nan", "null", "none", "nil", "<na>", "#n/a", "-"])
_LONGEST_NUMBER = 20  # digits of a class number; what is longer is a name


class EncodingError(ValueError):
    """Bytes that are not text in the expected encoding."""


def check_encoding(name: str) -> str:
    """Python's name of a text encoding; ValueError for an unknown one."""
    try:
        codec = codecs.lookup(name)
        "a".encode(codec.name)
    except (LookupError, ValueError):
        known = "utf-8, utf-16, cp1252 (Windows, Western Europe), latin-1, cp1251, gb18030, shift_jis"
        raise ValueError(f"--encoding {name!r} is unknown; usual ones: {known}") from None
    return codec.name


def decode_text(data: bytes, encoding: str | None = None) -> tuple[str, str]:
    """Text of a file, and the encoding it is in. encoding: of a file without a mark (None: UTF-8, or UTF-16 where its
    zero bytes say so).

    Raises EncodingError, naming the first byte that does not fit, its line, and the remedy.
    """
    for mark, found in _MARKS:
        if data.startswith(mark):
            return _decoded(data, found), found.removesuffix("-sig")
    guess = _utf16_without_mark(data) if 0 in data else "utf-8"
    encoding = guess if encoding is None else check_encoding(encoding)
    return _decoded(data, encoding), encoding


def _decoded(data: bytes, encoding: str) -> str:
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        remedy = "save it as UTF-8, or name its encoding, such as --encoding cp1252 (Windows, Western Europe)"
        raise EncodingError(
            f"byte {data[error.start] if error.start < len(data) else 0:#04x} in line {line} is not {encoding}; "
            f"{remedy}"
        ) from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise EncodingError(f"line {line} holds a zero byte, which no text has; it is damaged, or another kind of file")
    return text.removeprefix("\ufeff")


def _utf16_without_mark(data: bytes) -> str:
    """The byte order in which more characters are ASCII; where neither is, UTF-8, which then refuses the zeros."""
    if len(data) % 2:
        return "utf-8"
    pairs = np.frombuffer(data[: 1 << 16], np.uint8).reshape(-1, 2)
    little = int(((pairs[:, 1] == 0) & (pairs[:, 0] != 0)).sum())
    big = int(((pairs[:, 0] == 0) & (pairs[:, 1] != 0)).sum())
    return "utf-8" if little == big else "utf-16-le" if little > big else "utf-16-be"


def looks_like_utf8(data: bytes) -> bool:
    """Whether bytes beyond ASCII form valid UTF-8: then it would be odd if they were anything else."""
    try:
        return not data.isascii() and data.decode("utf-8") is not None
    except UnicodeDecodeError:
        return False


def plain(value: Any) -> Any:
    """The value as Python's own type, None where it is missing. Raises ValueError for bytes that are no UTF-8."""
    if (isinstance(value, np.ndarray) and value.ndim == 0) or isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bytes | bytearray):
        data = bytes(value).rstrip(b"\0")
        try:
            value = data.decode("utf-8")
        except UnicodeDecodeError:
            raise ValueError(f"{data[:40]!r} is not UTF-8; store it as text") from None
    if isinstance(value, str):
        return unicodedata.normalize("NFC", value).strip() or None
    if isinstance(value, Decimal):
        return None if value.is_nan() else int(value) if value == value.to_integral_value() else float(value)
    try:
        return None if value is None or bool(value != value) else value
    except (TypeError, ValueError):
        # pandas' NA refuses to be a truth value; arrays and the like are refused by whoever wants a name or a number.
        return None if type(value).__name__ == "NAType" else value


def is_whole(value: Any) -> bool:
    """Whether a plain value is a whole number, or text that says one without leading zeros (see `classes`)."""
    if isinstance(value, str):
        # Longer digits are a name: no class has such a number, and `int` refuses the longest.
        return len(value) < _LONGEST_NUMBER and bool(_WHOLE.fullmatch(name(value) or ""))
    return isinstance(value, int) or (isinstance(value, float) and value.is_integer())


def name(value: Any) -> str | None:
    """A key, speaker, split or class as text, None where it is missing.

    Raises ValueError for what is not a name: a number that is not whole, a list, an object.
    """
    value = plain(value)
    if isinstance(value, str):
        whole = _WHOLE_FLOAT.fullmatch(value)
        return whole[1] if whole else value
    if value is None:
        return None
    if not is_whole(value):
        raise ValueError(f"{_short(value)}, expected text or a whole number")
    return str(int(value))


def class_value(value: Any) -> int | str | None:
    """A class: a whole number where it is one (see `is_whole`), else its name. Raises ValueError as `name` does, but
    for infinite numbers, which no class has either: they stay, for a message that lists the classes."""
    value = plain(value)
    if isinstance(value, float) and math.isinf(value):
        return value  # type: ignore[return-value]
    if isinstance(value, int | float) and is_whole(value):
        return int(value)
    text = name(value)
    return int(text) if text is not None and is_whole(text) else text


def text(value: Any) -> str | None:
    """A transcript or other free text: as `name`, but a text stays as it is written."""
    value = plain(value)
    return value if isinstance(value, str) else name(value)


def number(value: Any) -> float:
    """A number, NaN where it is missing. Raises ValueError for anything else."""
    value = plain(value)
    if value is None:
        return math.nan
    if isinstance(value, str):
        if "_" in value or not value.isascii():
            raise ValueError(f"{value!r}, expected a number")
        try:
            return float(value)
        except ValueError:
            comma = re.fullmatch(r"[-+]?[0-9]*,[0-9]+", value)
            remedy = f"; write {value.replace(',', '.')}" if comma else ""
            raise ValueError(f"{value!r}, expected a number{remedy}") from None
    if isinstance(value, int | float):
        try:
            return float(value)
        except OverflowError:
            raise ValueError(f"{_short(value)}, expected a number that a float can hold as a finite one") from None
    raise ValueError(f"{_short(value)}, expected a number")


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."


def unix_path(value: str) -> str:
    """A relative path with `/`, composed, without `./` at its beginning. Drives (`C:\\`) stay, to be refused."""
    path = unicodedata.normalize("NFC", value).strip()
    path = path if _DRIVE.match(path) else path.replace("\\", "/")
    while path.startswith("./"):
        path = path[2:].lstrip("/")
    return path


class FileNames:
    """Finds the files that paths of a table mean (see `paths`). files: relative paths as the disk has them."""

    def __init__(self, files: Iterable[str]) -> None:
        self._files = set(files)
        self._composed: dict[str, list[str]] = {}
        for file in sorted(self._files):
            self._composed.setdefault(_composed(file), []).append(file)
        self._folded: dict[str, str] = {}
        self._stems: dict[str, list[str]] = {}
        for file in sorted(self._files):
            self._folded.setdefault(fold(file), file)
            self._stems.setdefault(_composed(str(PurePosixPath(file).with_suffix(""))), []).append(file)
        for stem, files_of_it in self._stems.items():
            self._folded.setdefault(fold(stem), files_of_it[0])

    def find(self, path: str, exists: Callable[[str], bool] = lambda path: False) -> str | None:
        """The file, None where there is none. `exists` is asked for paths that are not listed, such as those of another
        suffix. Raises ValueError where two files differ in nothing but composition or spaces around their names."""
        for candidate in dict.fromkeys((path, path.strip(), unix_path(path))):
            if candidate in self._files:
                return candidate
        same = self._composed.get(unix_path(path), [])
        if len(same) > 1:
            raise ValueError(
                f"{path!r} means two files whose names differ in Unicode composition or outer spaces only; rename one"
            )
        if same:
            return same[0]
        return next((c for c in dict.fromkeys((path, unix_path(path))) if exists(c)), None)

    def find_without_suffix(self, path: str) -> str | None:
        """The file of a path that is written without its suffix, None where there is none. Raises ValueError where
        there are several."""
        same = self._stems.get(_composed(unix_path(path)), [])
        if len(same) > 1:
            raise ValueError(f"{path!r} means several files ({', '.join(same)}); write the suffix too")
        return same[0] if same else None

    def similar(self, path: str) -> str | None:
        """A file whose name differs in case, spaces or the suffix only, to be named in a message."""
        return self._folded.get(fold(unix_path(path)))


def _composed(path: str) -> str:
    return unicodedata.normalize("NFC", path).strip()


def fold(value: str) -> str:
    """What names have in common that differ in case, spaces, `_`, `-` or the form of their letters only."""
    folded = unicodedata.normalize("NFKC", value).casefold()
    return "".join(c for c in folded if not (c.isspace() or c in "_-\u200b\u200c\u200d\u2060\ufeff\u00ad"))


def looks_missing(value: str) -> bool:
    """Whether a name looks like a missing value that was written as text."""
    return value.casefold() in _MISSING_WORDS


def suffix(path: Path) -> str:
    """The suffix of a file's name, in lower case."""
    return path.suffix.lower()


def interval_key(stem: str, start: float, end: float) -> str:
    """`<stem>_<start>_<end>` with `p` for the decimal point: 0.5 is 0p5. Equal keys are equal intervals."""
    return f"{stem}_{_exact(start)}_{_exact(end)}"


def _exact(seconds: float) -> str:
    whole = f"{Decimal(repr(float(seconds) + 0.0)):f}"
    return whole.removesuffix(".0").replace(".", "p")
