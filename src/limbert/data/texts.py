"""Texts without labels from a file, for tasks with one answer a text; without torch, so that a client can use it."""

from pathlib import Path

from limbert.core.config import DataConfig
from limbert.data.columns import check_columns, choose_columns
from limbert.data.readers import Examples, open_table, read_rows, without_labels
from limbert.data.table import lines_table, readable
from limbert.data.tasks import Columns, glue_task


def read_texts(path: Path, config: DataConfig) -> Examples:
    """Texts, or pairs of texts: of a ``.txt`` file one a line, of any other as training files are read.

    Raises:
        DataError: a missing or unusable file, column or row.
    """
    glue = glue_task(config.task) if config.task is not None else None
    if path.suffix.lower() == ".txt":
        table = lines_table(readable(path))
        pair = config.pair_column or (glue.layouts[0].pair if glue else None)
        columns = check_columns(table, Columns("text", pair, None))
    else:
        table, columns = choose_columns(lambda header: open_table(path, header=header), config, glue, labelled=False)
    return without_labels(read_rows(table, columns, skip_bad_rows=config.skip_bad_rows))
