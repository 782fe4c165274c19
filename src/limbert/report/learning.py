"""Section: how each phase of the training went."""

from statistics import fmean

from limbert.report.curves import training_curves
from limbert.report.numbers import join_words, pluralize
from limbert.report.picture import Picture, safe_file_name
from limbert.report.read import RunData

_GATES_PHASE = "gates"  # its validation is the loss of the gates, logged with a minus; the others' is the task's metric


def training_pictures(data: RunData) -> list[tuple[str, Picture]]:
    """Phase names with their curves, in the order of the training; phases that logged nothing are left out."""
    found = []
    for phase in dict.fromkeys(row["phase"] for row in data.training_log):
        rows = [row for row in data.training_log if row["phase"] == phase]
        sign = -1 if phase == _GATES_PHASE else 1
        losses = [(float(row["step"]), float(row["loss"])) for row in rows if "loss" in row]
        scale = 1.0 if phase == _GATES_PHASE else 100.0
        scores = [(float(row["step"]), sign * scale * float(row["validation"])) for row in rows if "validation" in row]
        if losses or scores:
            found.append((phase, _training_picture(data, phase, losses, scores)))
    return found


def earlier_phases_note(data: RunData) -> str:
    """One sentence on the phases that an earlier run trained; empty where there were none."""
    mine = [*data.record.get("settings", {}).get("recipe", {}).get("phases", {})]
    before = list(data.record.get("phases", []))
    before = before[: max(len(before) - len(mine), 0)]
    start = data.record.get("settings", {}).get("train", {}).get("model")
    if not before or not start:
        return ""
    return f"{join_words(before).capitalize()} came before, in {start}; its own report shows those curves."


def _training_picture(
    data: RunData, phase: str, losses: list[tuple[float, float]], scores: list[tuple[float, float]]
) -> Picture:
    gates = phase == _GATES_PHASE
    caption = _training_summary(data, losses, scores, gates=gates)
    drawing = training_curves(
        losses,
        scores,
        score_label="loss on the validation slice" if gates else f"validation: mean {data.task.primary_metric} x 100",
        score_format="{:.3f}" if gates else "{:.1f}",
        lower_is_better=gates,
        alt_text=f"Training curves of phase {phase}. {caption}",
        size=(346.0, 400.0),
    )
    return Picture(f"training-{safe_file_name(phase)}", caption, drawing)


def _training_summary(
    data: RunData, losses: list[tuple[float, float]], scores: list[tuple[float, float]], *, gates: bool
) -> str:
    parts = []
    if gates:
        parts.append("The training loss carries the noise that gates are trained with; the loss below has none.")
    elif len(losses) > 3:  # single reports are noisy
        quarter = len(losses) // 4
        first, last = (fmean(value for _, value in part) for part in (losses[:quarter], losses[-quarter:]))
        verb = "fell" if last < first else "rose"
        steps = pluralize(int(losses[-1][0]), "step")
        parts.append(
            f"The training loss {verb} from {first:.3g} (first quarter) to {last:.3g} (last quarter of {steps})."
        )
    if scores:
        best = (min if gates else max)(scores, key=lambda one: one[1])
        what = f"loss on the validation slice, {best[1]:.3f}" if gates else f"validation, {best[1]:.1f}"
        where = " (the last)" if best[0] == scores[-1][0] else ""
        parts.append(f"The best {what}, came after step {best[0]:.0f}{where}; those weights were kept.")
    return " ".join(parts)
