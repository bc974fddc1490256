"""What runs of `dynkern eval` say, in plain sentences that their numbers decide."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dynkern.evaluation.names import display_names, family_of, listed
from dynkern.report.scales import finite, interval, number, percent

Run = Mapping[str, Any]

# realisation from which on nothing to speak of is lost
REALISED = 0.97
# layers by which policies may differ and still be compared
SAME_BUDGET = 0.5


def findings(runs: Sequence[Run], num_layers: int, prompts: int) -> list[str]:
    """Three sentences on quality, time or layers, and choice for each prompt or realisation; fewer
    where less was measured. A policy counts as lower or higher than full depth only where the 95 %
    interval of the paired difference is clear of 0.
    """
    names = display_names(run["policy"] for run in runs)
    full = next(run for run in runs if run["policy"] == "full")
    others = [run for run in runs if run is not full]
    if not others:
        limits = interval(full["rougeL_ci"], 3)
        return [
            f"Only full depth was run: ROUGE-L {number(full['rougeL'], 3)} on {_prompts(prompts)} "
            f"(95 % interval {limits})."
        ]
    said = [_quality(full, others, names, prompts), _cost(full, others, names, num_layers)]
    said.append(_choice(runs, names) or realised(others, names) or _agreement(others, names))
    return [sentence for sentence in said if sentence]


def verdict(run: Run) -> str:
    """ "lower", "higher" or "same", by the interval of the paired difference from full depth."""
    low, high = run.get("rougeL_diff_ci") or (None, None)
    if not finite(low) or not finite(high):
        return "same"
    return "lower" if high < 0 else "higher" if low > 0 else "same"


def overlap(one: Run, other: Run) -> bool:
    """Whether two runs' 95 % intervals of ROUGE-L have something in common."""
    (a, b), (c, d) = one["rougeL_ci"], other["rougeL_ci"]
    return a <= d and c <= b


def _prompts(count: int) -> str:
    return "1 prompt" if count == 1 else f"{count} prompts"


def _scored(runs: Sequence[Run], names: Mapping[str, str]) -> str:
    return listed(f"{names[run['policy']]} ({number(run['rougeL'], 3)})" for run in runs)


def _quality(full: Run, others: Sequence[Run], names: Mapping[str, str], prompts: int) -> str:
    at = f"full depth's ROUGE-L of {number(full['rougeL'], 3)} on {_prompts(prompts)}"
    groups = {kind: [r for r in others if verdict(r) == kind] for kind in ("lower", "higher")}
    same = [run for run in others if verdict(run) == "same"]
    if not groups["lower"] and not groups["higher"]:
        wide = max(same, key=lambda run: _width(run))
        which = "None of the policies" if len(same) > 1 else names[same[0]["policy"]]
        verb = "can" if len(same) > 1 else "cannot"
        return (
            f"{which} {verb} be told apart from {at}: the 95 % interval of the paired difference "
            f"includes 0{' for each' if len(same) > 1 else ''}, the widest being "
            f"{interval(wide.get('rougeL_diff_ci'), 3) or 'unknown'}."
        )
    clauses = [
        f"{kind} beyond chance {'is' if len(runs) == 1 else 'are'} {_scored(runs, names)}"
        for kind, runs in groups.items()
        if runs
    ]
    if same:
        clauses.append(
            f"{_scored(same, names)} cannot be told apart from it, as the 95 % interval of the "
            f"paired difference includes 0"
        )
    else:
        clauses.append("the 95 % interval of no paired difference includes 0")
    return f"Against {at}, {'; '.join(clauses)}."


def _width(run: Run) -> float:
    low, high = run.get("rougeL_diff_ci") or (None, None)
    return high - low if finite(low) and finite(high) else -1.0


def _cost(
    full: Run, others: Sequence[Run], names: Mapping[str, str], num_layers: int
) -> str | None:
    keeping = [run for run in others if verdict(run) != "lower"]
    timed = [run for run in keeping or others if finite(run.get("speedup"))]
    if not timed:
        counted = [run for run in keeping or others if finite(run.get("mean_layers"))]
        if not counted:
            return None
        best = min(counted, key=lambda run: run["mean_layers"])
        whose = (
            "Of the policies that are not lower"
            if keeping
            else "None keeps the quality, and of all"
        )
        return (
            f"{whose}, {names[best['policy']]} runs the fewest layers: "
            f"{number(best['mean_layers'], 2)} of {num_layers} for each routed token; no time was "
            "measured."
        )
    best = max(timed, key=lambda run: run["speedup"])
    name, spread = names[best["policy"]], best.get("speedup_spread") or (None, None)
    limits = interval(spread, 2)
    decode = ""
    if finite(best.get("speedup_decode")):
        decode = f" and {number(best['speedup_decode'], 2)} times in decoding"
    at = f"at {number(best['rougeL'], 3)} against {number(full['rougeL'], 3)}"
    whose = (
        "Of the policies that are not lower" if keeping else "None keeps the quality, and of all"
    )
    if limits and spread[0] <= 1 <= spread[1]:
        return (
            f"{whose}, none is shown to be faster: {name} comes to {number(best['speedup'], 2)} "
            f"times full depth's speed end to end, but its rounds reach from {limits}."
        )
    if best["speedup"] < 1:
        return f"{whose}, none is faster than full depth: {name} comes closest with {limits}."
    rounds = f" (rounds: {limits})" if limits else ""
    return (
        f"{whose}, {name} is the fastest: {number(best['speedup'], 2)} times full depth's speed "
        f"end to end{rounds}{decode}, {at}."
    )


def realised(others: Sequence[Run], names: Mapping[str, str]) -> str | None:
    """How much of the possible time was reached; None where nothing was timed."""
    known = [run for run in others if finite(run.get("realisation"))]
    if not known:
        return None
    worst, best = (pick(known, key=lambda run: run["realisation"]) for pick in (min, max))
    low, high = (number(run["realisation"], 2) for run in (worst, best))
    values = f"realisation is {low}" if low == high else f"realisation is {low} to {high}"
    if len(known) > 1 and low != high:
        values += f", the least with {names[worst['policy']]}"
    said = (
        f"Decoding takes what the layers that ran make possible ({values})"
        if worst["realisation"] >= REALISED
        else f"Decoding takes up to {percent(1 / worst['realisation'] - 1)} longer than the layers "
        f"that ran make possible ({values})"
    )
    if best["realisation"] > 1.05:
        said += "; above 1 a policy ran faster than its parts, timed on their own, add up to"
    return said + "."


def _choice(runs: Sequence[Run], names: Mapping[str, str]) -> str | None:
    """Policies that choose for each prompt, beside the nearest one that does not."""
    clauses = []
    plain = [r for r in runs if family_of(r["policy"])[0] not in ("oracle", "predictor")]
    for kind in ("oracle", "predictor"):
        for run in runs:
            if family_of(run["policy"])[0] != kind or not finite(run.get("mean_layers")):
                continue
            near = _nearest(run, plain)
            if near is None:
                continue
            relation = (
                "the 95 % intervals overlap"
                if overlap(run, near)
                else "the 95 % intervals do not overlap"
            )
            clauses.append(
                f"{names[run['policy']]} reaches {number(run['rougeL'], 3)} with "
                f"{number(run['mean_layers'], 2)} layers in the mean, {names[near['policy']]} "
                f"{number(near['rougeL'], 3)} with {number(near['mean_layers'], 2)} ({relation})"
            )
            break
    return f"Choosing for each prompt: {'; '.join(clauses)}." if clauses else None


def _nearest(run: Run, plain: Sequence[Run]) -> Run | None:
    """The best of those that run about as many layers, else the nearest in layers."""
    known = [other for other in plain if finite(other.get("mean_layers"))]
    if not known:
        return None

    def apart(other: Run) -> float:
        return abs(other["mean_layers"] - run["mean_layers"])

    close = [other for other in known if apart(other) <= SAME_BUDGET]
    return max(close, key=lambda o: o["rougeL"]) if close else min(known, key=apart)


def _agreement(others: Sequence[Run], names: Mapping[str, str]) -> str | None:
    known = [run for run in others if finite(run.get("agreement_with_full"))]
    if not known:
        return None
    least, most = (pick(known, key=lambda r: r["agreement_with_full"]) for pick in (min, max))
    told = [f"{percent(r['agreement_with_full'])} ({names[r['policy']]})" for r in (least, most)]
    if least is most:
        return f"Tokens are those of full depth at {told[0]} of the positions."
    return f"Tokens are those of full depth at {told[0]} to {told[1]} of the positions."
