"""`dynkern calibrate`: the confidence threshold that keeps a share of quality."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from dynkern.data import Record, load_records
from dynkern.evaluation.analysis import bootstrap_interval
from dynkern.evaluation.analysis_page import calibration_report
from dynkern.evaluation.progress import Progressing
from dynkern.evaluation.rouge import score
from dynkern.evaluation.sweep import SweepConfig, encode_prompts
from dynkern.files import make_folder, write_whole
from dynkern.llm import LLM
from dynkern.policies import check_policy
from dynkern.policies.token import MEASURES, Confidence
from dynkern.report import write_report
from dynkern.routes import check_choice


@dataclass(frozen=True)
class CalibrateConfig:
    """The arguments of `dynkern calibrate`. target: share of full depth's ROUGE-L to keep; grid:
    thresholds tried, evenly spread over the measure's range.
    """

    model: str
    data: str
    policy: str = "confidence"
    measure: str = "top_prob"
    exits: tuple[int, ...] = ()
    target: float = 0.98
    grid: int = 11
    split: str = "validation"
    limit: int | None = None
    template: str = "alpaca"
    batch_size: int = 8
    max_new_tokens: int = 64
    kv_fill: str = "project"
    backend: str = "auto"
    dtype: str = "auto"
    seed: int = 0
    output: Path = Path("dynkern-calibrate")

    def check(self) -> list[Confidence]:
        """The policies of the grid, by ascending threshold; ValueError ahead of any loading."""
        check_choice("policy", self.policy, ("confidence",))
        check_choice("measure", self.measure, tuple(MEASURES))
        if not 0.0 < self.target <= 1.0:
            raise ValueError(f"target: got {self.target}, expected above 0 to 1")
        if self.grid < 2:
            raise ValueError(f"grid: got {self.grid}, expected 2 or more")
        self.sweep().check()
        low, high = MEASURES[self.measure]
        steps = np.linspace(low, high, self.grid).round(6).tolist()
        return [Confidence(self.measure, threshold, self.exits) for threshold in steps]

    def sweep(self) -> SweepConfig:
        """The same as `dynkern eval` takes it."""
        return SweepConfig(
            self.model,
            self.data,
            split=self.split,
            limit=self.limit,
            batch_size=self.batch_size,
            backend=self.backend,
            dtype=self.dtype,
            max_new_tokens=self.max_new_tokens,
            kv_fill=self.kv_fill,
            seed=self.seed,
            template=self.template,
        )


def choose_place(scores: np.ndarray, full: np.ndarray, target: float) -> int:
    """Place of the lowest threshold that keeps the target, and all above it with it.

    scores: [thresholds, sequences], by ascending threshold; full: [sequences]. The number of
    thresholds where none keeps it: only full depth does.
    """
    kept = scores.mean(axis=1) >= target * full.mean()
    failing = np.flatnonzero(~kept)
    return int(failing[-1]) + 1 if failing.size else 0


def choose_interval(
    scores: np.ndarray, full: np.ndarray, target: float, seed: int = 0, n: int = 1000
) -> tuple[int, int]:
    """95 % percentile interval of choose_place over resampled sequences."""
    generator = np.random.default_rng(seed)
    places = []
    for _ in range(n):
        drawn = generator.integers(len(full), size=len(full))
        places.append(choose_place(scores[:, drawn], full[drawn], target))
    low, high = np.percentile(places, [2.5, 97.5], method="inverted_cdf")
    return int(low), int(high)


def run_calibrate(config: CalibrateConfig, console: Console | None = None) -> Path:
    """Generate and score at every threshold, choose, write calibration.json, thresholds.csv and
    report.html.

    A local file is cut as `dynkern finetune` cuts it (`split` names the part; "all" takes it
    whole). Raises ValueError or FileNotFoundError, one line, on bad input.
    """
    console = console or Console()
    grid = config.check()
    records = load_part(config.data, config.split, config.limit)
    llm = LLM(config.model, dtype=config.dtype, backend=config.backend)
    last = llm.spec.num_layers - 1
    for layer in config.exits:
        if not 0 <= layer < last:
            raise ValueError(f"exit_layer: got {layer}, expected 0 to {last - 1}")
    check_policy(grid[0], llm.spec.num_layers)
    prompts, _ = encode_prompts(llm, records, config.template, config.max_new_tokens)
    make_folder(config.output)
    policies = ["full", *grid]
    rows: list[list[float]] = []
    layers: list[float | None] = []
    with Progressing(console) as progress:
        report = progress.task("calibrate")
        for place, policy in enumerate(policies):
            report(place, len(policies), getattr(policy, "spec", "full"))
            done = llm.generate(
                [prompt.ids for prompt in prompts],
                policy,
                batch_size=config.batch_size,
                max_new_tokens=config.max_new_tokens,
                kv_fill=config.kv_fill,
                seed=config.seed,
            )
            rows.append(
                [
                    score(completion.text, prompt.record.references)["rougeL"]
                    for completion, prompt in zip(done, prompts, strict=True)
                ]
            )
            runs = [count for completion in done for count in completion.layers_run]
            layers.append(float(np.mean(runs)) if runs else None)
        report(len(policies), len(policies), "done")
    result = judge_grid(config, grid, np.array(rows), layers)
    result["prompts"], result["environment"] = len(prompts), llm.describe()
    text = json.dumps(result, indent=2) + "\n"
    write_whole(config.output / "calibration.json", lambda part: part.write_text(text))
    _write_table(config.output / "thresholds.csv", grid, np.array(rows), layers)
    low, high = (_shown(bound) for bound in result["threshold_ci"])
    console.print(
        f"{result['policy']}: threshold {_shown(result['threshold'])} (95 % interval {low} to "
        f"{high}) keeps {result['kept']:.1%} of full depth's ROUGE-L {result['full_rougeL']:.3f} "
        f"with {_shown(result['mean_layers'])} layers a token",
        highlight=False,
        soft_wrap=True,
    )
    page = write_report(
        config.output, calibration_report(config, result, _judged(config, grid, rows, layers))
    )
    console.print(f"report in {page}", highlight=False, soft_wrap=True)
    return config.output


def _judged(
    config: CalibrateConfig,
    grid: Sequence[Confidence],
    rows: Sequence[Sequence[float]],
    layers: Sequence[float | None],
) -> list[dict[str, Any]]:
    """What thresholds.csv says, and intervals; full depth first."""
    judged = []
    named = [("full", None), *((policy.spec, policy.threshold) for policy in grid)]
    for (name, threshold), scores, count in zip(named, rows, layers, strict=True):
        low, high = bootstrap_interval(scores, config.seed)
        judged.append(
            {
                "policy": name,
                "threshold": threshold,
                "rougeL": float(np.mean(scores)),
                "rougeL_low": low,
                "rougeL_high": high,
                "mean_layers": count,
            }
        )
    return judged


def _shown(value: float | None) -> str:
    return "above the range" if value is None else f"{value:.4g}"


def judge_grid(
    config: CalibrateConfig,
    grid: Sequence[Confidence],
    rows: np.ndarray,
    layers: Sequence[float | None],
) -> dict[str, Any]:
    """What calibration.json says. rows: ROUGE-L [1 + thresholds, sequences], full depth first;
    layers: mean of each. A threshold of None is above the range: rows never leave, "full".
    """
    full, scores = rows[0], rows[1:]
    place = choose_place(scores, full, config.target)
    bounds = choose_interval(scores, full, config.target, config.seed)
    thresholds = [*(policy.threshold for policy in grid), None]
    chosen = 0 if place == len(grid) else place + 1
    kept = float(rows[chosen].mean() / full.mean()) if full.mean() else 1.0
    return {
        "policy": "full" if chosen == 0 else grid[place].spec,
        "target": config.target,
        "threshold": thresholds[place],
        "threshold_ci": [thresholds[bound] for bound in bounds],
        "kept": kept,
        "rougeL": float(rows[chosen].mean()),
        "full_rougeL": float(full.mean()),
        "mean_layers": layers[chosen],
    }


def _write_table(
    path: Path, grid: Sequence[Confidence], rows: np.ndarray, layers: Sequence[float | None]
) -> None:
    def write(part: Path) -> None:
        with part.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["policy", "threshold", "rougeL", "mean_layers"])
            names = [("full", ""), *((policy.spec, policy.threshold) for policy in grid)]
            for (name, threshold), row, count in zip(names, rows, layers, strict=True):
                writer.writerow([name, threshold, float(row.mean()), count])

    write_whole(path, write)


def load_part(data: str, split: str, limit: int | None) -> list[Record]:
    """A part of the paper's split: train, validation or test; "all" is a local file as it is."""
    from dynkern.data.records import ALPACA
    from dynkern.training.data import load_split

    names = ("train", "validation", "test")
    if limit is not None and limit < 1:
        raise ValueError(f"limit: got {limit}, expected 1 or more")
    check_choice("split", split, (*names, "all"))
    if split == "all" or data == ALPACA:
        return load_records(data, split, limit)
    records = load_split(data)[names.index(split)]
    return records if limit is None else records[:limit]
