"""A picture of the report: one drawing for broad pages and files, one for phones, and the sentence under both."""

import re
from dataclasses import dataclass

from limbert.report.drawing import Drawing


def safe_file_name(text: str) -> str:
    """Part of a file's name made of any text: letters, digits, ``-`` and ``_``."""
    return re.sub(r"[^\w-]+", "-", text)


@dataclass(frozen=True)
class Picture:
    """What the page shows and the folder beside it keeps.

    Attributes:
        name: of its file, without ending.
        caption: one plain sentence: what it shows and what follows.
        wide: for broad pages and the file.
        narrow: for phones; None where ``wide`` is narrow enough.
    """

    name: str
    caption: str
    wide: Drawing
    narrow: Drawing | None = None
