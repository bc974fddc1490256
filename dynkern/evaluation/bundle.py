"""`dynkern bundle`: a checkpoint as the package ships it, with predictor, scores and card."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from dynkern.allocation.predictor import JSON_NAME, TENSORS_NAME
from dynkern.arguments import check_integer
from dynkern.assets import BUNDLE_NAME, CARD_FILE, PREDICTOR_FOLDER, SCORES_FILE
from dynkern.data import encode_prompt, load_records, response_text
from dynkern.evaluation.bundle_card import card
from dynkern.evaluation.oracle import OracleConfig, run_oracle
from dynkern.evaluation.predictor_report import PredictorConfig, run_training
from dynkern.evaluation.progress import Progressing
from dynkern.evaluation.report import plain
from dynkern.evaluation.task_scores import NEW_TOKENS, Report, budgets, score_tasks
from dynkern.evaluation.teacher_forced import teacher_forced_losses
from dynkern.files import make_folder, replace_folder, write_whole
from dynkern.llm import LLM
from dynkern.models.checkpoint import Checkpoint, read_config, resolve_model
from dynkern.models.int8_file import INT8, INT8_FILE, SCALE, narrow
from dynkern.models.opt import source_tensors, spec_from_config
from dynkern.models.spec import DecoderSpec

SCORED, PREDICTED_FROM = "tasks:test", "tasks:validation"
SHARES = (0.75, 0.5, 0.25)
_TABLES = ("token_embedding", "position_embedding")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


@dataclass(frozen=True)
class BundleConfig:
    """The arguments of `dynkern bundle`. training: pretrain.json, for the card. work: folder of the
    predictor's table, which a stopped run goes on with. limit: records scored; predictor_prompts:
    prompts behind the predictor; 0 leaves them out.
    """

    model: str
    output: Path
    training: Path | None = None
    work: Path = Path("dynkern-bundle")
    limit: int = 1024
    predictor_prompts: int = 2048
    seed: int = 0


def run_bundle(config: BundleConfig, console: Console | None = None) -> Path:
    """Write the bundle; its folder. Running it again makes it anew, but for the table in `work`.

    Raises ValueError or FileNotFoundError, one line, on bad input.
    """
    console = console or Console()
    check_integer("limit", config.limit, 0)
    check_integer("predictor_prompts", config.predictor_prompts, 0)
    source = resolve_model(config.model)
    if source.resolve() == config.output.resolve():
        raise ValueError(f"output: got the model's own folder {source}, expected another one")
    training = None if config.training is None else _training(config.training)
    spec = spec_from_config(read_config(source))
    make_folder(config.output.parent)
    replace_folder(config.output, lambda part: write_model(source, part))
    if config.predictor_prompts:
        _add_predictor(config, console)
    facts: dict[str, Any] = {
        "model": _shape(spec, source),
        "data": SCORED,
        "records": config.limit,
        "training": training,
        "predictor_prompts": config.predictor_prompts,
    }
    if config.limit:
        with Progressing(console) as progress:
            facts["scores"] = {
                name: _score(folder, config.limit, progress.task(name))
                for name, folder in (("float32", source), ("bundle", config.output))
            }
    text = json.dumps(plain(facts), indent=2) + "\n"
    write_whole(config.output / SCORES_FILE, lambda part: part.write_text(text))
    # the bundle goes by its own name, wherever it is made
    page = card(BUNDLE_NAME, facts)
    write_whole(config.output / CARD_FILE, lambda part: part.write_text(page, encoding="utf-8"))
    _say(console, config.output, facts)
    return config.output


def write_model(source: Path, folder: Path) -> None:
    """A checkpoint's weights as int8 and bfloat16, its configuration and tokenizer, in a folder.

    ValueError, one line, for a checkpoint that is no OPT or lacks tensors or tokenizer.
    """
    from safetensors.torch import save_file

    config = read_config(source)
    spec = spec_from_config(config)
    for name in _TOKENIZER_FILES:
        if not (source / name).is_file():
            raise ValueError(f"model: {source} has no {name}, expected a tokenizer to ship")
        shutil.copyfile(source / name, folder / name)
    kept: dict[str, Tensor] = {}
    with Checkpoint(source) as tensors:
        for part, tensor in source_tensors(tensors, spec):
            name = part.name if part.field == "lm_head" else f"model.decoder.{part.name}"
            if part.field in _TABLES:
                kept[name] = tensor.to(torch.bfloat16)
            elif len(part.shape) == 2:
                kept[name + INT8], kept[name + SCALE] = narrow(tensor)
            else:
                kept[name] = tensor.to(torch.float32)
    save_file({n: t.contiguous() for n, t in kept.items()}, folder / INT8_FILE, {"format": "pt"})
    # safetensors leaves a file that nobody else can read, and so would the wheel
    (folder / INT8_FILE).chmod(0o644)
    # float32 is what the widened weights are in
    _write_json(folder / "config.json", {**config, "dtype": "float32"})
    ids = ("bos_token_id", "eos_token_id", "pad_token_id")
    _write_json(folder / "generation_config.json", {name: getattr(spec, name) for name in ids})


def bundle_bytes(folder: Path) -> int:
    """Of all files in it."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _training(path: Path) -> dict[str, Any]:
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(facts["tokens"], int):
            raise ValueError("tokens is no integer")
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:120]
        raise ValueError(
            f"training: {path} cannot be read ({reason}), expected pretrain.json"
        ) from None
    return facts


def _shape(spec: DecoderSpec, source: Path) -> dict[str, Any]:
    with Checkpoint(source) as tensors:
        parameters = sum(tensor.numel() for _, tensor in source_tensors(tensors, spec))
    return {
        "layers": spec.num_layers,
        "width": spec.hidden_size,
        "parameters": parameters / 1e6,
        "vocab": spec.vocab_size,
        "positions": spec.max_positions,
    }


def _add_predictor(config: BundleConfig, console: Console) -> None:
    """Fit a predictor on validation prompts, under the bundle's own weights, and put it in."""
    table, made = config.work / "table", config.work / "predictor"
    make_folder(config.work)
    run_oracle(
        OracleConfig(
            str(config.output),
            PREDICTED_FROM,
            limit=config.predictor_prompts,
            max_new_tokens=NEW_TOKENS,
            template="plain",
            seed=config.seed,
            output=table,
            resume=True,
            losses=False,
        ),
        console,
    )
    shutil.rmtree(made, ignore_errors=True)
    run_training(PredictorConfig(table, made, seed=config.seed), console)

    def put(part: Path) -> None:
        for name in (JSON_NAME, TENSORS_NAME):
            shutil.copyfile(made / name, part / name)

    replace_folder(config.output / PREDICTOR_FOLDER, put)


def _score(folder: Path, count: int, report: Report) -> dict[str, Any]:
    llm, records = LLM(folder, dtype="float32"), load_records(SCORED, limit=count)
    scores = score_tasks(llm, records, budgets(llm.spec.num_layers, SHARES), report)
    bos, eos = llm.spec.bos_token_id, llm.spec.eos_token_id
    prompts = [encode_prompt(llm.tokenizer, record, "plain", None, bos).ids for record in records]
    targets = [
        [*llm.tokenizer(response_text(record), add_special_tokens=False)["input_ids"], eos]
        for record in records
    ]
    losses = teacher_forced_losses(llm, prompts, targets)
    return {**scores, "loss": sum(losses) / len(losses)}


def _say(console: Console, folder: Path, facts: dict[str, Any]) -> None:
    size = f"{bundle_bytes(folder) / 1e6:.1f} MB"
    if not facts.get("scores"):
        console.print(f"bundle of {size} in {folder}", highlight=False, soft_wrap=True)
        return
    bundle, wide = (facts["scores"][name] for name in ("bundle", "float32"))
    lost = ", ".join(
        f"{label} {value:.4f} ({wide['rougeL'][label] - value:+.4f} lost by int8)"
        for label, value in bundle["rougeL"].items()
    )
    console.print(f"bundle of {size} in {folder}: ROUGE-L {lost}", highlight=False, soft_wrap=True)
