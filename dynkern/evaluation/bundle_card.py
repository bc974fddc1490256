"""The model card of a bundle, from what was measured of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from dynkern.assets import PREDICTOR_FOLDER, SCORES_FILE
from dynkern.models.int8_file import INT8_FILE

_HEAD = """\
# {name}

A decoder of OPT's architecture with {layers} layers of width {width}, {parameters:.2f} million
parameters, a byte-level BPE of {vocab:,} entries and {positions} positions. It answers the short
synthetic instructions of `dynkern.tasks` in English and knows nothing else: it is here to show,
without a GPU or a download, what skipping layers costs and saves. It is no assistant.

```python
import dynkern

llm = dynkern.LLM()
prompt = "### Instruction:\\nReverse the words.\\n### Input:\\nred green blue\\n### Response:\\n"
print(llm.generate([prompt])[0].text)
```

## Data and licence

Trained on the `train` split of the task suite alone, which this package makes from a seed:
synthetic throughout, no texts of others, no persons. Splits are disjoint by content. Weights,
tokenizer and predictor are under the project's licence, {licence}.
"""
_FILES = (
    (
        f"`{INT8_FILE}`",
        "matrices of the layers as int8 with a float32 scale for each output, embeddings in "
        "bfloat16, the rest in float32; `dynkern.LLM` widens them as it loads",
    ),
    (
        "`config.json`, `generation_config.json`, `tokenizer.json`, `tokenizer_config.json`",
        "as of `transformers`; `</s>` (2) begins and ends a sequence, 1 pads",
    ),
    (f"`{SCORES_FILE}`", "the scores above, unrounded"),
)
_PREDICTOR = (
    f"`{PREDICTOR_FOLDER}/`",
    "chooses layers from a prompt's prefill (`--policy predictor:0.5@default`), fitted on {} "
    "records of the `validation` split",
)


def card(name: str, facts: Mapping[str, Any]) -> str:
    """README.md. facts: as `scores.json` holds them."""
    model = facts["model"]
    parts = [_HEAD.format(name=name, licence="Apache-2.0", **model), _training(facts["training"])]
    if facts.get("scores"):
        parts.append(_scores(facts))
    files = list(_FILES)
    if count := facts.get("predictor_prompts"):
        files.append((_PREDICTOR[0], _PREDICTOR[1].format(count)))
    rows = [_row("file", ["what it holds"]), _row("---", ["---"])]
    parts.append("\n".join(["## Files", "", *rows, *(_row(n, [what]) for n, what in files), ""]))
    return "\n".join(parts)


def _training(training: Mapping[str, Any] | None) -> str:
    lines = ["## Training", ""]
    if not training:
        return "\n".join([*lines, "Not stated.", ""])
    recipe = training.get("recipe") or {}
    read = f"{training['tokens'] / 1e6:.1f} million tokens, padding included"
    steps = f" in {training['steps']:,} steps" if training.get("steps") else ""
    spent = f", {training['seconds'] / 3600:.1f} hours" if training.get("seconds") else ""
    where = f" on {training['device']}" if training.get("device") else ""
    lines += [f"`dynkern pretrain`: {read}{steps}{spent}{where}.", ""]
    # what a reader must know who wants the same weights
    lines += [training["note"], ""] if training.get("note") else []
    if recipe.get("phases"):
        heads = ("layers", "families", "difficulties", "LayerDrop", "drills", "batches a step")
        lines += [_row("until tokens", heads), _row("---", ["---"] * len(heads))]
        for phase in recipe["phases"]:
            families = ", ".join(phase.get("families") or ["all"])
            levels = ", ".join(map(str, phase.get("difficulties") or ["all"]))
            lines.append(
                f"| {phase['until_tokens']:,} | {phase['layers']} | {families} | {levels} | "
                f"{phase.get('layerdrop', 0.0):g} | {_drills(phase)} | "
                f"{phase.get('accumulation') or recipe.get('accumulation', 1)} |"
            )
        rest = {key: value for key, value in recipe.items() if key != "phases"}
        lines += ["", ", ".join(f"{key} {value}" for key, value in rest.items()) + ".", ""]
    return "\n".join(lines)


def _drills(phase: Mapping[str, Any]) -> str:
    """Their share of a phase's records, and how many times each kind stands in the draw."""
    text = f"{phase.get('drills', 0.0):g}"
    kinds = Counter(kind.removeprefix("drill_") for kind in phase.get("kinds") or [])
    named = [f"{n} × {kind}" if n > 1 else kind for kind, n in kinds.items()]
    return f"{text}: {', '.join(named)}" if named else text


def _scores(facts: Mapping[str, Any]) -> str:
    scores, data = facts["scores"], facts["data"]
    bundle, wide = scores["bundle"], scores["float32"]
    labels = list(bundle["rougeL"])
    lines = [
        "## Scores",
        "",
        f"ROUGE-L F1 of greedy answers to {facts['records']:,} records of `{data}`; layers are "
        "left out by uniform skipping behind a full prefill.",
        "",
        _row("layers", labels),
        _row("---", ["---"] * len(labels)),
        _row("this bundle", _numbers(bundle["rougeL"], labels)),
        _row("answers right to the letter", _numbers(bundle["exact"], labels)),
        _row("its float32 original", _numbers(wide["rougeL"], labels)),
        _row("lost by int8", _numbers(_minus(wide["rougeL"], bundle["rougeL"]), labels)),
        "",
        f"Teacher-forced loss of the answers: {bundle['loss']:.4f} nats a token, "
        f"{wide['loss']:.4f} in float32.",
    ]
    for key, head in (
        ("difficulty", "difficulty"),
        ("exact_difficulty", "difficulty, right to the letter"),
        ("family", "family"),
    ):
        lines += ["", _row(head, labels), _row("---", ["---"] * len(labels))]
        for kind in bundle[key][labels[0]]:
            lines.append(_row(kind, [f"{bundle[key][label][kind]:.3f}" for label in labels]))
    return "\n".join([*lines, ""])


def _minus(above: Mapping[str, float], below: Mapping[str, float]) -> dict[str, float]:
    return {label: above[label] - below[label] for label in below}


def _numbers(values: Mapping[str, float], labels: Sequence[str]) -> list[str]:
    return [f"{values[label]:.3f}" for label in labels]


def _row(head: str, cells: Sequence[str]) -> str:
    return f"| {' | '.join([head, *cells])} |"
