"""The exact JSON text of a task, and the way from text to value and back.

A task is kept as text, laid out as it stands in the snapshot (two spaces, one level deep in the
list), because neither jsonb nor a parsed value keeps key order, number spelling, U+0000 and lone
surrogates all together. orjson serves where it gives the same values as `json`, and only there.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from functools import lru_cache
from json.encoder import encode_basestring_ascii
from typing import Any

import orjson

from datahound_storage.errors import InvalidTaskError

Json = Any
Task = dict[str, Any]

# What orjson reads differently (integers beyond 64 bits, huge exponents) or refuses (NaN, lone
# surrogates). Matching too much costs time only.
_NEEDS_STDLIB = re.compile(r"\d{17}|NaN|Infinity|\\u[dD][89a-fA-F]|\d[eE][+-]?\d{3,}(?=[\s,\]}])")
# What jsonb refuses: U+0000, lone surrogates, NaN and infinities, numbers out of its range.
_NEEDS_CLEANING = re.compile(
    # The last one: more decimals than a numeric has.
    r"\\u0000|\\u[dD][89a-fA-F]|NaN|Infinity|\d[eE][+-]?\d{3,}(?=[\s,\]}])|\.\d{16000}"
)
# A text's outline: each digit a 0, each E an e. Looking for a literal in it costs a thirtieth of
# the expressions around here, which judge only where it shows something of the kind.
_OUTLINE = bytes.maketrans(b"123456789E", b"000000000e")
_LONG_NUMBER = b"0" * 17
_UNCLEAN = re.compile(rb"\\u(?:0000|[dD])")
_HUGE_EXPONENT = re.compile(rb"0e[+-]?000+[\s,\]}]")
_EXPONENT = re.compile(rb"0e-?0+[\s,]")
# orjson spells 1e+16 as 1e16 and 1e-05 as 0.00001, and leaves DEL as it is.
_SPELLED_OTHERWISE = re.compile(r"\d[eE]-?\d+(?=[\s,])|\b0\.0000|\x7f")
_REFUSED_BY_POSTGRES = re.compile("[\x00\ud800-\udfff]")
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{},:]|[^\s\[\]{},:"]+', re.DOTALL)
# For orjson: what is no plain JSON value is refused.
PLAIN = (
    orjson.OPT_PASSTHROUGH_DATACLASS
    | orjson.OPT_PASSTHROUGH_DATETIME
    | orjson.OPT_PASSTHROUGH_SUBCLASS
)


def encode(task: Task) -> str:
    """The text of a task as it stands in the snapshot: ASCII, two spaces an indentation.

    Raises InvalidTaskError for what JSON cannot hold: NaN, infinities, objects, cycles.
    """
    text = _encode_fast(task)
    if text is None:
        text = _encode_exact(task, allow_nan=False)
    return text.replace("\n", "\n  ")


def encode_lenient(task: Task) -> str:
    """As `encode`, but NaN and infinities are kept: for what a file of the old code holds."""
    return _encode_exact(task, allow_nan=True).replace("\n", "\n  ")


def _encode_fast(task: Task) -> str | None:
    try:
        encoded = orjson.dumps(task, option=orjson.OPT_INDENT_2 | PLAIN)
        # Reading it back is the proof that nothing was turned into something else (NaN into
        # null, a UUID or an enumeration into a string).
        if orjson.loads(encoded) != task:
            return None
    except (orjson.JSONEncodeError, orjson.JSONDecodeError, RecursionError):
        return None
    text = encoded.decode()
    if not text.isascii():
        text = text.encode("ascii", _ESCAPED).decode()
    return None if _is_spelled_otherwise(encoded, text) else text


def _escape(error: UnicodeError) -> tuple[str, int]:
    """Letters that ASCII has not, as `json` spells them."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return _spelled(error.object[error.start : error.end]), error.end


@lru_cache(maxsize=4096)
def _spelled(letters: str) -> str:
    units = letters.encode("utf-16-be")
    pairs = zip(units[::2], units[1::2], strict=True)
    return "".join(f"\\u{high:02x}{low:02x}" for high, low in pairs)


_ESCAPED = "datahound_storage.escaped"
codecs.register_error(_ESCAPED, _escape)


def _is_spelled_otherwise(encoded: bytes, text: str) -> bool:
    suspicious = (
        b"0.0000" in encoded
        or b"\x7f" in encoded
        or _EXPONENT.search(encoded.translate(_OUTLINE)) is not None
    )
    return suspicious and _SPELLED_OTHERWISE.search(text) is not None


def _encode_exact(task: Task, *, allow_nan: bool) -> str:
    try:
        return json.dumps(task, indent=2, allow_nan=allow_nan)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidTaskError(
            f"task {_name_of(task)} holds a value that JSON cannot hold ({_reason(error)}). "
            "Replace NaN, infinities and objects by plain values; nothing was written."
        ) from None


def _reason(error: Exception) -> str:
    # The library's message can show the value, which may be a setting: only its kind is told.
    text = str(error)
    if "Out of range float" in text:
        return "NaN or an infinity"
    if "Circular" in text or isinstance(error, RecursionError):
        return "it contains itself or is nested too deeply"
    return text if text.startswith("Object of type") else type(error).__name__


def _name_of(task: Task) -> str:
    key = task.get("task_id")
    return repr(key[:80]) if isinstance(key, str) else "without a task_id"


def decode(text: str) -> Task:
    """The task of a text made by `encode` or found in a snapshot."""
    value: Task = loads(text)
    return value


def loads(text: str) -> Json:
    """The value of a JSON text, the same as `json.loads` gives."""
    return read(text)[0]


def read(text: str) -> tuple[Json, bool]:
    """The value of a JSON text, as `json.loads` gives it, and whether orjson gives the same."""
    if not _has_odd_number(_outline(text)):
        try:
            return orjson.loads(text), True
        except orjson.JSONDecodeError:
            if not _NEEDS_STDLIB.search(text):
                raise
    elif not _NEEDS_STDLIB.search(text):
        return orjson.loads(text), True
    return json.loads(text), False


def _outline(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass").translate(_OUTLINE)


def _has_odd_number(outline: bytes) -> bool:
    """Whether there may be a number that orjson reads otherwise than `json` does."""
    return _LONG_NUMBER in outline or _HUGE_EXPONENT.search(outline) is not None


def for_jsonb(text: str) -> str:
    """The nearest text that jsonb takes: U+FFFD for what it refuses, null for NaN and the like."""
    if not (_may_need_cleaning(text) and _NEEDS_CLEANING.search(text)):
        return text
    value = json.loads(text, parse_constant=lambda _: None, parse_float=_finite_float)
    return json.dumps(_clean(value))


def _may_need_cleaning(text: str) -> bool:
    encoded = text.encode("utf-8", "surrogatepass")
    return (
        b"NaN" in encoded
        or b"Infinity" in encoded
        or _UNCLEAN.search(encoded) is not None
        or _has_odd_number(encoded.translate(_OUTLINE))
    )


def for_text_column(value: str) -> str:
    """A string that a text column takes, U+FFFD for U+0000 and lone surrogates."""
    return value if fits_text_column(value) else _REFUSED_BY_POSTGRES.sub("\ufffd", value)


def fits_text_column(value: str) -> bool:
    """Whether Postgres takes the string as it is."""
    if value.isascii():
        return "\x00" not in value
    return _REFUSED_BY_POSTGRES.search(value) is None


def _finite_float(spelling: str) -> float | None:
    value = float(spelling)
    return value if abs(value) < float("inf") else None


def _clean(value: Json) -> Json:
    if isinstance(value, str):
        return for_text_column(value)
    if isinstance(value, dict):
        return {for_text_column(key): _clean(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_clean(item) for item in value]
    return value


def as_in_snapshot(raw: str) -> str:
    """A task's text as found in a file, in the snapshot's layout; numbers keep their spelling."""
    if _is_plain(raw) and is_in_layout(raw) and "\r" not in raw:
        return raw
    return "".join(_laid_out(raw))


def is_in_layout(raw: str) -> bool:
    """Whether a task's text begins and ends as in a snapshot."""
    return raw.startswith('{\n    "') and raw.endswith("\n  }")


def _is_plain(text: str) -> bool:
    """Whether it is spelled as the old code spells it: with escapes outside of ASCII, DEL too."""
    return text.isascii() and "\x7f" not in text


def _laid_out(raw: str) -> Iterator[str]:
    depth, previous = 1, ""
    for match in _TOKEN.finditer(raw):
        token = match.group()
        if token in ("]", "}"):
            depth -= 1
        if (token in ("]", "}") and previous not in ("[", "{")) or (
            token not in ("]", "}") and previous in ("[", "{", ",")
        ):
            yield "\n" + "  " * depth
        yield _lexeme_text(token)
        if token in ("[", "{"):
            depth += 1
        previous = token


def _lexeme_text(lexeme: str) -> str:
    if lexeme == ":":
        return ": "
    if _is_plain(lexeme):
        return lexeme
    return encode_basestring_ascii(json.loads(lexeme))


def same(left: Json, right: Json) -> bool:
    """Whether two values are the same JSON: key order, types and all (1 is not 1.0, nor true)."""
    try:
        if orjson.dumps(left, option=PLAIN) != orjson.dumps(right, option=PLAIN):
            return False
    except (orjson.JSONEncodeError, RecursionError):
        return json.dumps(left) == json.dumps(right)
    # NaN, which orjson writes as null, is equal to nothing.
    return bool(left == right) or json.dumps(left) == json.dumps(right)
