"""Which files a folder or a pattern means, by their paths alone."""

import os
import re
from collections.abc import Iterator

SETTINGS_NAME = "_limbert.json"  # in a folder of answers; readers of Parquet folders pass over names with an underscore
_WILDCARD = re.compile(r"[*?\[]")


def first_wildcard(path: str) -> int | None:
    """The place of the first part of a path with a wildcard; None for a path without."""
    return next((place for place, part in enumerate(path.split("/")) if _WILDCARD.search(part)), None)


def walk_files(folder: str, ancestors: frozenset[tuple[int, int]] = frozenset()) -> Iterator[str]:
    """The files below a folder of a disk. Links are followed, but for those back to a folder that they are in."""
    status = os.stat(folder)
    here = ancestors | {(status.st_dev, status.st_ino)}
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_file():
                yield entry.path
            elif entry.is_dir() and (entry.stat().st_dev, entry.stat().st_ino) not in here:
                yield from walk_files(entry.path, here)


def visible_files(paths: list[str], root: str) -> set[str]:
    """Those of a folder's files that no hidden folder holds, and no folder of answers but the folder itself."""
    below = {path: tuple(path.strip("/").removeprefix(root.strip("/")).strip("/").split("/")) for path in paths}
    answers = {parts[:-1] for parts in below.values() if parts[-1] == SETTINGS_NAME} - {()}
    return {
        path
        for path, parts in below.items()
        if not any(part.startswith((".", "_")) for part in parts)
        and not any(parts[:depth] in answers for depth in range(len(parts)))
    }


def glob_regex(path: str) -> re.Pattern[str]:
    """A regular expression for whole paths, from one with wildcards; ``**`` is any number of folders."""
    parts = [r"(?:(?![._])[^/]+/)*" if part == "**" else _segment_regex(part) + "/" for part in path.split("/")]
    return re.compile("".join(parts).removesuffix("/"))


def _segment_regex(part: str) -> str:
    """A regular expression for one name, in which no wildcard takes a slash, nor a dot or underscore to begin with."""

    def token(match: re.Match[str]) -> str:
        found = match.group()
        if found in ("*", "?"):
            return "[^/]*" if found == "*" else "[^/]"
        return found.replace("[!", "[^", 1) if len(found) > 1 else re.escape(found)

    return ("(?![._])" if _WILDCARD.match(part) else "") + re.sub(r"\[!?[^\]]+\]|.", token, part)
