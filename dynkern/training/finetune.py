"""`dynkern finetune`: a checkpoint, or a shape from scratch, trained on instruction data."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console

from dynkern import policies
from dynkern._version import __version__
from dynkern.data import TEMPLATES, Record
from dynkern.files import make_folder, replace_folder, write_whole
from dynkern.models.checkpoint import check_texts, read_config, resolve_model
from dynkern.models.module import load_module
from dynkern.models.opt import spec_from_config
from dynkern.policies.planned import FixedRoute
from dynkern.report import write_report
from dynkern.routes import check_choice
from dynkern.training.data import Examples, check_lengths, encode_examples, load_split
from dynkern.training.loop import LoopSettings, train
from dynkern.training.model import OPTForCausalLM, Regime
from dynkern.training.page import finetune_report
from dynkern.training.shapes import shape_config, train_tokenizer

# "paper": arXiv 2410.20022; "authors": its published configurations; "small": a model of some
# million parameters from scratch
PRESETS = {
    "paper": LoopSettings(5e-5, batch_size=64, epochs=6, schedule="constant", patience=1),
    "authors": LoopSettings(2e-5, batch_size=64, epochs=2, schedule="linear"),
    "small": LoopSettings(
        1e-3,
        batch_size=32,
        epochs=10,
        schedule="cosine",
        warmup=0.03,
        weight_decay=0.01,
        patience=3,
    ),
}
METHOD_LENGTH = 512


@dataclass(frozen=True)
class FinetuneConfig:
    """The arguments of `dynkern finetune`. settings: what differs from the preset."""

    data: str
    output: Path
    model: str | None = None
    config: str | None = None
    preset: str = "paper"
    settings: dict[str, Any] | None = None
    validation: str | None = None
    limit: int | None = None
    template: str = "alpaca"
    max_length: int = METHOD_LENGTH
    vocab_size: int = 4096
    route: str | None = None
    prefill: str = "full"
    layerdrop: float = 0.0
    exit_loss: float = 0.0
    exit_layers: tuple[int, ...] = ()
    seed: int = 0
    resume: bool = False

    def loop(self) -> LoopSettings:
        """The preset with what differs from it; ValueError, one line, out of range."""
        check_choice("preset", self.preset, tuple(PRESETS))
        given = {name: value for name, value in (self.settings or {}).items() if value is not None}
        loop = replace(PRESETS[self.preset], seed=self.seed, **given)
        loop.check()
        return loop

    def regime(self, num_layers: int) -> Regime:
        """How layers run in training; ValueError, one line, where it does not fit the model."""
        route = None
        if self.route is not None:
            policy = policies.policy(self.route)
            if not isinstance(policy, FixedRoute):
                raise ValueError(f"route: got {self.route!r}, expected a policy of one fixed route")
            route = tuple(policy.route(num_layers).tolist())
        regime = Regime(
            route, self.prefill, self.layerdrop, self.exit_loss, self.exit_layers, self.seed
        )
        regime.check(num_layers)
        return regime


@dataclass
class Prepared:
    """A model with its tokenizer and data, ready to train. encode: further records alike. path: of
    the checkpoint, None from scratch.
    """

    model: OPTForCausalLM
    tokenizer: Any
    training: Examples
    validation: Examples
    test: list[Record]
    encode: Callable[[Sequence[Record]], Examples]
    path: Path | None


def run_finetune(config: FinetuneConfig, console: Console | None = None) -> Path:
    """Train, then write output/model, curves.csv, curves.png, finetune.json and report.html; the
    folder.

    Raises ValueError or FileNotFoundError, one line, on bad input; an interrupt loses what came
    after the last checkpoint, and `resume` goes on from there.
    """
    console = console or Console()
    settings = config.loop()
    check_choice("template", config.template, tuple(TEMPLATES))
    prepared = prepare(
        config.model,
        config.config,
        load_split(config.data, config.limit, config.validation),
        config.template,
        config.max_length,
        config.vocab_size,
        config.seed,
        config.regime,
    )
    model = prepared.model
    make_folder(config.output)
    remember(config.output / "arguments.json", config, settings, config.resume)
    say(console, prepared)
    started = time.perf_counter()
    result = train(
        model, prepared.training, prepared.validation, settings, config.output, config.resume
    )
    if result.is_main:
        replace_folder(config.output / "model", lambda part: save_model(prepared, part))
        report = {
            **stamp(prepared),
            "best_validation_loss": result.best_loss,
            "best_step": result.best_step,
            "steps": result.steps,
            "stopped_early": result.stopped_early,
            "seconds": time.perf_counter() - started,
        }
        write_json(config.output / "finetune.json", report)
        console.print(
            f"validation loss {result.best_loss:.4f} nats at step {result.best_step} of "
            f"{result.steps}; model in {config.output / 'model'}",
            highlight=False,
            soft_wrap=True,
        )
        page = write_report(config.output, finetune_report(config, report, result.log))
        console.print(f"report in {page}", highlight=False, soft_wrap=True)
    return config.output


def prepare(
    model: str | None,
    shape: str | None,
    records: tuple[list[Record], list[Record], list[Record]],
    template: str,
    max_length: int,
    vocab_size: int,
    seed: int,
    regime: Any,
) -> Prepared:
    """Model, tokenizer and encoded data. regime(num_layers) is asked for before weights are read.

    ValueError, one line, unless exactly one of model and shape is given, and on all that does not
    fit.
    """
    if (model is None) == (shape is None):
        raise ValueError("model: expected either a checkpoint (--model) or a shape (--config)")
    training, validation, test = records
    transformers.set_seed(seed)
    path = None
    if shape is not None:
        opt = shape_config(shape, vocab_size, max_length)
        chosen = regime(opt.num_hidden_layers)
        cap = check_lengths(template, max_length, opt.max_position_embeddings)
        tokenizer = train_tokenizer(training, template, vocab_size)
        network = OPTForCausalLM(opt)
    else:
        path = resolve_model(model)
        spec = spec_from_config(read_config(path))
        chosen = regime(spec.num_layers)
        cap = check_lengths(template, max_length, spec.max_positions)
        tokenizer = _tokenizer(path)
        network = load_module(OPTForCausalLM, path)
    network.train_under(chosen)
    ids = network.config.bos_token_id, network.config.eos_token_id

    def encode(part: Sequence[Record]) -> Examples:
        return encode_examples(tokenizer, part, template, max_length, cap, *ids)

    return Prepared(network, tokenizer, encode(training), encode(validation), test, encode, path)


def _tokenizer(path: Path) -> Any:
    from transformers import AutoTokenizer

    check_texts(path)
    try:
        return AutoTokenizer.from_pretrained(path)
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"model: the tokenizer of {path} cannot be read ({reason})") from None


def save_model(prepared: Prepared, folder: Path) -> None:
    """Weights under transformers' own names, without gates, and the tokenizer."""
    weights = {
        name: tensor
        for name, tensor in prepared.model.state_dict().items()
        if not name.startswith("gates.")
    }
    prepared.model.save_pretrained(folder, state_dict=weights)
    prepared.tokenizer.save_pretrained(folder)


def remember(path: Path, config: Any, settings: LoopSettings, resume: bool) -> None:
    """Keep what decides a run; ValueError where a resumed run differs from the stopped one."""
    decides = {**asdict(config), "settings": asdict(settings)}
    decides = {k: v for k, v in decides.items() if k not in ("output", "resume")}
    text = json.dumps(decides, indent=2, sort_keys=True, default=str) + "\n"
    if resume and path.is_file():
        before, now = json.loads(path.read_text(encoding="utf-8")), json.loads(text)
        for name in now:
            if before.get(name) != now[name]:
                raise ValueError(
                    f"resume: the stopped run had {name} {before.get(name)!r}, got {now[name]!r}"
                )
    write_whole(path, lambda part: part.write_text(text, encoding="utf-8"))


def stamp(prepared: Prepared) -> dict[str, Any]:
    """What was trained, on what, with what."""
    model, training, validation = prepared.model, prepared.training, prepared.validation
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return {
        "dynkern": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "device": str(model.device),
        "layers": model.num_layers,
        "parameters": sum(p.numel() for p in model.parameters()),
        "trained_parameters": trained,
        "training_sequences": len(training),
        "training_response_tokens": training.response_tokens,
        "validation_sequences": len(validation),
        "cut_prompts": training.cut_prompts + validation.cut_prompts,
        "cut_responses": training.cut_responses + validation.cut_responses,
    }


def say(console: Console, prepared: Prepared) -> None:
    """One line on what is about to be trained."""
    facts = stamp(prepared)
    console.print(
        f"{facts['training_sequences']} sequences to train on, {facts['validation_sequences']} to "
        f"validate, {facts['trained_parameters']:,} of {facts['parameters']:,} parameters trained"
        + (f", {n} responses cut" if (n := facts["cut_responses"]) else ""),
        highlight=False,
        soft_wrap=True,
    )


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write JSON, whole or not at all; default=str for paths."""
    text = json.dumps(content, indent=2, default=str) + "\n"
    write_whole(path, lambda part: part.write_text(text, encoding="utf-8"))
