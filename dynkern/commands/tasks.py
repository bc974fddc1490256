"""`dynkern tasks`: records of the task suite in a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(tasks)


def tasks(
    output: Annotated[Path, typer.Option(help="The .jsonl file to write.")],
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "train",
    count: Annotated[int, typer.Option(help="How many records.")] = 1024,
    seed: Annotated[int, typer.Option(help="Seed of every random draw.")] = 0,
    family: Annotated[
        list[str] | None, typer.Option(help="Only this family; repeat it. All by default.")
    ] = None,
    difficulty: Annotated[
        list[int] | None, typer.Option(help="Only this level, 1 to 4; repeat it. All by default.")
    ] = None,
) -> None:
    """Write records of the synthetic task suite; the same arguments write the same bytes."""
    import json
    from itertools import islice

    from dynkern.files import write_whole
    from dynkern.tasks import records

    if count < 1:
        raise ValueError(f"count: got {count}, expected 1 or more")
    if output.suffix.lower() != ".jsonl":
        raise ValueError(f"output: got {output}, expected a .jsonl file")
    stream = islice(records(split, seed, family or (), difficulty or ()), count)

    def write(part: Path) -> None:
        with part.open("w", encoding="utf-8", newline="\n") as file:
            for record in stream:
                file.write(json.dumps(record, ensure_ascii=False) + "\n")

    write_whole(output, write)
    typer.echo(f"{count} records of {split}, seed {seed}, in {output}")
