"""`dynkern pretrain`: a recipe carried out, with checkpoints, evaluations and curves."""

from __future__ import annotations

import json
import math
import platform
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console

from dynkern import rng
from dynkern._version import __version__
from dynkern.files import make_folder, replace_folder, write_whole
from dynkern.machine import device_name
from dynkern.manifest import differences
from dynkern.routes import check_choice
from dynkern.tasks import records
from dynkern.training.curves import write_curves
from dynkern.training.pretraining.interrupts import Interrupts
from dynkern.training.pretraining.network import answer_weights, grow, losses, new_model
from dynkern.training.pretraining.optimizers import Optimizers, rate_scale
from dynkern.training.pretraining.recipe import DEFAULT_RECIPE, Recipe, read_recipe
from dynkern.training.pretraining.state import FILE_NAME, Progress, load_state, save_state
from dynkern.training.pretraining.stream import Batch, TaskStream, bucketed, encode, padded
from dynkern.training.pretraining.tokenizer import train_task_tokenizer

PRECISIONS = ("auto", "float32", "bfloat16")
LOG_STEPS = 100
# a counter's stream of its own, beside those of dynkern.rng and of training.model
_STREAM_LAYERDROP = 9
MODEL, REPORT, EVALUATIONS = "model", "pretrain.json", "evaluations.jsonl"

# scores of the checkpoint in a folder, as JSON-like facts; "rougeL" in it: mean by policy
Judge = Callable[[Path], dict[str, Any]]
Report = Callable[[int, int, str], None]


@dataclass(frozen=True)
class PretrainConfig:
    """The arguments of `dynkern pretrain`. save_seconds: between checkpoints."""

    output: Path
    recipe: Path = DEFAULT_RECIPE
    precision: str = "auto"
    save_seconds: float = 300.0
    resume: bool = False


def run_pretrain(
    config: PretrainConfig,
    judge: Judge | None = None,
    console: Console | None = None,
    report: Report = lambda done, total, label: None,
) -> Path:
    """Train by the recipe; model/, pretrain.json, evaluations.jsonl, curves.csv and curves.png in
    the folder, which is handed back.

    judge: scores each evaluated checkpoint. report(done, total, label): counts tokens. Ctrl-C keeps
    the state and raises KeyboardInterrupt; a kill loses what came after the last checkpoint.
    `resume` goes on, on a CPU with as many threads to the same bits. Raises ValueError or
    FileNotFoundError, one line, on bad input.
    """
    console = console or Console()
    check_choice("precision", config.precision, PRECISIONS)
    recipe = read_recipe(config.recipe)
    make_folder(config.output)
    kept = load_state(config.output)
    if kept is not None and not config.resume:
        raise ValueError(
            f"output: {config.output / FILE_NAME} is left of a run; --resume goes on with it, or "
            "take another folder"
        )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    in_bfloat16 = _in_bfloat16(config.precision, device)
    _remember(
        config.output / "arguments.json",
        {"recipe": recipe.to_json(), "bfloat16": in_bfloat16},
        kept is not None,
    )
    run = _Run(recipe, config, judge, console, report, device, in_bfloat16, kept)
    with Interrupts() as interrupts:
        run.go(interrupts)
    return config.output


class _Run:
    """A run between two kills."""

    def __init__(
        self,
        recipe: Recipe,
        config: PretrainConfig,
        judge: Judge | None,
        console: Console,
        report: Report,
        device: torch.device,
        in_bfloat16: bool,
        kept: tuple[Progress, dict[str, Any], dict[str, Any]] | None,
    ) -> None:
        self.recipe, self.config, self.judge = recipe, config, judge
        self.console, self.report, self.device = console, report, device
        self.in_bfloat16 = in_bfloat16
        self.progress = Progress() if kept is None else kept[0]
        self.tokenizer = self._tokenizer()
        transformers.set_seed(recipe.seed)
        layers = recipe.phases[self.progress.phase].layers
        self.model = new_model(recipe, layers).to(device)
        self.optimizers = Optimizers(self.model, recipe)
        if kept is not None:
            self.model.load_state_dict(kept[1])
            self.optimizers.load_state_dict(kept[2])
        self.validation = self._validation()
        self.clock = self.saved = time.monotonic()

    def go(self, interrupts: Interrupts) -> None:
        """Every phase that is left, then the last evaluation."""
        first = self.progress.phase
        for number in range(first, len(self.recipe.phases)):
            if number > first:
                self._enter(number)
            self._phase(number, interrupts)
        if self.progress.evaluated_at < self.progress.tokens:
            self._evaluate()
        self._save()
        self._finish()

    def _enter(self, number: int) -> None:
        progress = self.progress
        progress.phase, progress.pool, progress.batch = number, 0, 0
        layers = self.recipe.phases[number].layers
        if layers != self.model.config.num_hidden_layers:
            self.model = grow(self.model, layers)
            self.optimizers = Optimizers(self.model, self.recipe)
            progress.grown_at = progress.step
            self._say(f"grown to {layers} layers after {progress.tokens / 1e6:.1f} M tokens")
        # else a kill would find the state of one phase and the place of another
        self._save()

    def _phase(self, number: int, interrupts: Interrupts) -> None:
        progress, phase = self.progress, self.recipe.phases[number]
        stream = TaskStream(
            self.tokenizer,
            phase,
            # a stream of its own for each phase and seed
            self.recipe.seed * 1009 + 11 + number,
            self.recipe.batch_tokens,
            self.recipe.max_positions,
            progress.pool,
            progress.batch,
        )
        for batch in stream:
            if progress.tokens >= phase.until_tokens:
                return
            self._step(number, batch.to(self.device))
            progress.pool, progress.batch = stream.pool, stream.batch
            if progress.tokens - progress.evaluated_at >= self.recipe.eval_tokens:
                self._evaluate()
            if interrupts.seen or time.monotonic() - self.saved >= self.config.save_seconds:
                self._save()
            if interrupts.seen:
                raise KeyboardInterrupt
            self.report(progress.tokens, self.recipe.tokens, self._label())

    def _step(self, number: int, batch: Batch) -> None:
        progress = self.progress
        keep = self._keep(self.recipe.layerdrop(number, progress.tokens))
        with self._autocast():
            entropies, right = losses(self.model, batch, keep)
            weights = answer_weights(batch.targets, self.recipe.answer_power)
            loss = (entropies * weights).sum() / weights.sum()
        loss.backward()
        scale = rate_scale(self.recipe, progress.tokens, progress.step - progress.grown_at)
        norm = self.optimizers.step(scale)
        total = float(entropies.detach().sum())
        if not math.isfinite(total) or not math.isfinite(norm):
            raise ValueError(
                f"learning_rate: the loss became {loss.item()} at step {progress.step}, expected "
                "a finite one; lower the recipe's rates"
            )
        progress.step += 1
        progress.tokens += batch.tokens
        sums = progress.losses
        sums[0] += total
        sums[1] += len(right)
        sums[2] += float(right.sum())
        if progress.step % LOG_STEPS == 0:
            self._log({"grad_norm": norm, "learning_rate": self.recipe.learning_rate * scale})

    def _keep(self, rate: float) -> list[bool]:
        """Layers of this step: all in every other one by chance, so that full depth is practised,
        else each but for `rate`.
        """
        layers = self.model.config.num_hidden_layers
        places = torch.arange(-1, layers)
        draws = rng.uniform(
            self.recipe.seed, self.progress.step, 0, places + 1, _STREAM_LAYERDROP
        ).tolist()
        return [draws[0] < 0.5 or draw >= rate for draw in draws[1:]]

    def _autocast(self) -> AbstractContextManager[Any]:
        if not self.in_bfloat16:
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    def _log(self, more: dict[str, float]) -> None:
        progress = self.progress
        total, count, right = progress.losses
        progress.losses = [0.0, 0.0, 0.0]
        entry = {"step": progress.step, "tokens": progress.tokens, "loss": total / count}
        progress.log.append({**entry, "accuracy": right / count, **more})

    def _label(self) -> str:
        seen = [entry["loss"] for entry in self.progress.log[-1:] if "loss" in entry]
        return f"loss {seen[0]:.3f}" if seen else ""

    # -- evaluation --------------------------------------------------------------------------------

    @torch.no_grad()
    def _evaluate(self) -> None:
        progress = self.progress
        if progress.losses[1]:
            self._log({})
        sums = [0.0, 0]
        everything = [True] * self.model.config.num_hidden_layers
        for batch in self.validation:
            with self._autocast():
                entropies, _ = losses(self.model, batch.to(self.device), everything)
            sums[0] += float(entropies.sum())
            sums[1] += len(entropies)
        replace_folder(self.config.output / MODEL, self._write_model)
        scores = {} if self.judge is None else self.judge(self.config.output / MODEL)
        entry = {"step": progress.step, "tokens": progress.tokens, "eval_loss": sums[0] / sums[1]}
        means = {f"eval_rougeL_{name}": value for name, value in scores.get("rougeL", {}).items()}
        progress.log.append({**entry, **means})
        progress.evaluated_at = progress.tokens
        progress.evaluations.append({**entry, "layers": len(everything), **scores})
        # whole each time: a run that goes on from an earlier checkpoint repeats its evaluations
        lines = "".join(json.dumps(facts) + "\n" for facts in progress.evaluations)
        write_whole(self.config.output / EVALUATIONS, lambda part: part.write_text(lines))
        write_curves(self.config.output, progress.log)
        told = ", ".join(f"{name} {value:.3f}" for name, value in scores.get("rougeL", {}).items())
        self._say(
            f"{progress.tokens / 1e6:.1f} M tokens: validation loss {entry['eval_loss']:.4f}"
            + (f", ROUGE-L {told}" if told else "")
        )
        self._save()

    def _validation(self) -> list[Batch]:
        rows = list(islice(records("validation"), self.recipe.eval_records))
        sequences = encode(self.tokenizer, rows, self.recipe.max_positions)
        return [padded(part) for part in bucketed(sequences, self.recipe.batch_tokens)]

    # -- files -------------------------------------------------------------------------------------

    def _tokenizer(self) -> Any:
        folder = self.config.output / "tokenizer"
        if not (folder / "tokenizer.json").is_file():
            made = train_task_tokenizer(self.recipe.vocab_size, self.recipe.tokenizer_records)
            replace_folder(folder, made.save_pretrained)
        return transformers.AutoTokenizer.from_pretrained(folder)

    def _write_model(self, part: Path) -> None:
        self.model.save_pretrained(part)
        self.tokenizer.save_pretrained(part)

    def _save(self) -> None:
        now = time.monotonic()
        self.progress.seconds += now - self.clock
        self.clock = now
        save_state(self.config.output, self.progress, self.model, self.optimizers)
        self.saved = time.monotonic()

    def _finish(self) -> None:
        progress = self.progress
        last = next(entry for entry in reversed(progress.log) if "eval_loss" in entry)
        facts = {
            "dynkern": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
            "device": device_name(self.device),
            "threads": torch.get_num_threads(),
            "bfloat16": self.in_bfloat16,
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "steps": progress.step,
            "tokens": progress.tokens,
            "seconds": progress.seconds,
            "validation": {k: v for k, v in last.items() if k.startswith("eval_")},
            "recipe": self.recipe.to_json(),
        }
        text = json.dumps(facts, indent=2) + "\n"
        write_whole(self.config.output / REPORT, lambda part: part.write_text(text))
        self._say(
            f"{progress.tokens / 1e6:.1f} M tokens in {progress.step} steps and "
            f"{progress.seconds:.0f} seconds; model in {self.config.output / MODEL}"
        )

    def _say(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)


def _in_bfloat16(precision: str, device: torch.device) -> bool:
    if precision != "auto":
        return precision == "bfloat16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    # elsewhere bfloat16 is emulated, and slower than float32; no public name says where
    return getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()


def _remember(path: Path, decides: dict[str, Any], goes_on: bool) -> None:
    """Keep what decides a run; ValueError where a run that goes on differs from the stopped one."""
    decides = json.loads(json.dumps(decides))
    if goes_on and path.is_file():
        changed = differences(json.loads(path.read_text(encoding="utf-8")), decides)
        if changed:
            raise ValueError(
                f"resume: the stopped run had other settings: {', '.join(changed)}; use the same "
                "ones or take another --output"
            )
    text = json.dumps(decides, indent=2) + "\n"
    write_whole(path, lambda part: part.write_text(text, encoding="utf-8"))
