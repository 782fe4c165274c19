"""Training rows joined by their augmented copies: which copies train, and what their labels are."""

import torch
import torch.nn.functional as F

from limbert.data.augmented import Augmented
from limbert.data.tokenize import TokenizedExamples
from limbert.data.readers import Examples
from limbert.train.progress import Monitor


def with_copies(
    rows: TokenizedExamples,
    copies: Augmented,
    tokens: TokenizedExamples,
    *,
    train: Examples,
    validation: Examples,
    monitor: Monitor,
) -> TokenizedExamples:
    """The training rows, then the copies of them; copies of rows that validate, or do not train, are left out.

    Where the copies come with a teacher's logits, these stand for the copies' labels: the label loss of a phase, if it
    has a weight, is then taken to their softmax (with several labels, to their sigmoid; in a regression, to the
    value). The loss on logits is still taken to the phase's own teacher, which sees each copy.

    Args:
        rows: the training rows.
        copies: all of them, with the class ids of the model.
        tokens: of these copies, with their labels.
        train, validation: the rows that train and that validate.
        monitor: told how many copies there are.

    Raises:
        DataError: if no copy is left.
    """
    places = copies.usable(train=train, validation=validation)
    left_out = len(copies) - len(places)
    monitor.note(
        f"{len(places)} augmented rows in the phases that distil"
        + (f"; {left_out} left out: copies of rows that validate or do not train" if left_out else "")
    )
    chosen = tokens.select(places)
    if copies.logits is None:
        return rows.followed_by(chosen)
    assert rows.labels is not None
    logits = torch.from_numpy(copies.logits[places])  # (copies, outputs)
    if rows.labels.ndim > 1:  # several labels
        return rows.followed_by(chosen.labelled(logits.sigmoid()))
    if rows.labels.is_floating_point():
        return rows.followed_by(chosen.labelled(logits[:, 0]))
    certain = F.one_hot(rows.labels, logits.shape[-1]).float()
    return rows.labelled(certain).followed_by(chosen.labelled(logits.softmax(dim=-1)))
