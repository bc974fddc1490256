"""`dynkern train-controller`: skip controllers, one or a sweep over inputs, sizes and alphas."""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from dynkern.controller_file import INPUTS, ControllerInfo, write_controller
from dynkern.data import TEMPLATES
from dynkern.files import make_folder, replace_folder, write_whole
from dynkern.report import write_report
from dynkern.routes import check_choice
from dynkern.training.data import load_split
from dynkern.training.finetune import (
    METHOD_LENGTH,
    Prepared,
    prepare,
    remember,
    save_model,
    say,
    stamp,
    write_json,
)
from dynkern.training.gates import Gates
from dynkern.training.loop import LoopResult, LoopSettings, train
from dynkern.training.model import Regime
from dynkern.training.page import controllers_report

# the published configurations train the backbone so; gates start from nothing
DEFAULTS = LoopSettings(2e-5, batch_size=64, epochs=2, schedule="linear", gate_rate=1e-3)


@dataclass(frozen=True)
class ControllerConfig:
    """The arguments of `dynkern train-controller`. Every combination of inputs, depths, widths and
    alphas is trained; a width says nothing at depth 1. settings: what differs from DEFAULTS.
    """

    model: str
    data: str
    output: Path
    inputs: tuple[str, ...] = ("hidden",)
    depths: tuple[int, ...] = (1,)
    widths: tuple[int, ...] = (64,)
    alphas: tuple[float, ...] = (1.0,)
    tau: float = 1.0
    joint: bool = False
    settings: dict[str, Any] | None = None
    validation: str | None = None
    limit: int | None = None
    template: str = "alpaca"
    max_length: int = METHOD_LENGTH
    seed: int = 0
    resume: bool = False

    def loop(self) -> LoopSettings:
        """Settings of every run; ValueError, one line, on anything out of range."""
        for name in self.inputs:
            check_choice("input", name, INPUTS)
        for alpha in self.alphas:
            if not 0 <= alpha < float("inf"):
                raise ValueError(f"alpha: got {alpha}, expected a number from 0")
        check_choice("template", self.template, tuple(TEMPLATES))
        given = {name: value for name, value in (self.settings or {}).items() if value is not None}
        loop = replace(DEFAULTS, seed=self.seed, **given)
        loop.check()
        return loop

    def grid(self) -> list[ControllerInfo]:
        """What to train; num_layers and input_size are 0 until the model is known."""
        grid = []
        for name, depth, width, alpha in itertools.product(
            self.inputs, self.depths, self.widths, self.alphas
        ):
            info = ControllerInfo(name, 0, 0, depth, width, self.tau, alpha, self.joint)
            if depth == 1:
                info = replace(info, width=self.widths[0])
            if info not in grid:
                grid.append(info)
        return grid


def run_controllers(config: ControllerConfig, console: Console | None = None) -> Path:
    """Train every controller of the grid; the folder.

    One combination leaves controller.safetensors, controller.json and curves in the folder (and
    model/ where the backbone was trained along); several leave a folder each, and sweep.csv and
    sweep.png. report.html is about all of them. With resume, finished ones are kept and the
    stopped one goes on.

    Raises ValueError or FileNotFoundError, one line, on bad input.
    """
    console = console or Console()
    settings, grid = config.loop(), config.grid()

    def fits(num_layers: int) -> Regime:
        for info in grid:
            Gates(info.input, num_layers, 1, info.depth, info.width, info.tau)
        return Regime(seed=config.seed)

    prepared = prepare(
        config.model,
        None,
        load_split(config.data, config.limit, config.validation),
        config.template,
        config.max_length,
        0,
        config.seed,
        fits,
    )
    make_folder(config.output)
    remember(config.output / "arguments.json", config, settings, config.resume)
    say(console, prepared)
    start, leads = None, True
    if config.joint and len(grid) > 1:
        start = {name: t.clone() for name, t in prepared.model.state_dict().items()}
    rows: list[dict[str, Any]] = []
    for place, info in enumerate(grid):
        folder = config.output if len(grid) == 1 else config.output / _name(info)
        report = folder / "controller.json"
        if config.resume and report.is_file():
            rows.append(json.loads(report.read_text(encoding="utf-8")))
            continue
        if place and start is not None:
            prepared.model.gates = None
            prepared.model.load_state_dict(start)
        row, result = _train_one(prepared, info, settings, folder, config.resume)
        rows.append(row)
        leads = result.is_main
        _say_row(console, rows[-1], prepared.model.num_layers, folder)
    if len(grid) > 1:
        write_sweep(config.output, rows)
    if leads:
        page = write_report(config.output, controllers_report(config, rows))
        console.print(f"report in {page}", highlight=False, soft_wrap=True)
    return config.output


def _name(info: ControllerInfo) -> str:
    size = f"{info.depth}" if info.depth == 1 else f"{info.depth}x{info.width}"
    return f"{info.input}-{size}-alpha{info.alpha:g}"


def _train_one(
    prepared: Prepared, info: ControllerInfo, settings: LoopSettings, folder: Path, resume: bool
) -> tuple[dict[str, Any], LoopResult]:
    import transformers

    model = prepared.model
    transformers.set_seed(settings.seed)
    opt = model.config
    size = opt.word_embed_proj_dim if info.input == "token" else opt.hidden_size
    gates = Gates(info.input, model.num_layers, size, info.depth, info.width, info.tau)
    model.requires_grad_(info.joint)
    model.add_gates(gates, info.alpha)
    result = train(model, prepared.training, prepared.validation, settings, folder, resume)
    exported, tensors = gates.export(info.alpha, info.joint)
    row = {
        **asdict(exported),
        "controller_parameters": sum(p.numel() for p in gates.parameters()),
        **judged(result),
        **stamp(prepared),
    }
    if result.is_main:
        write_controller(folder / "controller.safetensors", exported, tensors)
        if info.joint:
            replace_folder(folder / "model", lambda part: save_model(prepared, part))
        write_json(folder / "controller.json", row)
    return row, result


def judged(result: LoopResult) -> dict[str, Any]:
    """The validation of the weights that were kept: gates by arg-max."""
    entry = next(e for e in result.log if e["step"] == result.best_step and "eval_objective" in e)
    names = ["loss", "objective", "mean_layers"]
    names += [k.removeprefix("eval_") for k in entry if k.startswith("eval_rate_")]
    return {
        **{
            f"validation_{n}" if n in ("loss", "objective") else n: entry[f"eval_{n}"]
            for n in names
        },
        "best_step": result.best_step,
        "steps": result.steps,
    }


def _say_row(console: Console, row: dict[str, Any], num_layers: int, folder: Path) -> None:
    console.print(
        f"{row['input']}, depth {row['depth']}, alpha {row['alpha']:g}: "
        f"{row['mean_layers']:.2f} of {num_layers} layers, validation loss "
        f"{row['validation_loss']:.4f}; --policy controller:{folder / 'controller.safetensors'}",
        highlight=False,
        soft_wrap=True,
    )


def write_sweep(output: Path, rows: Sequence[dict[str, Any]]) -> None:
    """sweep.csv and sweep.png: loss against layers for every capacity."""
    names = list(dict.fromkeys(name for row in rows for name in row))

    def write(part: Path) -> None:
        with part.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, names, restval="", lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)

    write_whole(output / "sweep.csv", write)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.6), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    lines: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        size = row["depth"] if row["depth"] == 1 else f"{row['depth']}x{row['width']}"
        points = lines.setdefault(f"{row['input']}, {size}", [])
        points.append((row["mean_layers"], row["validation_loss"]))
    for name, points in lines.items():
        axes.plot(*zip(*sorted(points), strict=True), "o-", label=name, linewidth=1.2)
    axes.set_xlabel("layers run per routed token (mean, arg-max gates)")
    axes.set_ylabel("validation loss [nats a token]")
    axes.grid(alpha=0.25)
    axes.legend(title="input, depth x width")
    write_whole(output / "sweep.png", lambda part: figure.savefig(part, format="png"))
