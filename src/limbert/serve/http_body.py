"""From the bytes of a request to checked values. Whatever the bytes are, the worst that comes of them is a `Fault`."""

import json
import zlib
from collections.abc import Collection, Mapping
from typing import Any, NoReturn

from starlette.requests import Request

from limbert.serve.errors import ApiError

_ZLIB_WBITS = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}  # zlib's window bits by Content-Encoding
_JSON_TYPE_NAMES = {
    str: "a string",
    bool: "a boolean",
    int: "a number",
    float: "a number",
    list: "a list",
    dict: "an object",
}


async def read_body(request: Request, *, max_body: int, media_types: Collection[str] = ("application/json",)) -> bytes:
    """The body, decompressed.

    Args:
        request: its body is held to ``limit`` by the server's guard while it arrives.
        limit: bytes that it may have when decompressed.
        types: media types it may come as; none said is fine too.

    Raises:
        Fault: 413, 415 or 400 for a body that is no such thing.
    """
    given = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if given and given not in media_types and not given.endswith("+json"):
        raise ApiError(415, f"content-type is {given[:100]!r}; it must be {' or '.join(media_types)}")
    body = await request.body()
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    return body if encoding == "identity" else _decompress(body, encoding, max_body)


def _decompress(body: bytes, encoding: str, max_body: int) -> bytes:
    if encoding not in _ZLIB_WBITS:
        raise ApiError(415, f"content-encoding is {encoding[:100]!r}; it must be {' or '.join(_ZLIB_WBITS)}")
    reader = zlib.decompressobj(_ZLIB_WBITS[encoding])
    try:
        plain = reader.decompress(body, max_body + 1)
    except zlib.error:
        raise ApiError(400, f"the body is not {encoding}, as content-encoding says") from None
    if len(plain) > max_body:
        raise ApiError(413, f"the body has more than {max_body} bytes when decompressed, the most allowed")
    if not reader.eof:
        raise ApiError(400, f"the {encoding} body ends early")
    return plain


def parse_json_object(body: bytes) -> dict[str, Any]:
    """The JSON object in a body.

    Raises:
        Fault: 400 where it is no JSON in UTF-8, 422 where it is JSON of another kind.
    """
    try:
        value = json.loads(body.decode(), parse_constant=_reject_constant)
    except UnicodeDecodeError:
        raise ApiError(400, "the body is not UTF-8") from None
    except RecursionError:
        raise ApiError(400, "the body is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise ApiError(400, f"the body is not JSON: {error.msg} at character {error.pos}") from None
    except ValueError:
        raise ApiError(400, "the body has a number with too many digits") from None
    if not isinstance(value, dict):
        raise ApiError(422, f"the body is {json_type_name(value)}; it must be an object")
    return value


def _reject_constant(name: str) -> NoReturn:
    raise ApiError(400, f"the body is not JSON: {name} is no JSON number")


def json_type_name(value: Any) -> str:
    """What a JSON value is, for messages."""
    return "null" if value is None else _JSON_TYPE_NAMES[type(value)]


def require_string(value: Any, where: str) -> str:
    """The value, if it is a string that UTF-8 can carry.

    Raises:
        Fault: 422.
    """
    if not isinstance(value, str):
        raise ApiError(422, f"{where} is {json_type_name(value)}; it must be a string")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ApiError(422, f"{where} has a lone surrogate; it must be Unicode text") from None
    return value


def optional_bool(values: Mapping[str, Any], name: str, default: bool) -> bool:
    """A boolean setting; absent or null means its default.

    Raises:
        Fault: 422.
    """
    value = values.get(name)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise ApiError(422, f"{name} is {json_type_name(value)}; it must be true or false")
    return value


def optional_object(values: Mapping[str, Any], name: str, *, allowed: Collection[str] | None = None) -> dict[str, Any]:
    """An object of settings, none but those allowed; absent or null means an empty one.

    Raises:
        Fault: 422.
    """
    value = values.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ApiError(422, f"{name} is {json_type_name(value)}; it must be an object")
    unknown = [] if allowed is None else [key for key in value if key not in allowed]
    if unknown:
        raise ApiError(422, f"{name} has {unknown[0][:100]!r}; it may have {', '.join(sorted(allowed or ()))}")
    return value


def check_batch_size(count: int, *, max_texts: int) -> None:
    """Refuse early what is no batch, before its texts are looked at.

    Raises:
        Fault: 422 or 413.
    """
    if count == 0:
        raise ApiError(422, "inputs is an empty list; it must have at least one text")
    if count > max_texts:
        raise ApiError(413, f"inputs has {count} texts; at most {max_texts} are allowed")
