"""The budget of lost AP in a terminal. Names from the data are made harmless."""

from __future__ import annotations

from collections.abc import Sequence

from msdetr.analysis.budget import Budget, Cause, Comparison, Diagnosis, Failure, Kind, Part
from msdetr.analysis.budget.advice import advice
from msdetr.analysis.budget.doctor import Basis
from msdetr.viz.style import safe_text

_BAR = 24  # characters
_SHORT = {
    Cause.NEVER: "never",
    Cause.LOST: "lost",
    Cause.CLASS: "class",
    Cause.PLACED: "placed",
    Cause.OUTRANKED: "outrank.",
    Cause.RARELY: "rarely",
    Cause.SWITCHED: "switched",
    Cause.DUPLICATE: "dupl.",
    Cause.BACKGROUND: "backgr.",
}
_NEEDS = {
    Cause.LOST: "it takes the predictions of all decoder layers",
    Cause.SWITCHED: "it takes a recorded training",
    Cause.RARELY: "it takes a recorded training with a one-to-many branch",
}


def budget_text(budget: Budget, diagnosis: Diagnosis | None = None, images: int = 5) -> str:
    """Where the lost AP went, the worst images with reasons, and what to try."""
    if budget.ap is None:
        return "AP is undefined: there are no objects that count"
    head = (
        f"AP {budget.ap:.1f} on {budget.num_images:,} images with {budget.whole.objects:,} objects; {budget.whole.lost:.1f} "
        "points are lost. Where they went:"
    )
    parts = [head, "", cause_table(budget), "", parts_table(budget)]
    parts += [
        "",
        f"THE {images} WORST IMAGES, by what AP would gain were they answered perfectly",
        "",
        worst_text(budget, images),
    ]
    said = advice(budget, diagnosis)
    if said:
        parts += ["", "WHAT TO TRY", "", *(f"{i}. {safe_text(line, 400)}" for i, line in enumerate(said, start=1))]
    if diagnosis is not None:
        parts += ["", "DUPLICATES", "", doctor_text(diagnosis)]
    return "\n".join(parts)


def cause_table(budget: Budget) -> str:
    """A line for each cause, the costliest first, with its bar."""
    shown = sorted(budget.whole.causes, key=lambda one: -one.share)
    most = max((one.share for one in shown), default=0.0) or 1.0
    lines = [f"{'cause':<31}{'share':>7}{'alone':>8}{'errors':>9}"]
    for one in shown:
        if not one.known:
            continue
        bar = "#" * round(_BAR * one.share / most)
        lines.append(f"{one.cause.title:<31}{one.share:>7.1f}{one.gain:>+8.1f}{one.errors:>9,}  {bar}".rstrip())
    lines.append(f"{'together':<31}{sum(one.share for one in shown):>7.1f}")
    lines.append("share: of the lost AP, all add up to it; alone: what AP would gain were nothing else mended;")
    lines.append(f"errors: over the {len(budget.thresholds)} IoU thresholds.")
    lines += [f"{one.cause.title.capitalize()}: not known, {_NEEDS[one.cause]}." for one in shown if not one.known]
    if 0 < budget.recorded_images < budget.num_images:
        lines.append(
            f"Training was recorded on {budget.recorded_images} of the images; what it tells is of their objects."
        )
    return "\n".join(lines)


def parts_table(budget: Budget) -> str:
    """The shares of causes by class, size and decoder layer."""
    shown = [one.cause for one in budget.whole.causes if one.known and one.errors]
    lines = [f"{'':<22}{'objects':>8}{'AP':>7}  " + "".join(f"{_SHORT[cause]:>9}" for cause in shown)]
    for parts, prefix in ((budget.classes, ""), (budget.sizes, ""), (budget.layers, "layer ")):
        lines += [_part_line(prefix + safe_text(part.name, 20), part, shown) for part in parts if part.ap is not None]
    return "\n".join(lines)


def _part_line(name: str, part: Part, causes: Sequence[Cause]) -> str:
    shares = "".join(f"{part[cause].share:>9.1f}" for cause in causes)
    return f"{name:<22}{part.objects:>8,}{part.ap:>7.1f}  {shares}"


def worst_text(budget: Budget, images: int = 5, reasons: int = 3) -> str:
    """The images that cost most, each with the errors that cost most in it."""
    lines = []
    for one in budget.images[:images]:
        lines.append(
            f"{safe_text(one.name or f'image {one.image_id}', 60)} (image {one.image_id}): {one.lost_ap:.1f} points; "
            f"{one.found} of {one.objects} objects found, {one.false} false detections"
        )
        for failure in told_once(budget.failures_of(one.image_id))[:reasons]:
            lines.append(f"  {failure.lost_ap:>5.2f}  {safe_text(failure.sentence, 400)}")
    return "\n".join(lines)


def failure_text(budget: Budget, failures: Sequence[Failure], top: int = 20) -> str:
    """Failures, one a line: what AP would gain were it alone mended, the image, its cause and the reason."""
    if not failures:
        return "no failures of this kind"
    names = {one.image_id: one.name for one in budget.images}
    lines = [f"AP {budget.ap:.1f}" if budget.ap is not None else "AP is undefined"]
    lines[0] += f"; {len(failures):,} failures, {min(top, len(failures)):,} shown"
    for one in failures[:top]:
        name = safe_text(names.get(one.image_id) or f"image {one.image_id}", 40)
        lines.append(
            f"{one.lost_ap:>6.3f}  {name} (image {one.image_id})  {one.cause.title}: {safe_text(one.sentence, 400)}"
        )
    return "\n".join(lines)


def told_once(failures: Sequence[Failure]) -> list[Failure]:
    """Without the false detections that a missed object is put down to already: one failure, seen from both sides."""
    blamed = {
        (one.image_id, one.detection) for one in failures if one.kind is Kind.MISSED and one.detection is not None
    }
    return [one for one in failures if one.kind is not Kind.FALSE or (one.image_id, one.detection) not in blamed]


def doctor_text(diagnosis: Diagnosis) -> str:
    """What would change, exact effects first."""
    lines = [f"Mending duplicates alone would bring {diagnosis.duplicates:+.1f}."]
    for basis in (Basis.EXACT, Basis.MEASURED, Basis.UNKNOWN):
        lines += [safe_text(one.text, 400) for one in diagnosis.remedies if one.basis is basis]
    return "\n".join(lines)


def comparison_text(compared: Comparison, objects: int = 10) -> str:
    """Two runs: what the second wins and loses by cause, and objects that only one of them finds."""
    first, second = (safe_text(name, 40) for name in compared.names)
    if compared.first is None or compared.second is None:
        return "AP is undefined: there are no objects that count"
    change = compared.second - compared.first
    lines = [
        f"A  {first}: AP {compared.first:.1f}",
        f"B  {second}: AP {compared.second:.1f} ({change:+.1f})",
        "",
        f"{'cause':<31}{'A loses':>8}{'B loses':>8}{'B wins':>8}   {'missed by':<17}{'false detections':>16}",
        f"{'':<55}   {'A only':>7}{'B only':>7}   {'A':>8}{'B':>8}",
    ]
    for one in compared.causes:
        if not (one.first or one.second or one.lost_objects or one.found_objects or any(one.false)):
            continue
        lines.append(
            f"{one.cause.title:<31}{one.first:>8.1f}{one.second:>8.1f}{one.won:>+8.1f}   {one.found_objects:>7,}{one.lost_objects:>7,}"
            f"   {one.false[0]:>8,}{one.false[1]:>8,}"
        )
    won = sum(one.won for one in compared.causes)
    lines.append(f"{'together':<31}{100 - compared.first:>8.1f}{100 - compared.second:>8.1f}{won:>+8.1f}")
    lines.append(
        f"Objects and false detections at IoU {compared.iou:g}. Both find {compared.both:,} objects, neither {compared.neither:,}."
    )
    for who, name in ((1, "A"), (0, "B")):
        missed = [one for one in compared.objects if one.found_by == who]
        if missed:
            lines += ["", f"Missed by {name} only" + (f", {objects} of {len(missed)}" if len(missed) > objects else "")]
            lines += [f"  image {one.image_id}: {safe_text(one.sentence, 400)}" for one in missed[:objects]]
    return "\n".join(lines)
