"""A small S3 server for tests: objects appear when their upload is complete."""

import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

import pytest


def use_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set credentials (the server accepts any), and keep Arrow from looking for others."""
    for name, value in (("ACCESS_KEY_ID", "one"), ("SECRET_ACCESS_KEY", "two"), ("EC2_METADATA_DISABLED", "true")):
        monkeypatch.setenv(f"AWS_{name}", value)


class _Server(ThreadingHTTPServer):
    def __init__(self, objects: dict[str, bytes], max_bytes: int | None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.objects, self.bytes_left = objects, max_bytes
        self.parts: dict[tuple[str, int], bytes] = {}  # of multi-part uploads


@contextmanager
def object_store(objects: dict[str, bytes], *, refuse_over: int | None = None) -> Iterator[str]:
    """Serve ``objects`` and yield the options for URIs of the store.

    Args:
        objects: content by ``bucket/key``; uploads are added.
        refuse_over: bytes after which uploads are refused.
    """
    server = _Server(objects, refuse_over)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"?endpoint_override=127.0.0.1:{server.server_port}&scheme=http&region=here"
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_GET(self) -> None:
        key, query = self._parse_path()
        if "list-type" in query:
            self._list(key.strip("/"), query.get("prefix", [""])[0], delimiter=query.get("delimiter", [""])[0])
            return
        content = self.server.objects.get(key)
        if content is None:
            self._reply(404, b"<Error><Code>NoSuchKey</Code></Error>")
            return
        byte_range = self.headers.get("Range", "")
        if byte_range:
            first, _, last = byte_range.removeprefix("bytes=").partition("-")
            content = content[int(first) : int(last) + 1 if last else None]
        self._reply(206 if byte_range else 200, content)

    def do_HEAD(self) -> None:
        key, _ = self._parse_path()
        content = self.server.objects.get(key)
        is_bucket = "/" not in key and any(name.startswith(f"{key.strip('/')}/") for name in self.server.objects)
        self._reply(200 if content is not None or is_bucket else 404, content or b"")

    def do_PUT(self) -> None:
        key, query = self._parse_path()
        content = self._read_body()
        if self.server.bytes_left is not None:
            self.server.bytes_left -= len(content)
            if self.server.bytes_left < 0:
                self._reply(403, b"<Error><Code>AccessDenied</Code></Error>")
                return
        if "partNumber" in query:
            self.server.parts[key, int(query["partNumber"][0])] = content
        else:
            self.server.objects[key] = content
        self._reply(200)

    def do_POST(self) -> None:
        key, query = self._parse_path()
        self._read_body()
        if "uploads" in query:
            name = "<InitiateMultipartUploadResult><UploadId>one</UploadId></InitiateMultipartUploadResult>"
            self._reply(200, name.encode())
            return
        parts = self.server.parts
        self.server.objects[key] = b"".join(parts.pop(part) for part in sorted(parts) if part[0] == key)
        self._reply(200, b"<CompleteMultipartUploadResult><ETag>e</ETag></CompleteMultipartUploadResult>")

    def _list(self, bucket: str, prefix: str, *, delimiter: str) -> None:
        entries, folders = "", set()
        for name, content in sorted(self.server.objects.items()):
            key = name.removeprefix(bucket + "/")
            if not name.startswith(bucket + "/") or not key.startswith(prefix):
                continue
            if delimiter and delimiter in key[len(prefix) :]:
                folders.add(prefix + key[len(prefix) :].partition(delimiter)[0] + delimiter)
                continue
            entries += f"<Contents><Key>{escape(key)}</Key><Size>{len(content)}</Size>"
            entries += "<LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>e</ETag></Contents>"
        entries += "".join(f"<CommonPrefixes><Prefix>{escape(path)}</Prefix></CommonPrefixes>" for path in folders)
        count = entries.count("<Key>") + len(folders)
        header = f"<IsTruncated>false</IsTruncated><KeyCount>{count}</KeyCount>"
        self._reply(200, f"<ListBucketResult>{header}{entries}</ListBucketResult>".encode())

    def _parse_path(self) -> tuple[str, dict[str, list[str]]]:
        parts = urlsplit(self.path)
        return unquote(parts.path).lstrip("/"), parse_qs(parts.query, keep_blank_values=True)

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while chunk := self.rfile.read(int(self.rfile.readline(), 16)):
                body += chunk
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if "aws-chunked" not in self.headers.get("Content-Encoding", ""):
            return body
        content, stream = b"", io.BytesIO(body)
        while size := int(stream.readline().partition(b";")[0], 16):  # SIZE;signature CRLF bytes CRLF, ended by size 0
            content += stream.read(size)
            stream.readline()
        return content

    def _reply(self, status: int, content: bytes = b"") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", '"e"')
        self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Print nothing."""
