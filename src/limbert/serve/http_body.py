"""From the bytes of a request to checked values. Whatever the bytes are, the worst that comes of them is a `Fault`."""

import json
import zlib
from collections.abc import Collection, Mapping
from typing import Any, NoReturn

from starlette.requests import Request

from limbert.serve.errors import Fault

_WINDOWS = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}  # zlib's window bits by Content-Encoding
_KINDS = {str: "a string", bool: "a boolean", int: "a number", float: "a number", list: "a list", dict: "an object"}


async def read_bytes(request: Request, *, limit: int, types: Collection[str] = ("application/json",)) -> bytes:
    """The body, decompressed.

    Args:
        request: its body is held to ``limit`` by the server's guard while it arrives.
        limit: bytes that it may have when decompressed.
        types: media types it may come as; none said is fine too.

    Raises:
        Fault: 413, 415 or 400 for a body that is no such thing.
    """
    given = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if given and given not in types and not given.endswith("+json"):
        raise Fault(415, f"content-type is {given[:100]!r}; it must be {' or '.join(types)}")
    body = await request.body()
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    return body if encoding == "identity" else _decompress(body, encoding, limit)


def _decompress(body: bytes, encoding: str, limit: int) -> bytes:
    if encoding not in _WINDOWS:
        raise Fault(415, f"content-encoding is {encoding[:100]!r}; it must be {' or '.join(_WINDOWS)}")
    reader = zlib.decompressobj(_WINDOWS[encoding])
    try:
        plain = reader.decompress(body, limit + 1)
    except zlib.error:
        raise Fault(400, f"the body is not {encoding}, as content-encoding says") from None
    if len(plain) > limit:
        raise Fault(413, f"the body has more than {limit} bytes when decompressed, the most allowed")
    if not reader.eof:
        raise Fault(400, f"the {encoding} body ends early")
    return plain


def parse_object(body: bytes) -> dict[str, Any]:
    """The JSON object in a body.

    Raises:
        Fault: 400 where it is no JSON in UTF-8, 422 where it is JSON of another kind.
    """
    try:
        value = json.loads(body.decode(), parse_constant=_refuse_constant)
    except UnicodeDecodeError:
        raise Fault(400, "the body is not UTF-8") from None
    except RecursionError:
        raise Fault(400, "the body is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise Fault(400, f"the body is not JSON: {error.msg} at character {error.pos}") from None
    except ValueError:
        raise Fault(400, "the body has a number with too many digits") from None
    if not isinstance(value, dict):
        raise Fault(422, f"the body is {kind_of(value)}; it must be an object")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise Fault(400, f"the body is not JSON: {name} is no JSON number")


def kind_of(value: Any) -> str:
    """What a JSON value is, for messages."""
    return "null" if value is None else _KINDS[type(value)]


def text_at(value: Any, where: str) -> str:
    """The value, if it is a string that UTF-8 can carry.

    Raises:
        Fault: 422.
    """
    if not isinstance(value, str):
        raise Fault(422, f"{where} is {kind_of(value)}; it must be a string")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise Fault(422, f"{where} has a lone surrogate; it must be Unicode text") from None
    return value


def flag_at(values: Mapping[str, Any], name: str, default: bool) -> bool:
    """A boolean setting; absent or null means its default.

    Raises:
        Fault: 422.
    """
    value = values.get(name)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise Fault(422, f"{name} is {kind_of(value)}; it must be true or false")
    return value


def object_at(values: Mapping[str, Any], name: str, *, allowed: Collection[str] | None = None) -> dict[str, Any]:
    """An object of settings, none but those allowed; absent or null means an empty one.

    Raises:
        Fault: 422.
    """
    value = values.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise Fault(422, f"{name} is {kind_of(value)}; it must be an object")
    unknown = [] if allowed is None else [key for key in value if key not in allowed]
    if unknown:
        raise Fault(422, f"{name} has {unknown[0][:100]!r}; it may have {', '.join(sorted(allowed or ()))}")
    return value


def check_batch(count: int, *, limit: int) -> None:
    """Refuse early what is no batch, before its texts are looked at.

    Raises:
        Fault: 422 or 413.
    """
    if count == 0:
        raise Fault(422, "inputs is an empty list; it must have at least one text")
    if count > limit:
        raise Fault(413, f"inputs has {count} texts; at most {limit} are allowed")
