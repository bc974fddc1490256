"""`dynkern train-controller`: skip controllers, one or a sweep over their inputs and settings."""

from __future__ import annotations

import itertools
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from dynkern.controller_file import INPUTS, ControllerInfo, write_controller
from dynkern.data import TEMPLATES
from dynkern.files import make_folder, replace_folder
from dynkern.models.checkpoint import read_config
from dynkern.models.opt import spec_from_config
from dynkern.models.signature import signature_of_state
from dynkern.report import write_report
from dynkern.routes import check_choice
from dynkern.training.budget import Multiplier, calibrate, check_budget
from dynkern.training.data import Examples, load_split
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
from dynkern.training.loop import LoopResult, LoopSettings, train, validate
from dynkern.training.model import Regime
from dynkern.training.page import controllers_report
from dynkern.training.sweep_report import print_sweep, write_sweep

# the published configurations train the backbone so; gates start from nothing
DEFAULTS = LoopSettings(2e-5, batch_size=64, epochs=2, schedule="linear", gate_rate=1e-3)
# sequences of the test split on which controllers are judged, and of the validation split on which
# gates are shifted to their budget
HELD_OUT = 256


@dataclass(frozen=True)
class ControllerConfig:
    """The arguments of `dynkern train-controller`. Every combination of inputs, depths, widths,
    alphas and budgets is trained; a width says nothing at depth 1. budgets: mean layers to come to,
    for which alpha is adapted from where it starts; without, alpha stays. settings: what differs
    from DEFAULTS.
    """

    model: str
    data: str
    output: Path
    inputs: tuple[str, ...] = ("hidden",)
    depths: tuple[int, ...] = (1,)
    widths: tuple[int, ...] = (64,)
    alphas: tuple[float, ...] = (1.0,)
    budgets: tuple[float, ...] = ()
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
        if self.budgets and loop.patience:
            raise ValueError(
                f"patience: got {loop.patience}, expected 0 with a budget, where the last weights "
                "are kept"
            )
        return loop

    def grid(self) -> list[ControllerInfo]:
        """What to train; num_layers and input_size are 0 until the model is known."""
        grid = []
        for name, depth, width, alpha, budget in itertools.product(
            self.inputs, self.depths, self.widths, self.alphas, self.budgets or (None,)
        ):
            info = ControllerInfo(name, 0, 0, depth, width, self.tau, alpha, self.joint, budget)
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
            if info.budget is not None:
                check_budget(info.budget, num_layers)
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
    held_out = prepared.encode(prepared.test[:HELD_OUT])
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
        named = replace(info, model=str(folder / "model" if config.joint else config.model))
        row, result = _train_one(prepared, named, settings, folder, held_out, config.resume)
        rows.append(row)
        leads = result.is_main
        if leads:
            _say_row(console, row, prepared.model.num_layers, folder)
    if leads and len(grid) > 1:
        write_sweep(config.output, rows)
        print_sweep(console, rows)
    if leads:
        page = write_report(config.output, controllers_report(config, rows))
        console.print(f"report in {page}", highlight=False, soft_wrap=True)
    return config.output


def _name(info: ControllerInfo) -> str:
    size = f"{info.depth}" if info.depth == 1 else f"{info.depth}x{info.width}"
    budget = "" if info.budget is None else f"-budget{info.budget:g}"
    return f"{info.input}-{size}-alpha{info.alpha:g}{budget}"


def _train_one(
    prepared: Prepared,
    info: ControllerInfo,
    settings: LoopSettings,
    folder: Path,
    held_out: Examples,
    resume: bool,
) -> tuple[dict[str, Any], LoopResult]:
    import transformers

    model = prepared.model
    transformers.set_seed(settings.seed)
    opt = model.config
    size = opt.word_embed_proj_dim if info.input == "token" else opt.hidden_size
    gates = Gates(info.input, model.num_layers, size, info.depth, info.width, info.tau)
    if info.budget is not None:
        gates.multiplier = Multiplier(info.budget, model.num_layers, info.alpha)
    model.requires_grad_(info.joint)
    model.add_gates(gates, info.alpha)
    result = train(model, prepared.training, prepared.validation, settings, folder, resume)
    if info.budget is None:
        found = judged(result)
    else:
        found = _bring_to_budget(prepared, info.budget, settings) | {"steps": result.steps}
    exported, tensors = gates.export(info.alpha, info.joint, info.budget, info.model)
    unseen = validate(model, held_out, settings) if len(held_out) else {}
    row = {
        **asdict(exported),
        "controller_parameters": sum(p.numel() for p in gates.parameters()),
        **found,
        "held_out_layers": unseen.get("mean_layers"),
        "held_out_loss": unseen.get("loss"),
        **stamp(prepared),
    }
    if result.is_main:
        spec = spec_from_config(read_config(prepared.path))
        sign = signature_of_state(model.state_dict(), spec)
        write_controller(folder / "controller.safetensors", exported, tensors, sign)
        if info.joint:
            replace_folder(folder / "model", lambda part: save_model(prepared, part))
        write_json(folder / "controller.json", row)
    return row, result


def _bring_to_budget(prepared: Prepared, budget: float, settings: LoopSettings) -> dict[str, Any]:
    """Shift trained gates so that arg-max runs `budget` layers; validation after it, and before."""
    model, part = prepared.model, prepared.validation
    gates = model.gates
    alpha = gates.multiplier.alpha
    before = validate(model, part, settings)
    sample = Examples(part.items[:HELD_OUT], 0, 0)
    shift = calibrate(gates, budget, lambda: validate(model, sample, settings)["mean_layers"])
    return {
        **_named(validate(model, part, settings)),
        "uncalibrated_layers": before["mean_layers"],
        "shift": shift,
        "final_alpha": alpha,
    }


def _named(metrics: dict[str, float]) -> dict[str, float]:
    """Metrics of a validation under the names of a row."""
    return {
        f"validation_{name}" if name in ("loss", "objective") else name: value
        for name, value in metrics.items()
    }


def judged(result: LoopResult) -> dict[str, Any]:
    """The validation of the weights that were kept: gates by arg-max."""
    entry = next(e for e in result.log if e["step"] == result.best_step and "eval_objective" in e)
    names = ["loss", "objective", "mean_layers"]
    names += [k.removeprefix("eval_") for k in entry if k.startswith("eval_rate_")]
    return {
        **_named({name: entry[f"eval_{name}"] for name in names}),
        "best_step": result.best_step,
        "steps": result.steps,
    }


def _say_row(console: Console, row: dict[str, Any], num_layers: int, folder: Path) -> None:
    asked = "" if row["budget"] is None else f", budget {row['budget']:g}"
    unseen = row["held_out_layers"]
    held_out = "" if unseen is None else f" ({unseen:.2f} on held-out data)"
    console.print(
        f"{row['input']}, depth {row['depth']}, alpha {row['alpha']:g}{asked}: "
        f"{row['mean_layers']:.2f} of {num_layers} layers{held_out}, validation loss "
        f"{row['validation_loss']:.4f}; --policy controller:{folder / 'controller.safetensors'}",
        highlight=False,
        soft_wrap=True,
    )
