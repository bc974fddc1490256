"""python -m bench.end_to_end --output DIR: the CPU engine against its peers and against itself.

Whole loops (prefill and decoding) of random-weight OPT shapes, fresh random prompts of 64 tokens,
64 forced new tokens, engines in turn round after round, each in a process of its own; then routes,
exits and serving against dynkern's own full depth. Rows go to DIR/cpu.csv as they come, those of
the latency group (bench/latency.py) to DIR/end_to_end.csv.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from bench.arguments import check_each, refuse
from bench.cpu_cases import GROUPS, PROMPT, Bench, Row, smaller
from bench.engines import LIMIT, Engine
from bench.latency import COLUMNS as LATENCY_COLUMNS
from bench.latency import DEFAULT_BATCHES, DEFAULT_KINDS, latency_rows, print_latencies
from bench.peer_rows import peer_rows
from bench.peers import KINDS
from bench.results_file import append, stamp
from dynkern.data import TEMPLATES, encode_prompt, load_records, prompt_cap
from dynkern.llm import LLM

# hidden size, layers, heads, FFN size, vocabulary
SHAPES = {
    "tiny": (64, 4, 2, 128, 320),
    "125m": (768, 12, 12, 3072, 50272),
    "350m-wide": (1024, 24, 16, 4096, 50272),
    "1.3b": (2048, 24, 32, 8192, 50272),
}
COLUMNS = (
    "group",
    "shape",
    "dtype",
    "batch",
    "prompt",
    "new_tokens",
    "engine",
    "case",
    "seconds",
    "low",
    "high",
    "tokens_per_second",
    "speedup",
    "predicted",
    "realisation",
    "efficiency",
    "bandwidth",
    "loaded",
    "note",
    "foreign_load",
    "engine_version",
)


def make_checkpoint(shape: str, layers: int | None, folder: Path) -> Path:
    """A random-weight OPT of the shape, made once. float32 on disk, since a converter keeps 16-bit
    weights as they are and float32 peers would read half of what they say; bfloat16 where float32
    would take gigabytes.
    """
    import transformers

    hidden, depth, heads, ffn, vocabulary = SHAPES[shape]
    depth = layers or depth
    target = folder / f"{shape}-{depth}"
    if not (target / "config.json").is_file():
        torch.manual_seed(0)
        config = transformers.OPTConfig(
            vocab_size=vocabulary,
            hidden_size=hidden,
            word_embed_proj_dim=hidden,
            ffn_dim=ffn,
            num_hidden_layers=depth,
            num_attention_heads=heads,
        )
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float32 if hidden < 2048 else torch.bfloat16)
        try:
            model = transformers.OPTForCausalLM(config)
        finally:
            torch.set_default_dtype(before)
        model.save_pretrained(target)
    return target


def memory_row(checkpoint: Path) -> Row:
    """Memory that loading takes, beside the packed size, in a fresh process."""
    engine = Engine("dynkern-bfloat16", checkpoint)
    engine.close()
    packed = LLM(checkpoint, dtype="bfloat16").weight_bytes
    return {
        "engine": "dynkern-bfloat16",
        "dtype": "bfloat16",
        "case": "memory after loading",
        "speedup": engine.loaded_bytes / packed,
        "note": f"{engine.loaded_bytes} bytes held, {packed} bytes packed",
    }


def main(
    output: Annotated[Path, typer.Option(help="Folder for cpu.csv.")],
    group: Annotated[
        list[str] | None,
        typer.Option(
            help="peers, latency, realisation, mixed, confidence, serving, smaller, memory."
        ),
    ] = None,
    shape: Annotated[list[str] | None, typer.Option(help="125m, 350m-wide or 1.3b.")] = None,
    model: Annotated[str | None, typer.Option(help="A checkpoint instead of a shape.")] = None,
    dtype: Annotated[list[str] | None, typer.Option(help="float32, bfloat16, int8.")] = None,
    batch: Annotated[list[int] | None, typer.Option(help="Rows; repeat it.")] = None,
    kind: Annotated[list[str] | None, typer.Option(help="Engines of peers and latency.")] = None,
    policy: Annotated[list[str] | None, typer.Option(help="Of the latency group.")] = None,
    data: Annotated[
        str | None, typer.Option(help="Prompts for --model's latency; rows end at EOS.")
    ] = None,
    template: Annotated[str, typer.Option(help="alpaca or plain, for --data.")] = "plain",
    new_tokens: Annotated[int, typer.Option(help="Forced new tokens.")] = 64,
    repeats: Annotated[int, typer.Option(help="Interleaved rounds.")] = 5,
    peer_python: Annotated[str, typer.Option(help="Interpreter that has the peers.")] = "",
    limit: Annotated[
        float, typer.Option(help="Seconds that an engine may take to load, or to answer once.")
    ] = LIMIT,
    work: Annotated[Path | None, typer.Option(help="Folder that keeps checkpoints.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Tiny shape, to try it.")] = False,
) -> None:
    """Measure the groups asked for (all by default) and append them to OUTPUT/cpu.csv."""
    known = ("peers", *GROUPS, "smaller", "memory", "latency")
    groups = group or [name for name in known if name != "smaller" or not model]
    shapes = [model] if model else ["tiny"] if dry_run else shape or ["125m"]
    check_each("group", groups, known)
    check_each("kind", kind or [], KINDS)
    check_each("dtype", dtype or [], ("float32", "bfloat16", "int8"))
    check_each("template", [template], tuple(TEMPLATES))
    if data and not model:
        refuse("--data: got it without --model, expected a checkpoint with a tokenizer")
    if not model:
        check_each("shape", shapes, tuple(SHAPES))
    elif "smaller" in groups:
        refuse("--group: got 'smaller' with --model, expected a shape, of which models can be made")
    for name, value in (("new-tokens", new_tokens), ("repeats", repeats), *_each("batch", batch)):
        if value < (2 if name == "new-tokens" else 1):
            refuse(f"--{name}: got {value}, expected more")
    if not limit > 0:
        refuse(f"--limit: got {limit:g}, expected more than 0 seconds")
    if dry_run:
        new_tokens, repeats = 4, 1
    batches = batch or ([1, 2] if dry_run else [1, 8, 32])
    console = Console()
    rows: list[Row] = []
    latencies: list[Row] = []
    with tempfile.TemporaryDirectory() as scratch, Progress(console=Console(stderr=True)) as bar:
        for name in shapes:
            checkpoint = Path(name) if model else make_checkpoint(name, None, work or Path(scratch))
            label = Path(name).name  # of somebody's checkpoint, not where it lies
            sizes = {"prompt": PROMPT, "new_tokens": new_tokens}
            keep = work or Path(scratch)
            # nothing is put beside somebody's checkpoint
            peer_options = (
                peer_python or sys.executable,
                keep / label if model else checkpoint,
                limit,
            )
            for row in _measure(
                checkpoint, groups, kind, dtype, batches, sizes, repeats, peer_options, bar, keep
            ):
                full = {**dict.fromkeys(COLUMNS, ""), **sizes, **row, "shape": label}
                on = stamp("cpu", dry_run)
                append(output / "cpu.csv", [{**on, **full}])
                rows.append(full)
            if "latency" in groups:
                bar.console.print(f"latency, {label}")
                prompts = _prompts_of(checkpoint, data, template, new_tokens)
                depth = int(
                    json.loads((checkpoint / "config.json").read_text())["num_hidden_layers"]
                )
                half = max(1, depth // 2)
                others = {} if model else {f"{half}-layer model": make_checkpoint(name, half, keep)}
                for row in latency_rows(
                    checkpoint,
                    others,
                    kind
                    or [k for k in KINDS if k.partition("-")[2] in (dtype or [])]
                    or DEFAULT_KINDS,
                    ["full", *(policy or [f"uniform:{half}", f"early_exit:{half - 1}"])],
                    [
                        partial(prompts, n)
                        for n in batch or (batches if dry_run else DEFAULT_BATCHES)
                    ],
                    new_tokens,
                    data is not None,
                    repeats,
                    *peer_options,
                ):
                    on = stamp("cpu", dry_run)
                    full = {**dict.fromkeys(LATENCY_COLUMNS, ""), **row, "shape": label}
                    append(output / "end_to_end.csv", [{**on, **full}])
                    latencies.append(full)
    if rows:
        _print(console, rows)
    if latencies:
        print_latencies(console, latencies)


def vocabulary_of(checkpoint: Path) -> int:
    """Vocabulary size of a checkpoint."""
    return int(json.loads((checkpoint / "config.json").read_text())["vocab_size"])


def _prompts_of(
    checkpoint: Path, data: str | None, template: str, new_tokens: int
) -> Callable[[int], list[list[int]]]:
    """Makes a round's prompts: random ones, or the data's next."""
    if data is None:
        vocabulary = vocabulary_of(checkpoint)
        return lambda n: [
            [2, *random.choices(range(4, vocabulary), k=PROMPT - 1)] for _ in range(n)
        ]
    llm = LLM(checkpoint)
    cap = prompt_cap(template, llm.spec.max_positions - new_tokens + 1)
    bos = llm.spec.bos_token_id
    records = load_records(data)
    own = [list(encode_prompt(llm.tokenizer, r, template, cap, bos).ids) for r in records]
    endless = cycle(own)
    return lambda n: [next(endless) for _ in range(n)]


def _measure(
    checkpoint: Path,
    groups: list[str],
    kinds: list[str] | None,
    dtypes: list[str] | None,
    batches: list[int],
    sizes: dict[str, int],
    repeats: int,
    peer_options: tuple[str, Path, float],
    bar: Progress,
    folder: Path,
) -> Iterator[Row]:
    dtypes = dtypes or ["bfloat16"]
    own = [g for g in groups if g in GROUPS]
    task = bar.add_task("measuring", total=len(own) * len(dtypes) * len(batches) + 1)
    if "peers" in groups:
        bar.update(task, description=f"peers, {checkpoint.name}")
        cases = [{"batch": n, **sizes} for n in batches]
        cases.append({"batch": min(8, max(batches)), "prompt": 128, "new_tokens": 1})
        vocabulary = vocabulary_of(checkpoint)
        how = (vocabulary, cases, repeats, *peer_options)
        for row in peer_rows(checkpoint, kinds or list(KINDS), *how):
            yield {"group": "peers", **row}
    if "memory" in groups:
        yield {"group": "memory", **memory_row(checkpoint)}
    bar.advance(task)
    for dtype in dtypes if own else []:
        llm = LLM(checkpoint, dtype=dtype)
        for batch in batches:
            for group in own:
                bar.update(task, description=f"{group}, {dtype}, {batch} rows")
                bench = Bench(llm, batch, sizes["new_tokens"], repeats)
                if group != "mixed" or batch > 1:
                    for row in GROUPS[group](bench):
                        on = {"group": group, "dtype": dtype, "batch": batch}
                        yield {**on, "engine": f"dynkern-{dtype}", **row}
                bar.advance(task)
    for dtype in dtypes if "smaller" in groups else []:
        shape, _, depth = checkpoint.name.rpartition("-")
        budgets = dict.fromkeys(max(1, int(depth) * part // 4) for part in (3, 2, 1))
        bar.update(task, description=f"smaller, {dtype}")
        llm, *others = (
            LLM(make_checkpoint(shape, layers, folder), dtype=dtype)
            for layers in (int(depth), *budgets)
        )
        for batch in batches:
            bench = Bench(llm, batch, sizes["new_tokens"], repeats)
            for row in smaller(bench, dict(zip(budgets, others, strict=True))):
                on = {"group": "smaller", "dtype": dtype, "batch": batch}
                yield {**on, "engine": f"dynkern-{dtype}", **row}


def _each(name: str, values: list[int] | None) -> list[tuple[str, int]]:
    return [(name, value) for value in values or []]


def _print(console: Console, rows: list[Row]) -> None:
    table = Table(title="bench.end_to_end")
    columns = ("group", "shape", "batch", "engine", "case", "ms", "tok/s", "speedup", "realised")
    for column in (*columns, "roofline"):
        table.add_column(column, overflow="fold")

    def number(value: Any, form: str) -> str:
        return form.format(value) if isinstance(value, int | float) else ""

    notes: dict[str, None] = {}
    for row in rows:
        seconds = row["seconds"]
        table.add_row(
            *(str(row[key]) for key in ("group", "shape", "batch", "engine", "case")),
            f"{seconds * 1e3:.2f}" if isinstance(seconds, float) else "",
            number(row["tokens_per_second"], "{:.1f}"),
            *(number(row[key], "{:.3f}") for key in ("speedup", "realisation", "efficiency")),
            style="dim" if row["loaded"] is True else None,
        )
        if row["note"]:
            notes[
                f"{row['engine']}, {row['batch'] or 'all'} rows, {row['group']}: {row['note']}"
            ] = None
    console.print(table)
    for note in notes:
        console.print(note, highlight=False)
    if any(row["loaded"] is True for row in rows):
        console.print("dim rows: other processes used the machine, and no quiet run could be had")


if __name__ == "__main__":
    typer.run(main)
