"""`dynkern doctor`: proof on this machine that skipped layers are not run.

Three independent looks: counters kept where layers run, parity with compute-then-mask in float64,
and wall-clock against the possible time. Skipping that only masks fails the third, skipping that
lowers a configuration value without effect fails the first (transformers' early-exit drafts on OPT
run every layer, since its decoder iterates all of them).
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from rich.console import Console
from rich.table import Table
from torch import Tensor

from dynkern.evaluation.calibration import Calibration
from dynkern.evaluation.compute_then_mask import masked_logits
from dynkern.evaluation.judgement import judge
from dynkern.evaluation.probe import EngineProbe
from dynkern.evaluation.timing import interleave
from dynkern.llm import LLM
from dynkern.models.module import load_module
from dynkern.policies import policy as make_policy
from dynkern.runtime.request import Completion, PlanRequest, TokenPolicy

ROWS = 4
NEW_TOKENS = 24
# a token counts as wrong only where float64 prefers another one by more than this share of the
# largest logit: float32 noise of a whole model stays ten times below
MARGIN = 2e-4
# masking saves 0 of what could be saved; half is far from both 0 and 1 on a noisy machine
LEAST_SAVED = 0.5


@dataclass(frozen=True)
class Finding:
    """One check: what was looked at, what was seen, and whether it holds."""

    check: str
    subject: str
    seen: str
    holds: bool


def run_doctor(model: str | None, backend: str, seed: int) -> bool:
    """Run every check, print a table, and say whether all of them hold.

    model: checkpoint directory or hub id; None for a random model of 12 layers, made on the spot.
    """
    console = Console()
    transformers.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as scratch:
        directory = model if model is not None else _random_model(Path(scratch), seed)
        console.print(f"model: {model or 'random, 12 layers of width 256'}", highlight=False)
        llm = LLM(directory, dtype="float32", backend=backend)
        truth = load_module(transformers.OPTForCausalLM, llm.path).double()
        findings = []
        with console.status("running skipping policies beside compute-then-mask"):
            for spec in _specs(llm.spec.num_layers):
                findings += _check_policy(llm, truth, spec, seed)
        with console.status("timing skipping policies"):
            findings += _check_time(llm, seed)
    _print(console, findings)
    failed = [finding for finding in findings if not finding.holds]
    verdict = f"{len(failed)} checks failed" if failed else "skipped layers are not run"
    console.print(f"{len(findings)} checks: {verdict}", highlight=False)
    return not failed


def _random_model(directory: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    config = transformers.OPTConfig(
        vocab_size=4096,
        hidden_size=256,
        word_embed_proj_dim=256,
        ffn_dim=1024,
        num_hidden_layers=12,
        num_attention_heads=8,
        max_position_embeddings=256,
        init_std=0.05,
    )
    transformers.OPTForCausalLM(config).save_pretrained(directory)
    return directory


def _specs(num_layers: int) -> list[str]:
    half = max(1, num_layers // 2)
    return [
        "full",
        f"uniform:{half}",
        f"early_exit:{half - 1}",
        f"random:{half}",
        f"random-step:{half}",
        "stochastic:0.5",
    ]


def _prompts(llm: LLM, seed: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    longest = min(24, llm.spec.max_positions - NEW_TOKENS)
    lengths = [max(1, longest - 3 * row) for row in range(ROWS)]
    bos, vocab_size = llm.spec.bos_token_id, llm.spec.vocab_size
    return [
        [bos, *torch.randint(4, vocab_size, (n - 1,), generator=generator).tolist()]
        for n in lengths
    ]


def _check_policy(llm: LLM, truth: torch.nn.Module, spec: str, seed: int) -> list[Finding]:
    result = llm.run(
        _prompts(llm, seed),
        spec,
        max_new_tokens=NEW_TOKENS,
        batch_size=ROWS,
        seed=seed,
        force_length=True,
    )
    wanted = [_expected_keep(llm, spec, completion, seed) for completion in result.completions]
    counted = [completion.layer_counts for completion in result.completions]
    agree = counted == [keep.sum(dim=0).tolist() for keep in wanted]
    layers = sum(c.mean_layers for c in result.completions) / ROWS
    findings = [
        Finding(
            "counters",
            spec,
            f"{layers:.2f} of {llm.spec.num_layers} layers a token"
            + ("" if agree else ", not those of the route"),
            agree,
        )
    ]
    wrong, total = 0, 0
    for completion, keep in zip(result.completions, wanted, strict=True):
        wrong += _wrong_tokens(truth, completion, keep)
        total += len(completion.token_ids)
    seen = f"{total - wrong} of {total} tokens are compute-then-mask's"
    return [*findings, Finding("parity", spec, seen, wrong == 0)]


def _expected_keep(llm: LLM, spec: str, completion: Completion, seed: int) -> Tensor:
    """Layers [passes, L] that the row should have run, from the policy's definition alone."""
    chosen, num_layers = make_policy(spec), llm.spec.num_layers
    passes = len(completion.token_ids) - 1
    if isinstance(chosen, TokenPolicy):
        request = torch.full((passes,), completion.request_id)
        token = torch.arange(1, passes + 1)
        return chosen.lower(num_layers).draw(seed, request, token, num_layers).T
    asked = [PlanRequest(completion.request_id, completion.prompt_ids, num_layers, seed)]
    return chosen.plan(asked)[0].expand(passes, num_layers)


def _wrong_tokens(truth: torch.nn.Module, completion: Completion, keep: Tensor) -> int:
    prompt, generated = completion.prompt_ids, completion.token_ids
    over_prompt = torch.ones(len(prompt), keep.shape[1], dtype=torch.bool)
    ids = torch.tensor(prompt + generated[:-1])
    with torch.inference_mode():
        logits = masked_logits(truth, ids, torch.cat([over_prompt, keep]))[len(prompt) - 1 :]
    picked = logits.gather(1, torch.tensor(generated)[:, None])[:, 0]
    lost = logits.max(dim=1).values - picked
    return int((lost > MARGIN * logits.abs().max()).sum())


def _check_time(llm: LLM, seed: int) -> list[Finding]:
    prompts, num_layers = _prompts(llm, seed), llm.spec.num_layers
    specs = ["full", *(f"uniform:{max(1, num_layers * part // 4)}" for part in (3, 2, 1))]

    def case(spec: str):
        return lambda: llm.run(
            prompts, spec, max_new_tokens=NEW_TOKENS, batch_size=ROWS, force_length=True
        )

    probe = EngineProbe.after(llm.engine, prompts, NEW_TOKENS // 2, with_fill=False)
    calibration = Calibration(probe, [1, ROWS])
    cases = {spec: case(spec) for spec in dict.fromkeys(specs)}
    timings = interleave({**calibration.cases, **cases}, 5)
    findings = []
    for spec in list(cases)[1:]:
        judged = judge(timings, calibration, spec, "full")
        saved = judged.saved_fraction
        seen = (
            f"{judged.speedup.median:.2f}x faster than full depth, {_percent(saved)} of what can "
            f"be saved, realisation {judged.realisation:.2f}"
        )
        if timings.loaded:
            seen += " (under load)"
        findings.append(Finding("time", spec, seen, saved is None or saved >= LEAST_SAVED))
    return findings


def _percent(share: float | None) -> str:
    return "n/a" if share is None else f"{100 * share:.0f} %"


def _print(console: Console, findings: list[Finding]) -> None:
    table = Table(title="dynkern doctor")
    for column in ("check", "policy", "seen", "holds"):
        table.add_column(column)
    for f in findings:
        table.add_row(f.check, f.subject, f.seen, "yes" if f.holds else "[bold red]NO[/]")
    console.print(table)
