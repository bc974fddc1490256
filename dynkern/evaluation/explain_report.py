"""`dynkern explain` in words and tables."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table

from dynkern.evaluation.explain import Explanation, Parts

# a part below this share of a pass is not worth a sentence
WORTH_SAYING = 0.05
# a pass of small models that reaches less of the roofline is held up by something else
LAUNCH_BOUND = 0.5
# realisation below which time is lost between the parts
REALISED = 0.9


def print_explanation(found: Explanation) -> None:
    """Print it to stdout."""
    console, case, judged = Console(), found.case, found.judged
    console.print(
        f"{case.name}, {case.batch_size} rows of {case.prompt_tokens} tokens, "
        f"{found.executor} executor on {found.peaks.device}, which reads "
        f"{found.peaks.bandwidth / 1e9:.0f} GB/s",
        highlight=False,
    )
    if found.loaded:
        console.print("other processes were busy: take times with care", style="yellow")
    console.print(_parts_table(found))
    console.print(
        f"speed-up of decoding: {judged.speedup.median:.2f} measured, "
        f"{judged.predicted_speedup:.2f} possible (realisation {judged.realisation:.2f})",
        highlight=False,
    )
    for sentence in sentences(found):
        console.print(f"- {sentence}", highlight=False)
    console.print(_options_table(found))
    console.print(advice(found), highlight=False)


def sentences(found: Explanation) -> list[str]:
    """What limits the case, most general first; never empty."""
    case, parts, mine = found.case, found.parts, found.options[0]
    said = []
    if mine.union > 1.1 * mine.mean_layers:
        said.append(
            f"shared weights: a row runs {mine.mean_layers:.1f} of {found.num_layers} layers, but "
            f"some row of a pass runs {mine.union:.1f}, and what one row runs is read for all"
        )
    if parts.fixed > 0.25 * parts.total:
        bound = found.full_parts.total / parts.fixed
        said.append(
            f"LM head: embedding and head take {parts.fixed / parts.total:.0%} of the pass; no "
            f"policy shortens them, and without any layer the speed-up would be {bound:.1f}"
        )
    if parts.rows > WORTH_SAYING * parts.total:
        said.append(
            f"arithmetic: {case.batch_size} rows in a layer take {found.row_cost:.2f} x as long as "
            "one, so rows that skip save time even where another row reads the layer"
        )
    if parts.attention > WORTH_SAYING * parts.total:
        said.append(
            f"attention: reading K/V takes at least {parts.attention / parts.total:.0%} of the pass"
        )
    if parts.fill > WORTH_SAYING * parts.total:
        said.append(
            f"K/V fill: {parts.fill / parts.total:.0%} of the pass projects K/V of skipped layers "
            f"(kv_fill {case.kv_fill}); copy does without, at some loss of quality"
        )
    if parts.heads > WORTH_SAYING * parts.total:
        said.append(
            f"exit heads: {parts.heads / parts.total:.0%} of the pass asks the LM head whether to "
            "leave; fewer exit layers ask less often"
        )
    if found.efficiency < LAUNCH_BOUND:
        said.append(
            f"launches: even full depth reaches only {found.efficiency:.0%} of what bandwidth and "
            f"arithmetic allow; calls and small matrices hold the {found.executor} executor up"
        )
    if found.judged.realisation < REALISED:
        said.append(
            f"between the parts: {1 - found.judged.realisation:.0%} of the measured time is in "
            "none of them"
        )
    if not said:
        said.append(
            f"reading weights: {parts.weights / parts.total:.0%} of the pass reads the layers that "
            "are run; time falls with every layer skipped"
        )
    return said


def advice(found: Explanation) -> str:
    """One sentence: which of the options gives most tokens, if any gives more than the case."""
    mine, best = found.options[0], max(found.options, key=lambda o: o.tokens_per_second)
    gain = best.tokens_per_second / mine.tokens_per_second
    if gain < 1 + WORTH_SAYING:
        return "none of these gives 5 % more tokens than the case itself"
    what = {f"{best.batch_size} rows": "the same policy with", "cohorts": "sorting rows into"}
    return (
        f"most would pay {what.get(best.name, '')} {best.name}: {gain:.2f} x the tokens a second"
    ).replace("  ", " ")


_PARTS = {
    "embedding and LM head": "fixed",
    "reading the layers' weights": "weights",
    "more rows in a layer": "rows",
    "K/V fill": "fill",
    "heads at exit layers": "heads",
}


def _parts_table(found: Explanation) -> Table:
    table = Table(title="possible time of a pass, ms", box=box.SIMPLE)
    for column in ("part", "full depth", found.case.name, "share"):
        table.add_column(column, justify="left" if column == "part" else "right")
    for label, field in _PARTS.items():
        full, mine = (getattr(p, field) for p in (found.full_parts, found.parts))
        if full or mine:
            table.add_row(label, _ms(full), _ms(mine), f"{mine / found.parts.total:.0%}")
    table.add_row("together", *(_ms(p.total) for p in _both(found)), "100%")
    return table


def _both(found: Explanation) -> tuple[Parts, Parts]:
    return found.full_parts, found.parts


def _options_table(found: Explanation) -> Table:
    table = Table(title="what would pay, predicted", box=box.SIMPLE)
    for column in ("", "rows", "layers of a row", "layers read", "tokens/s", "x full depth"):
        table.add_column(column, justify="right" if column else "left")
    for option in found.options:
        table.add_row(
            option.name,
            str(option.batch_size),
            f"{option.mean_layers:.1f}",
            f"{option.union:.1f}",
            f"{option.tokens_per_second:.0f}",
            f"{option.speedup:.2f}",
        )
    return table


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3f}"
