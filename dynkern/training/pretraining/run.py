"""`dynkern pretrain`: a recipe carried out, with checkpoints, evaluations and curves."""

from __future__ import annotations

import json
import math
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from torch import Tensor

from dynkern import rng
from dynkern._version import __version__
from dynkern.files import make_folder, replace_folder, write_whole
from dynkern.machine import device_name
from dynkern.manifest import differences
from dynkern.routes import check_choice
from dynkern.tasks import records
from dynkern.training.curves import write_curves
from dynkern.training.data import IGNORED
from dynkern.training.pretraining.interrupts import Interrupts
from dynkern.training.pretraining.network import answer_weights, grow, losses, new_model
from dynkern.training.pretraining.optimizers import Optimizers, rate_scale
from dynkern.training.pretraining.precision import PRECISIONS, in_bfloat16
from dynkern.training.pretraining.ranks import Ranks
from dynkern.training.pretraining.recipe import DEFAULT_RECIPE, Recipe, read_recipe
from dynkern.training.pretraining.state import FILE_NAME, Progress, load_state, save_state
from dynkern.training.pretraining.stream import (
    FAMILY_NUMBER,
    Batch,
    TaskStream,
    bucketed,
    encode,
    padded,
)
from dynkern.training.pretraining.tokenizer import train_task_tokenizer

LOG_STEPS = 100
# a counter's stream of its own, beside those of dynkern.rng and of training.model
_STREAM_LAYERDROP = 9
MODEL, REPORT, EVALUATIONS = "model", "pretrain.json", "evaluations.jsonl"
ARGUMENTS = "arguments.json"
TOKENIZER = "tokenizer"

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
    with Ranks(recipe.batches(number) for number in range(len(recipe.phases))) as ranks:
        make_folder(config.output)
        kept = load_state(config.output)
        if kept is not None and not config.resume:
            raise ValueError(
                f"output: {config.output / FILE_NAME} is left of a run; --resume goes on with it, "
                "or take another folder"
            )
        device = ranks.place
        if ranks.leads:
            _remember(config, recipe, device, kept is not None)
            _make_tokenizer(config.output, recipe)
        # nobody reads before it is written, and nobody writes before all have read
        ranks.wait()
        in_bfloat16 = _remembered(config.output)["bfloat16"]
        run = _Run(recipe, config, judge, console, report, device, in_bfloat16, kept, ranks)
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
        ranks: Ranks,
    ) -> None:
        self.recipe, self.config, self.judge = recipe, config, judge
        self.console, self.report, self.device = console, report, device
        self.in_bfloat16, self.ranks = in_bfloat16, ranks
        self.dtype = torch.bfloat16 if in_bfloat16 else torch.float32
        self.progress = Progress() if kept is None else kept[0]
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(config.output / TOKENIZER)
        transformers.set_seed(recipe.seed)
        layers = recipe.phases[self.progress.phase].layers
        self.model = new_model(recipe, layers).to(device)
        self.optimizers = Optimizers(self.model, recipe, self.dtype, ranks)
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
        if self.ranks.leads:
            self._finish()

    def _enter(self, number: int) -> None:
        progress = self.progress
        progress.phase, progress.pool, progress.batch = number, 0, 0
        layers = self.recipe.phases[number].layers
        if layers != self.model.config.num_hidden_layers:
            self.model = grow(self.model, layers)
            self.optimizers = Optimizers(self.model, self.recipe, self.dtype, self.ranks)
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
        batches = iter(stream)
        while progress.tokens < phase.until_tokens:
            step = list(islice(batches, self.recipe.batches(number)))
            stop = self._step(number, step, interrupts.seen)
            progress.pool, progress.batch = stream.pool, stream.batch
            if progress.tokens - progress.evaluated_at >= self.recipe.eval_tokens:
                self._evaluate()
            if stop or time.monotonic() - self.saved >= self.config.save_seconds:
                self._save()
            if stop:
                raise KeyboardInterrupt
            self.report(progress.tokens, self.recipe.tokens, self._label())

    def _step(self, number: int, batches: list[Batch], stop: bool) -> bool:
        """One step of the optimizers on all the batches, this process on its share of them; whether
        any process is to stop behind it.
        """
        progress, power = self.progress, self.recipe.answer_power
        keep = self._keep(self.recipe.layerdrop(number, progress.tokens))
        weights = [answer_weights(batch.targets, power) for batch in batches]
        whole = sum(float(part.sum()) for part in weights)
        counted = torch.zeros(2, len(FAMILY_NUMBER), dtype=torch.int64)
        total = 0.0
        mine = slice(self.ranks.rank, None, self.ranks.size)
        for batch, part in zip(batches[mine], weights[mine], strict=True):
            batch = batch.to(self.device)
            entropies, right = losses(self.model, batch, keep, self.dtype)
            ((entropies * part.to(self.device)).sum() / whole).backward()
            total += float(entropies.detach().sum())
            counted += _by_family(batch, right)
        total, stops, *flat = self.ranks.sum_up(
            self.optimizers.parameters, [total, float(stop), *counted.flatten().tolist()]
        )
        scale = rate_scale(self.recipe, progress.tokens, progress.step - progress.grown_at)
        norm = self.optimizers.step(scale)
        if not math.isfinite(total) or not math.isfinite(norm):
            raise ValueError(
                f"learning_rate: the loss became {total} at step {progress.step}, expected "
                "a finite one; lower the recipe's rates"
            )
        progress.step += 1
        progress.tokens += sum(batch.tokens for batch in batches)
        progress.families += torch.tensor(flat, dtype=torch.int64).view_as(counted)
        progress.entropy += total
        if progress.step % LOG_STEPS == 0:
            self._log({"grad_norm": norm, "learning_rate": self.recipe.learning_rate * scale})
        return stops > 0

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

    def _log(self, more: dict[str, float]) -> None:
        progress = self.progress
        counts, rights = progress.families.tolist()
        count = sum(counts)
        entry = {"step": progress.step, "tokens": progress.tokens, "loss": progress.entropy / count}
        progress.entropy = 0.0
        progress.families.zero_()
        families = {
            f"accuracy_{name}": rights[number] / counts[number]
            for name, number in FAMILY_NUMBER.items()
            if counts[number]
        }
        progress.log.append({**entry, "accuracy": sum(rights) / count, **more, **families})

    def _label(self) -> str:
        seen = [entry["loss"] for entry in self.progress.log[-1:] if "loss" in entry]
        return f"loss {seen[0]:.3f}" if seen else ""

    # -- evaluation --------------------------------------------------------------------------------

    @torch.no_grad()
    def _evaluate(self) -> None:
        progress = self.progress
        if progress.families.any():
            self._log({})
        progress.evaluated_at = progress.tokens
        if not self.ranks.leads:
            return
        sums = [0.0, 0]
        everything = [True] * self.model.config.num_hidden_layers
        for batch in self.validation:
            entropies, _ = losses(self.model, batch.to(self.device), everything, self.dtype)
            sums[0] += float(entropies.sum())
            sums[1] += len(entropies)
        replace_folder(self.config.output / MODEL, self._write_model)
        scores = {} if self.judge is None else self.judge(self.config.output / MODEL)
        entry = {"step": progress.step, "tokens": progress.tokens, "eval_loss": sums[0] / sums[1]}
        means = {f"eval_rougeL_{name}": value for name, value in scores.get("rougeL", {}).items()}
        progress.log.append({**entry, **means})
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

    def _write_model(self, part: Path) -> None:
        self.model.save_pretrained(part)
        self.tokenizer.save_pretrained(part)

    def _save(self) -> None:
        now = time.monotonic()
        self.progress.seconds += now - self.clock
        self.clock = now
        if self.ranks.leads:
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
            "processes": self.ranks.size,
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
        if not self.ranks.leads:
            return
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)


def _by_family(batch: Batch, right: Tensor) -> Tensor:
    """int64 [2, len(FAMILY_NUMBER)]: labelled tokens, and those of them that were the likeliest."""
    labelled = batch.targets != IGNORED
    families = batch.families[:, None].expand_as(labelled)[labelled]
    count = len(FAMILY_NUMBER)
    found = [torch.bincount(part, minlength=count) for part in (families, families[right])]
    return torch.stack(found).cpu()


def _make_tokenizer(output: Path, recipe: Recipe) -> None:
    folder = output / TOKENIZER
    if not (folder / "tokenizer.json").is_file():
        made = train_task_tokenizer(recipe.vocab_size, recipe.tokenizer_records)
        replace_folder(folder, made.save_pretrained)


def _remembered(output: Path) -> dict[str, Any]:
    return json.loads((output / ARGUMENTS).read_text(encoding="utf-8"))


def _remember(config: PretrainConfig, recipe: Recipe, device: torch.device, goes_on: bool) -> None:
    """Keep what decides a run; ValueError where a run that goes on differs from the stopped one."""
    path = config.output / ARGUMENTS
    before = _remembered(config.output) if goes_on and path.is_file() else None
    if before is not None and config.precision == "auto":
        # what was faster then, whatever is now
        bfloat16 = before.get("bfloat16")
    else:
        bfloat16 = in_bfloat16(config.precision, recipe, device)
    decides = json.loads(json.dumps({"recipe": recipe.to_json(), "bfloat16": bfloat16}))
    if before is not None and (changed := differences(before, decides)):
        raise ValueError(
            f"resume: the stopped run had other settings: {', '.join(changed)}; use the same "
            "ones or take another --output"
        )
    text = json.dumps(decides, indent=2) + "\n"
    write_whole(path, lambda part: part.write_text(text, encoding="utf-8"))
