"""A small object store that speaks as much of S3 as Arrow asks for: objects appear when they are complete."""

import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

import pytest


def use_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys as good as any, and no search for others."""
    for name, value in (("ACCESS_KEY_ID", "one"), ("SECRET_ACCESS_KEY", "two"), ("EC2_METADATA_DISABLED", "true")):
        monkeypatch.setenv(f"AWS_{name}", value)


@contextmanager
def object_store(objects: dict[str, bytes], *, refuse_over: int | None = None) -> Iterator[str]:
    """Serve ``objects`` (``bucket/key`` to content), filled by whoever writes; yields the options of its URIs.

    Args:
        objects: as they are seen.
        refuse_over: bytes that have been put after which nothing more is taken.
    """
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.objects, server.parts, server.room = objects, {}, refuse_over  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"?endpoint_override=127.0.0.1:{server.server_port}&scheme=http&region=here"
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        key, query = self._asked()
        if "list-type" in query:
            bucket, prefix = key.strip("/"), query.get("prefix", [""])[0]
            self._list(bucket, prefix, delimiter=query.get("delimiter", [""])[0])
            return
        content = self.server.objects.get(key)  # type: ignore[attr-defined]
        if content is None:
            self._answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
            return
        span = self.headers.get("Range", "")
        if span:
            first, _, last = span.removeprefix("bytes=").partition("-")
            content = content[int(first) : int(last) + 1 if last else None]
        self._answer(206 if span else 200, content)

    def do_HEAD(self) -> None:
        key, _ = self._asked()
        content = self.server.objects.get(key)  # type: ignore[attr-defined]
        is_bucket = any(name.startswith(key.strip("/") + "/") for name in self.server.objects) and "/" not in key  # type: ignore[attr-defined]
        self._answer(200 if content is not None or is_bucket else 404, content or b"")

    def do_PUT(self) -> None:
        key, query = self._asked()
        content = self._body()
        if self.server.room is not None:  # type: ignore[attr-defined]
            self.server.room -= len(content)  # type: ignore[attr-defined]
            if self.server.room < 0:  # type: ignore[attr-defined]
                self._answer(403, b"<Error><Code>AccessDenied</Code></Error>")
                return
        if "partNumber" in query:
            self.server.parts[key, int(query["partNumber"][0])] = content  # type: ignore[attr-defined]
        else:
            self.server.objects[key] = content  # type: ignore[attr-defined]
        self._answer(200)

    def do_POST(self) -> None:
        key, query = self._asked()
        self._body()
        if "uploads" in query:
            name = "<InitiateMultipartUploadResult><UploadId>one</UploadId></InitiateMultipartUploadResult>"
            self._answer(200, name.encode())
            return
        parts = self.server.parts  # type: ignore[attr-defined]
        self.server.objects[key] = b"".join(parts.pop(part) for part in sorted(parts) if part[0] == key)  # type: ignore[attr-defined]
        self._answer(200, b"<CompleteMultipartUploadResult><ETag>e</ETag></CompleteMultipartUploadResult>")

    def _list(self, bucket: str, prefix: str, *, delimiter: str) -> None:
        entries, folders = "", set()
        for name, content in sorted(self.server.objects.items()):  # type: ignore[attr-defined]
            key = name.removeprefix(bucket + "/")
            if not name.startswith(bucket + "/") or not key.startswith(prefix):
                continue
            if delimiter and delimiter in key[len(prefix) :]:
                folders.add(prefix + key[len(prefix) :].partition(delimiter)[0] + delimiter)
                continue
            entries += f"<Contents><Key>{escape(key)}</Key><Size>{len(content)}</Size>"
            entries += "<LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>e</ETag></Contents>"
        entries += "".join(f"<CommonPrefixes><Prefix>{escape(one)}</Prefix></CommonPrefixes>" for one in folders)
        count = entries.count("<Key>") + len(folders)
        facts = f"<IsTruncated>false</IsTruncated><KeyCount>{count}</KeyCount>"
        self._answer(200, f"<ListBucketResult>{facts}{entries}</ListBucketResult>".encode())

    def _asked(self) -> tuple[str, dict[str, list[str]]]:
        asked = urlsplit(self.path)
        return unquote(asked.path).lstrip("/"), parse_qs(asked.query, keep_blank_values=True)

    def _body(self) -> bytes:
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
        while size := int(stream.readline().partition(b";")[0], 16):  # SIZE;signature CRLF bytes CRLF, at last 0
            content += stream.read(size)
            stream.readline()
        return content

    def _answer(self, status: int, content: bytes = b"") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", '"e"')
        self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Tests are quiet."""
