"""python -m bench.quality MODEL DATA: what bfloat16 and int8 weights cost in quality.

For every weight format of the CPU engine: teacher-forced loss of the reference answers and ROUGE-L
of generated texts, both at full depth, and the share of FFN activations that are zero, which the
exact sparsity of fc2 lives on. Rows go to bench/results/cpu_quality.csv unless --output says
otherwise.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from bench.results_file import append, stamp
from dynkern.data import encode_prompt, load_records, response_text
from dynkern.evaluation.analysis import bootstrap_interval
from dynkern.evaluation.rouge import score
from dynkern.evaluation.teacher_forced import teacher_forced_losses
from dynkern.llm import LLM

RESULTS = Path(__file__).resolve().parent / "results"
FORMATS = ("float32", "bfloat16", "int8")
# what the quality gate allows an int8 model to lose
MOST_LOSS = 1.01


def measure(model: str, data: str, limit: int, new_tokens: int, batch: int) -> list[dict[str, Any]]:
    """One row a weight format: loss in nats per token, ROUGE-L with its interval."""
    rows: list[dict[str, Any]] = []
    for dtype in track(FORMATS, description="loss and ROUGE-L", console=Console(stderr=True)):
        llm = LLM(model, dtype=dtype)
        records = load_records(data, limit=limit)
        prompts = [encode_prompt(llm.tokenizer, record, "plain").ids for record in records]
        room = [llm.spec.max_positions - len(prompt) for prompt in prompts]
        targets = [
            [*llm.tokenizer(response_text(r), add_special_tokens=False)["input_ids"], 2][:most]
            for r, most in zip(records, room, strict=True)
        ]
        losses = teacher_forced_losses(llm, prompts, targets, batch)
        texts = llm.generate(prompts, "full", max_new_tokens=new_tokens, batch_size=batch)
        scores = [
            score(done.text, record.references)["rougeL"]
            for done, record in zip(texts, records, strict=True)
        ]
        low, high = bootstrap_interval(scores)
        rows.append(
            {
                "dtype": dtype,
                "executor": llm.engine.executor.name,
                "weight_bytes": llm.weight_bytes,
                "prompts": len(prompts),
                "loss": sum(losses) / len(losses),
                "rougeL": sum(scores) / len(scores),
                "rougeL_low": low,
                "rougeL_high": high,
            }
        )
    for row in rows:
        row["loss_ratio"] = row["loss"] / rows[0]["loss"]
    return rows


def zero_shares(model: str, data: str, limit: int) -> dict[str, float]:
    """Shares of zero FFN activations over response tokens, teacher-forced, in transformers' model.

    zeros: single neurons; zero_pairs and zero_fours: neighbours that share a group of packed
    bfloat16 or int8 weights; zeros_of_8: neurons that are zero in all of 8 rows.
    """
    from transformers import AutoTokenizer, OPTForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(model)
    module = OPTForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    seen: list[torch.Tensor] = []
    for layer in module.model.decoder.layers:
        layer.fc2.register_forward_pre_hook(lambda _, given: seen.append(given[0].flatten(0, -2)))
    sums = dict.fromkeys(("zeros", "zero_pairs", "zero_fours", "zeros_of_8"), 0.0)
    count = 0
    for record in load_records(data, limit=limit):
        prompt = encode_prompt(tokenizer, record, "plain").ids
        answer = tokenizer(response_text(record), add_special_tokens=False)["input_ids"]
        with torch.inference_mode():
            module(torch.tensor([[*prompt, *answer]]))
        zero = torch.stack([x[len(prompt) :] == 0 for x in seen]).float()
        seen.clear()
        if zero.shape[1] < 8:
            continue
        rows = zero[:, : zero.shape[1] // 8 * 8].unflatten(1, (-1, 8))
        sums["zeros"] += float(zero.mean())
        sums["zero_pairs"] += float(zero.unflatten(2, (-1, 2)).amin(-1).mean())
        sums["zero_fours"] += float(zero.unflatten(2, (-1, 4)).amin(-1).mean())
        sums["zeros_of_8"] += float(rows.amin(2).mean())
        count += 1
    return {name: total / count if count else math.nan for name, total in sums.items()}


def main(
    model: Annotated[str, typer.Argument(help="Checkpoint directory or hub id.")],
    data: Annotated[str, typer.Argument(help=".json, .jsonl or .csv file.")],
    limit: Annotated[int, typer.Option(help="First N records.")] = 128,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens to generate at most.")] = 48,
    batch_size: Annotated[int, typer.Option(help="Rows that decode together.")] = 8,
    output: Annotated[Path, typer.Option(help="CSV to append to.")] = RESULTS / "cpu_quality.csv",
) -> None:
    """Measure, print, append; exit code 1 where int8 misses its gate."""
    console = Console()
    shares = zero_shares(model, data, min(limit, 64))
    rows = measure(model, data, limit, max_new_tokens, batch_size)
    on = {**stamp("cpu", False), "model": Path(model).name}
    append(output, [{**on, **row, **shares} for row in rows])
    table = Table("dtype", "loss", "of float32", "ROUGE-L", "95 % interval")
    for row in rows:
        table.add_row(
            row["dtype"],
            f"{row['loss']:.4f}",
            f"{row['loss_ratio']:.4f}",
            f"{row['rougeL']:.3f}",
            f"{row['rougeL_low']:.3f} to {row['rougeL_high']:.3f}",
        )
    console.print(table)
    console.print(", ".join(f"{name} {share:.3f}" for name, share in shares.items()))
    full, int8 = rows[0], rows[-1]
    within = full["rougeL_low"] <= int8["rougeL"] <= full["rougeL_high"]
    if int8["loss_ratio"] > MOST_LOSS or not within:
        console.print("int8 misses its gate: loss within 1 %, ROUGE-L within float32's interval")
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
