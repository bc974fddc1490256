"""The training loop: transformers.Trainer on accelerate, its checkpoints and its curves."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor
from transformers import EarlyStoppingCallback, PrinterCallback, TrainerCallback, TrainingArguments

from dynkern.routes import check_choice
from dynkern.training.curves import write_curves
from dynkern.training.data import Collator, Examples
from dynkern.training.model import OPTForCausalLM

SCHEDULES = ("constant", "linear", "cosine")
PRECISIONS = ("auto", "float32", "bfloat16")
CHECKPOINTS = "checkpoints"


@dataclass(frozen=True)
class LoopSettings:
    """What decides a run besides model and data.

    batch_size: sequences of an optimizer step over all processes; micro_batch: of one pass of one
    process, None for up to 16. epochs: most passes over the data; max_steps: 0 for no limit.
    eval_every: steps between validations (and checkpoints), 0 for once an epoch. patience:
    validations without a better loss after which training stops, 0 for never. gate_rate: learning
    rate of gates.
    """

    learning_rate: float
    batch_size: int
    epochs: float
    schedule: str
    warmup: float = 0.0
    weight_decay: float = 0.0
    patience: int = 0
    micro_batch: int | None = None
    max_steps: int = 0
    eval_every: int = 0
    precision: str = "auto"
    gradient_checkpointing: bool = False
    deterministic: bool = False
    seed: int = 0
    gate_rate: float = 1e-3

    def check(self) -> None:
        """Raise a one-line ValueError on a setting out of range."""
        check_choice("schedule", self.schedule, SCHEDULES)
        check_choice("precision", self.precision, PRECISIONS)
        for name in ("learning_rate", "epochs", "batch_size", "gate_rate"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected more than 0")
        for name in ("patience", "max_steps", "eval_every", "weight_decay", "warmup"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected 0 or more")
        if not 0 <= self.seed < 1 << 32:
            raise ValueError(f"seed: got {self.seed}, expected 0 to 2**32 - 1")
        self.passes()

    def passes(self) -> tuple[int, int]:
        """Sequences of one pass of a process, and passes of an optimizer step."""
        world = int(os.environ.get("WORLD_SIZE", "1"))
        if self.batch_size % world:
            raise ValueError(
                f"batch_size: got {self.batch_size}, expected a multiple of {world} processes"
            )
        mine = self.batch_size // world
        micro = math.gcd(mine, 16) if self.micro_batch is None else self.micro_batch
        if micro < 1 or mine % micro:
            raise ValueError(f"micro_batch: got {micro}, expected a divisor of {mine}")
        return micro, mine // micro


@dataclass(frozen=True)
class LoopResult:
    """log: what was measured, in order; every entry has "step". best_step: the step of the best
    validation (with gates: of loss and cost together), whose weights the model has now; best_loss:
    that validation's, in nats a token. Under a budget both are the last step's: objectives at
    different weights of the cost do not compare. stopped_early: by patience.
    """

    log: list[dict[str, float]]
    steps: int
    best_loss: float
    best_step: int
    stopped_early: bool
    is_main: bool


def train(
    model: OPTForCausalLM,
    training: Examples,
    validation: Examples,
    settings: LoopSettings,
    output: Path,
    resume: bool = False,
) -> LoopResult:
    """Train `model` in place; it ends with the weights of its best validation.

    Checkpoints go to output/checkpoints, curves.csv and curves.png to output. resume goes on from
    the last whole checkpoint, and comes out as if never stopped: bit for bit on a CPU.
    """
    settings.check()
    micro, accumulation = settings.passes()
    has_budget = model.gates is not None and model.gates.multiplier is not None
    steps_an_epoch = math.ceil(len(training) / settings.batch_size)
    steps = settings.max_steps or math.ceil(steps_an_epoch * settings.epochs)
    folder = output / CHECKPOINTS
    at = last_checkpoint(folder)
    if at is not None and not resume:
        raise ValueError(
            f"output: {output} holds checkpoints of a run; --resume goes on with it, or take "
            "another folder"
        )
    if settings.gradient_checkpointing:
        # its name since transformers 5.24
        enable = getattr(model, "activation_checkpointing_enable", None)
        (enable or model.gradient_checkpointing_enable)({"use_reentrant": False})
    on_gpu = torch.cuda.is_available()
    strategy = "steps" if settings.eval_every else "epoch"
    every = {"eval_steps": settings.eval_every, "save_steps": settings.eval_every}
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=micro,
        per_device_eval_batch_size=micro,
        gradient_accumulation_steps=accumulation,
        num_train_epochs=settings.epochs,
        max_steps=settings.max_steps or -1,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=_scheduler(settings),
        warmup_steps=int(settings.warmup * steps),
        weight_decay=settings.weight_decay,
        optim="adamw_torch",
        bf16=_in_bfloat16(settings.precision),
        use_cpu=not on_gpu,
        eval_strategy=strategy,
        save_strategy=strategy,
        **(every if settings.eval_every else {}),
        save_total_limit=2,
        load_best_model_at_end=not has_budget,
        metric_for_best_model="eval_objective",
        greater_is_better=False,
        restore_callback_states_from_checkpoint=True,
        logging_steps=max(1, steps // 200),
        logging_nan_inf_filter=False,
        report_to="none",
        remove_unused_columns=False,
        seed=settings.seed,
        data_seed=settings.seed,
        full_determinism=settings.deterministic and on_gpu,
        dataloader_pin_memory=on_gpu,
        ddp_find_unused_parameters=model.regime.layerdrop > 0,
    )
    trainer = _Trainer(
        model=model,
        args=arguments,
        train_dataset=training,
        eval_dataset=validation,
        data_collator=Collator(model.config.pad_token_id),
        compute_metrics=lambda prediction: _metrics(prediction, model.alpha),
        callbacks=[
            *([EarlyStoppingCallback(settings.patience)] if settings.patience else []),
            _Curves(output),
        ],
    )
    trainer.gate_rate = settings.gate_rate
    trainer.remove_callback(PrinterCallback)
    if model.gates is not None:
        trainer.add_callback(_Tally(trainer))
    trainer.train(resume_from_checkpoint=None if at is None else str(at))
    state = trainer.state
    judged = [entry for entry in state.log_history if _judged(entry)]
    if has_budget:
        kept = next((e for e in reversed(judged) if e["step"] == state.global_step), {})
    else:
        kept = min(judged, key=lambda entry: entry["eval_objective"], default={})
    best, step = kept.get("eval_loss", math.nan), kept.get("step", state.global_step)
    if state.is_world_process_zero:
        write_curves(output, state.log_history)
    early = state.global_step < state.max_steps
    return LoopResult(
        list(state.log_history), state.global_step, best, step, early, state.is_world_process_zero
    )


def validate(model: OPTForCausalLM, examples: Examples, settings: LoopSettings) -> dict[str, float]:
    """The metrics of a validation of the model as it is, gates by arg-max: "loss", "objective" and,
    with gates, "mean_layers" and "rate_{layer}". Every process goes through all of the examples.
    """
    micro, _ = settings.passes()
    collate, device = Collator(model.config.pad_token_id), model.device
    was_training, rows = model.training, []
    model.eval()
    for start in range(0, len(examples), micro):
        batch = collate(examples.items[start : start + micro])
        with (
            torch.no_grad(),
            torch.autocast(device.type, torch.bfloat16, _in_bfloat16(settings.precision)),
        ):
            model(**{name: tensor.to(device) for name, tensor in batch.items()})
        rows.append(_columns(model.last))
    model.train(was_training)
    return _means(torch.cat(rows).cpu().numpy(), model.alpha)


def last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was written to its end, or None."""
    found = [
        (int(path.name.rpartition("-")[2]), path)
        for path in folder.glob("checkpoint-*")
        # Trainer writes this file last
        if path.name.rpartition("-")[2].isdigit() and _is_json(path / "trainer_state.json")
    ]
    return max(found)[1] if found else None


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True


def _judged(entry: dict[str, Any]) -> bool:
    return "eval_objective" in entry and math.isfinite(entry["eval_objective"])


def _in_bfloat16(precision: str) -> bool:
    if precision == "auto":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    return precision == "bfloat16"


def _scheduler(settings: LoopSettings) -> str:
    constant = settings.schedule == "constant"
    return "constant_with_warmup" if constant and settings.warmup else settings.schedule


def _columns(last: dict[str, Tensor]) -> Tensor:
    """What a forward pass left, [B, 3 + L] with gates, else [B, 3]: nll, tokens, routed, ran."""
    routed = last.get("routed", torch.zeros_like(last["tokens"]))
    columns = [last["nll"].double(), last["tokens"].double(), routed.double()]
    if "ran" in last:
        columns += list(last["ran"].double())
    return torch.stack(columns, dim=1)


def _metrics(prediction: Any, alpha: float) -> dict[str, float]:
    return _means(np.asarray(prediction.predictions, dtype=np.float64), alpha)


def _means(rows: np.ndarray, alpha: float) -> dict[str, float]:
    """Means over tokens of rows of _columns; "objective" is what training lowers."""
    nll, tokens, routed = rows[:, :3].sum(axis=0)
    metrics = {"loss": nll / tokens, "objective": nll / tokens}
    if rows.shape[1] > 3 and routed:
        rates = rows[:, 3:].sum(axis=0) / routed
        metrics["mean_layers"] = rates.sum()
        metrics["objective"] += alpha * rates.mean()
        metrics |= {f"rate_{layer}": rate for layer, rate in enumerate(rates)}
    return {name: float(value) for name, value in metrics.items()}


class _Trainer(transformers.Trainer):
    """Trainer with LayerDrop's clock, a loss in nats a token, gates' rates and learning rate."""

    gate_rate = 1e-3

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._clock = (-1, 0)
        self._counted: Tensor | None = None
        # tokens that ran each layer, and the counted tokens, [L + 1]: of this process in a step,
        # and of all of them since the last log
        self.spent: Tensor | float = 0.0
        self.logged: Tensor | None = None

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list[Any], Any]:
        batches, items = super().get_batch_samples(*args, **kwargs)
        if self.model.gates is not None:
            counted = sum(
                self.model.counted_tokens(batch["labels"], batch["prompt_length"]).sum()
                for batch in batches
            )
            here = torch.as_tensor(counted, device=self.accelerator.device)
            # a step of empty responses costs nothing
            self._counted = self.accelerator.reduce(here, "sum").clamp(min=1)
        return batches, items

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
        step, micro = self.state.global_step, self._clock[1] + 1
        self._clock = (step, micro if step == self._clock[0] else 0)
        own = self.accelerator.unwrap_model(model)
        own.clock = self._clock
        if own.gates is not None:
            inputs = {**inputs, "num_counted_in_batch": self._counted}
            if own.gates.multiplier is not None:
                own.alpha = own.gates.multiplier.alpha
        loss = super().training_step(model, inputs, *args, **kwargs)
        if "ran" in own.last:
            sums = [*own.last["ran"].sum(dim=1), own.last["routed"].sum()]
            self.spent = self.spent + torch.stack(sums).double()
        return loss

    def prediction_step(
        self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[None, Tensor, Tensor]:
        # no loss: Trainer would report a mean over sequences of means over their tokens
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad():
            model(**inputs)
        last = self.accelerator.unwrap_model(model).last
        return None, _columns(last), inputs["prompt_length"]

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if self.logged is not None and "loss" in logs:
            *ran, counted = self.logged.tolist()
            self.logged = None
            rates = [n / max(counted, 1) for n in ran]
            logs = {**logs, "mean_layers": sum(rates), "alpha": self.model.alpha}
            logs |= {f"rate_{layer}": rate for layer, rate in enumerate(rates)}
        super().log(logs, *args, **kwargs)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        model: OPTForCausalLM = self.model
        if self.optimizer is None and model.gates is not None:
            gates = list(model.gates.parameters())
            ids = {id(parameter) for parameter in gates}
            others = [p for p in model.parameters() if p.requires_grad and id(p) not in ids]
            rate = self.gate_rate
            if model.gates.input == "fixed":
                # all D weights of an all-ones input move alike under Adam: at 1e-3 and D = 256 a
                # logit went by half a unit a step, and all gates were shut after six
                rate /= model.gates.input_size**0.5
            groups: Sequence[dict[str, Any]] = [{"params": gates, "lr": rate}]
            if others:
                groups = [*groups, {"params": others, "lr": self.args.learning_rate}]
            self.optimizer = torch.optim.AdamW(groups, weight_decay=self.args.weight_decay)
        return super().create_optimizer(*args, **kwargs)


class _Tally(TrainerCallback):
    """After every step, ahead of its log and checkpoint: what ran in all processes, alpha by it."""

    def __init__(self, trainer: _Trainer) -> None:
        self.trainer = trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trainer = self.trainer
        sums = trainer.accelerator.reduce(trainer.spent, "sum")
        trainer.spent = 0.0
        trainer.logged = sums if trainer.logged is None else trainer.logged + sums
        multiplier = trainer.model.gates.multiplier
        if multiplier is not None:
            *ran, counted = sums.tolist()
            if counted:
                multiplier.update(sum(ran) / (counted * len(ran)))


class _Curves(TrainerCallback):
    """Curves at every validation, so that a long run can be watched."""

    def __init__(self, output: Path, draw: Callable[..., None] = write_curves) -> None:
        self.output, self.draw = output, draw

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self.draw(self.output, state.log_history)
