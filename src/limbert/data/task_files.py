"""How the files and rows of each task type are read; texts to predict."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from limbert.core.config import DataConfig, TaskType
from limbert.data.columns import choose_columns
from limbert.data.readers import Examples, RowParser, parse_text_row, read_examples
from limbert.data.squad_files import parse_question_row, squad_table
from limbert.data.table import Table, file_format, lines_table, open_table
from limbert.data.tagged_files import CONLL_FORMATS, conll_table, parse_tagged_row
from limbert.data.tasks import Columns, column_layouts, find_glue_task
from limbert.errors import DataError

TAGGED_FORMATS = (*CONLL_FORMATS, ".jsonl", ".json", ".parquet")
_ROW_PARSERS: Mapping[TaskType | None, RowParser] = {
    "multi-label": partial(parse_text_row, multi_label=True),
    "token-classification": parse_tagged_row,
    "question-answering": parse_question_row,
}


def row_parser(task_type: TaskType | None) -> RowParser:
    """Parses the rows of a task type."""
    return _ROW_PARSERS.get(task_type, parse_text_row)


def open_file(path: Path, task_type: TaskType | None = None, *, labelled: bool = True) -> Table:
    """`open_table`, and formats of task types: CoNLL, SQuAD. Without labels ``.txt`` is a text per line (``text``)."""
    suffix = file_format(path)
    if task_type == "question-answering":
        return squad_table(path) if suffix == ".json" else open_table(path)
    if suffix == ".txt" and not labelled:
        return lines_table(path)
    return conll_table(path) if task_type == "token-classification" and suffix in CONLL_FORMATS else open_table(path)


def open_texts(
    path: Path,
    config: DataConfig,
    *,
    task_type: TaskType | None = None,
    open_table: Callable[[Path], Table] | None = None,
) -> tuple[Table, Columns]:
    """The table in a file, and its columns of texts: a ``.txt`` file has a text per line, others are as in training.

    ``open_table`` replaces `open_file`, for files that are not on a disk.
    """
    glue = find_glue_task(config.task, task_type)
    layouts = column_layouts(glue, task_type)
    if file_format(path) == ".txt" and task_type != "question-answering":
        config, layouts = replace(config, text_column="text"), layouts[:1] or (Columns(None),)
    elif task_type == "token-classification" and config.text_column:  # words in training, perhaps plain texts here
        config, layouts = replace(config, text_column=None), (Columns(config.text_column), *layouts)
    table = open_table(path) if open_table else open_file(path, task_type, labelled=False)
    try:
        return choose_columns(table, config, layouts, labelled=False)
    except DataError:
        if glue is None:
            raise
        return choose_columns(table, config, labelled=False)  # any file, for a model that was trained on GLUE's


def load_texts(path: str | Path, config: DataConfig, *, task_type: TaskType | None = None) -> Examples:
    """Load texts, or pairs of texts, without labels: for prediction.

    A ``.txt`` file holds one text per line. Any other file is read as training files are, with the same columns, with
    or without a label column.
    """
    table, columns = open_texts(Path(path).expanduser(), config, task_type=task_type)
    return read_examples(table, columns, row_parser(task_type), skip_bad_rows=config.skip_bad_rows).examples
