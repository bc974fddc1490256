"""`dynkern analyze hidden-states`: how far routes bend the final hidden state, and why.

The first experiment of arXiv 2410.20022, teacher-forced: prompt tokens run every layer, response
tokens follow the route, and the final state of each is compared with that of the full model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from dynkern import rng, routes
from dynkern.data import TEMPLATES
from dynkern.evaluation.analysis import bootstrap_interval
from dynkern.evaluation.analysis_page import hidden_states_report
from dynkern.evaluation.confidence import load_part
from dynkern.evaluation.progress import Progressing
from dynkern.evaluation.tables import draw_lines, write_csv
from dynkern.files import make_folder
from dynkern.report import write_report
from dynkern.routes import check_choice
from dynkern.training.data import Collator
from dynkern.training.finetune import prepare
from dynkern.training.model import OPTForCausalLM, Regime, Visit

FAMILIES = ("uniform", "early_exit", "random")


@dataclass(frozen=True)
class HiddenStatesConfig:
    """The arguments of `dynkern analyze hidden-states`. draws: random subsets a sequence."""

    model: str
    data: str
    split: str = "test"
    limit: int | None = 256
    template: str = "alpaca"
    max_length: int = 512
    batch_size: int = 8
    draws: int = 1
    seed: int = 0
    output: Path = Path("dynkern-hidden-states")

    def check(self) -> None:
        """Raise a one-line ValueError on anything out of range."""
        check_choice("template", self.template, tuple(TEMPLATES))
        for name in ("batch_size", "draws"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected 1 or more")
        if not 0 <= self.seed < 1 << 32:
            raise ValueError(f"seed: got {self.seed}, expected 0 to 2**32 - 1")


def run_hidden_states(config: HiddenStatesConfig, console: Console | None = None) -> Path:
    """Write cosine.csv, cosine.png, layers.csv, layers.png and report.html; their folder.

    Raises ValueError or FileNotFoundError, one line, on bad input.
    """
    console = console or Console()
    config.check()
    make_folder(config.output)
    model, batches = teacher_forced_batches(config)
    with Progressing(console) as progress:
        distances, losses = route_effects(
            model, batches, config.draws, config.seed, progress.task("routes")
        )
        layers = layer_facts(model, batches, progress.task("layers"))
    rows = [
        row | {"loss": losses[row["policy"]]}
        for row in distance_rows(distances, model.num_layers, config.seed)
    ]
    write_csv(config.output / "cosine.csv", rows)
    write_csv(config.output / "layers.csv", layers)
    draw_lines(
        config.output / "cosine.png",
        _lines(rows, "cosine_distance", "p10", "p90"),
        "layers run by response tokens",
        "cosine distance to the full model's final state (band: 10 to 90 % of sequences)",
    )
    draw_lines(
        config.output / "layers.png",
        {
            name: [(row["layer"], row[key], None, None) for row in layers]
            for name, key in (
                ("update / residual norm", "update_ratio"),
                ("FFN activations that are zero", "ffn_zero"),
            )
        },
        "layer",
        "ratio, share",
    )
    closer = [
        budget
        for budget in range(1, model.num_layers)
        if np.mean(distances["uniform", budget]) < np.mean(distances["early_exit", budget])
    ]
    console.print(
        f"skipping is closer to the full model than early exit at {len(closer)} of "
        f"{model.num_layers - 1} budgets; results in {config.output}",
        highlight=False,
        soft_wrap=True,
    )
    page = write_report(config.output, hidden_states_report(config, rows, layers))
    console.print(f"report in {page}", highlight=False, soft_wrap=True)
    return config.output


def teacher_forced_batches(config: Any) -> tuple[OPTForCausalLM, list[dict[str, Tensor]]]:
    """The model, and the records' sequences in batches; ValueError, one line, on bad input."""
    records = load_part(config.data, config.split, config.limit)
    for record in records:
        if not record.output.strip():
            raise ValueError(f"data: record {record.id!r} has a blank output, expected a response")
    prepared = prepare(
        config.model,
        None,
        (records, [], []),
        config.template,
        config.max_length,
        0,
        config.seed,
        lambda num_layers: Regime(),
    )
    items, size = prepared.training.items, config.batch_size
    collate = Collator(prepared.model.config.pad_token_id)
    batches = [collate(items[start : start + size]) for start in range(0, len(items), size)]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    on_device = [{k: v.to(device) for k, v in batch.items()} for batch in batches]
    return prepared.model.to(device).eval(), on_device


def planned_routes(
    family: str, budget: int, num_layers: int, first: int, count: int, draw: int, seed: int
) -> Tensor:
    """Routes bool [L, count] of sequences `first` on; "early_exit" runs the first layers."""
    if family == "random":
        ids = torch.arange(first, first + count)
        scores = rng.layer_uniforms(seed, ids, draw, num_layers, rng.STREAM_PLAN)
        return routes.smallest_subset(scores, budget)
    fixed = {
        "uniform": lambda: routes.uniform(num_layers, budget),
        "early_exit": lambda: routes.early_exit(num_layers, budget - 1),
    }[family]()
    return fixed[:, None].expand(num_layers, count)


def route_effects(
    model: OPTForCausalLM,
    batches: Sequence[dict[str, Tensor]],
    draws: int,
    seed: int,
    report: Callable[[int, int, str], None],
) -> tuple[dict[tuple[str, int], list[float]], dict[str, float]]:
    """Cosine distance of every sequence for (family, budget), mean over its routed tokens, of the
    final states as the LM head reads them; and the teacher-forced loss of each "family:budget" over
    routed tokens that lead to a label, in nats.
    """
    num_layers = model.num_layers
    distances: dict[tuple[str, int], list[float]] = {}
    sums: dict[str, list[float]] = {}
    first = 0
    for place, batch in enumerate(batches):
        report(place, len(batches), "")
        ids, prompt = batch["input_ids"], batch["prompt_length"]
        routed = model.routed_tokens(ids, prompt)
        labels = torch.nn.functional.pad(batch["labels"][:, 1:], (0, 1), value=-100)
        counted = routed & (labels != -100)
        with torch.no_grad():
            full = model.hidden_states(ids, Visit())
            for family, budget, draw in _cases(num_layers, draws):
                table = planned_routes(family, budget, num_layers, first, len(ids), draw, seed)
                keep = model.keep_of(table.to(ids.device), routed)
                hidden = model.hidden_states(ids, Visit(keep=keep))
                cosine = torch.cosine_similarity(full.double(), hidden.double(), dim=-1)
                shares = ((1 - cosine) * counted).sum(dim=1) / counted.sum(dim=1)
                known = counted.any(dim=1)
                distances.setdefault((family, budget), []).extend(shares[known].tolist())
                nll = model._losses(hidden[counted], labels[counted])
                total = sums.setdefault(f"{family}:{budget}", [0.0, 0])
                total[0] += float(nll.sum())
                total[1] += len(nll)
        first += len(ids)
    report(len(batches), len(batches), "done")
    return distances, {name: nll / max(count, 1) for name, (nll, count) in sums.items()}


def _cases(num_layers: int, draws: int) -> Iterator[tuple[str, int, int]]:
    for family in FAMILIES:
        for budget in range(1, num_layers + 1):
            for draw in range(draws if family == "random" else 1):
                yield family, budget, draw


def distance_rows(
    distances: dict[tuple[str, int], list[float]], num_layers: int, seed: int
) -> list[dict[str, Any]]:
    """Rows of cosine.csv: mean with its 95 % interval, and the band of sequences."""
    rows = []
    for (family, budget), values in distances.items():
        low, high = bootstrap_interval(values, seed)
        p10, p90 = np.percentile(values, [10, 90])
        rows.append(
            {
                "policy": f"{family}:{budget}",
                "family": family,
                "budget": budget,
                "layers": num_layers,
                "sequences": len(values),
                "cosine_distance": float(np.mean(values)),
                "ci_low": low,
                "ci_high": high,
                "p10": float(p10),
                "p90": float(p90),
            }
        )
    return rows


def layer_facts(
    model: OPTForCausalLM,
    batches: Sequence[dict[str, Tensor]],
    report: Callable[[int, int, str], None],
) -> list[dict[str, Any]]:
    """Rows of layers.csv at full depth, over response tokens: norm of a layer's update over that
    of the residual it is added to ("update_ratio", mean, 10 and 90 %), cosine of residual before
    and after, and the share of FFN activations that are exactly zero.
    """
    layers = model.model.decoder.layers
    ratios: list[list[Tensor]] = [[] for _ in layers]
    cosines: list[list[Tensor]] = [[] for _ in layers]
    zeros = [[0, 0] for _ in layers]
    here: Tensor | None = None

    def on_layer(place: int, before: Tensor, after: Tensor) -> None:
        x, y = before[here].double(), after[here].double()
        ratios[place].append((y - x).norm(dim=-1) / x.norm(dim=-1))
        cosines[place].append(torch.cosine_similarity(x, y, dim=-1))

    def hook(place: int) -> Callable[..., None]:
        def note(module: Any, arguments: tuple[Tensor, ...]) -> None:
            active = arguments[0].reshape(*here.shape, -1)[here]
            zeros[place][0] += int((active == 0).sum())
            zeros[place][1] += active.numel()

        return note

    handles = [
        layer.fc2.register_forward_pre_hook(hook(place)) for place, layer in enumerate(layers)
    ]
    try:
        for place, batch in enumerate(batches):
            report(place, len(batches), "")
            here = batch["labels"] != -100
            with torch.no_grad():
                model.hidden_states(batch["input_ids"], Visit(on_layer=on_layer))
    finally:
        for handle in handles:
            handle.remove()
    report(len(batches), len(batches), "done")
    rows = []
    for place in range(len(layers)):
        ratio = torch.cat(ratios[place]).cpu().numpy()
        p10, p90 = np.percentile(ratio, [10, 90])
        rows.append(
            {
                "layer": place,
                "update_ratio": float(ratio.mean()),
                "update_ratio_p10": float(p10),
                "update_ratio_p90": float(p90),
                "residual_to_update": float((1 / ratio).mean()),
                "cosine_before_after": float(torch.cat(cosines[place]).mean()),
                "ffn_zero": zeros[place][0] / zeros[place][1],
            }
        )
    return rows


def _lines(rows: Sequence[dict[str, Any]], key: str, low: str, high: str) -> dict[str, list]:
    lines: dict[str, list] = {}
    for row in rows:
        point = (row["budget"], row[key], row[low], row[high])
        lines.setdefault(row["family"], []).append(point)
    return lines
