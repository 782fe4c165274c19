"""Tensors of the Open Inference Protocol: as JSON, and as the binary data that may follow the JSON."""

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from limbert.serve.errors import ApiError
from limbert.serve.http_body import json_type_name, optional_object

_LENGTH = struct.Struct("<I")  # before each element of BYTES


@dataclass(frozen=True)
class OutputTensor:
    """An output.

    Attributes:
        name: as requested.
        datatype: ``BYTES`` for strings, ``FP32`` for numbers.
        shape: ``(rows,)`` or ``(rows, columns)``.
        data: all elements, row by row.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: Sequence[str] | Sequence[float]

    def metadata(self) -> dict[str, Any]:
        """All but the data."""
        return {"name": self.name, "datatype": self.datatype, "shape": list(self.shape)}

    def to_bytes(self) -> bytes:
        """The data as the binary tensor extension has it: little-endian, strings after their length."""
        if self.datatype == "BYTES":
            strings = [str(item).encode() for item in self.data]
            return b"".join(_LENGTH.pack(len(item)) + item for item in strings)
        return struct.pack(f"<{len(self.data)}f", *self.data)


def split_body(body: bytes, header: str | None) -> tuple[bytes, memoryview]:
    """The JSON and what follows it, by the request's Inference-Header-Content-Length.

    Raises:
        Fault: 400.
    """
    if header is None:
        return body, memoryview(b"")
    if not (header.isascii() and header.isdecimal() and len(header) < 16 and int(header) <= len(body)):
        raise ApiError(400, f"Inference-Header-Content-Length is {header[:40]!r}; the body has {len(body)} bytes")
    size = int(header)
    return body[:size], memoryview(body)[size:]


def read_strings(tensor: Mapping[str, Any], binary: memoryview, where: str) -> tuple[list[str], memoryview]:
    """The strings of one input of datatype BYTES and shape ``(rows,)`` or ``(rows, 1)``.

    Args:
        tensor: the input as it stands in the request.
        binary: the binary data that no input before it has taken.
        where: the input's name, for messages.

    Returns:
        The strings, and the rest of ``binary``.

    Raises:
        Fault: 400 or 422.
    """
    if tensor.get("datatype") != "BYTES":
        raise ApiError(400, f"{where} has another datatype; it must be BYTES")
    rows = _parse_num_rows(tensor.get("shape"), where)
    parameters = optional_object(tensor, "parameters")
    if "shared_memory_region" in parameters:
        raise ApiError(400, f"{where} is in shared memory, which this server does not read")
    size = parameters.get("binary_data_size")
    if size is None:
        strings = [_require_string(item, where) for item in _flatten(tensor.get("data"), where)]
    else:
        if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= len(binary):
            raise ApiError(
                400, f"binary_data_size of {where} is out of range; {len(binary)} bytes are left in the body"
            )
        strings = [_decode(item, where) for item in _split_strings(binary[:size], where)]
        binary = binary[size:]
    if len(strings) != rows:
        raise ApiError(400, f"{where} has {len(strings)} strings; its shape says {min(rows, 1 << 32)}")
    return strings, binary


def _parse_num_rows(shape: Any, where: str) -> int:
    whole = isinstance(shape, list) and all(isinstance(side, int) and not isinstance(side, bool) for side in shape)
    if not whole or len(shape) not in (1, 2) or shape[0] < 1 or shape[1:] not in ([], [1]):
        raise ApiError(400, f"the shape of {where} must be [rows] or [rows, 1], with at least one row")
    return int(shape[0])


def _flatten(data: Any, where: str) -> Iterator[Any]:
    if not isinstance(data, list):
        raise ApiError(400, f"data of {where} is {json_type_name(data)}; it must be a list")
    for item in data:
        if isinstance(item, list):
            yield from item  # [rows, 1] may come nested
        else:
            yield item


def _require_string(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise ApiError(400, f"data of {where} has {json_type_name(value)}; it must have strings")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ApiError(400, f"data of {where} has a lone surrogate; it must be Unicode text") from None
    return value


def _split_strings(binary: memoryview, where: str) -> Iterator[memoryview]:
    while len(binary):
        if len(binary) < _LENGTH.size:
            raise ApiError(400, f"the binary data of {where} ends within a length")
        (size,) = _LENGTH.unpack_from(binary)
        end = _LENGTH.size + size
        if end > len(binary):
            raise ApiError(400, f"the binary data of {where} ends within a string")
        yield binary[_LENGTH.size : end]
        binary = binary[end:]


def _decode(item: memoryview, where: str) -> str:
    try:
        return str(item, "utf-8")
    except UnicodeDecodeError:
        raise ApiError(400, f"the binary data of {where} has a string that is not UTF-8") from None
