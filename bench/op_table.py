"""python -m bench.op_table: the table of ops, backends and dtypes; --write puts it into README.

A dtype is listed where the kernel itself does not refuse a call in it (`Kernel.refuses`), on the
arguments that bench/ops makes for the op.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer

from bench.ops.cases import make_case
from bench.ops.grid import NAMES, Spec
from bench.ops.pool import Maker
from dynkern.files import write_whole
from dynkern.ops import OPS
from dynkern.ops.backends import BACKENDS

README = Path(__file__).resolve().parent.parent / "README.md"
START = "<!-- kernels: python -m bench.op_table --write -->\n"
END = "<!-- /kernels -->"
DTYPES = {"float64": "f64", "float32": "f32", "bfloat16": "bf16", "float16": "f16"}


def dtypes(op: str, backend: str) -> list[str]:
    """Floating-point dtypes that a kernel takes; none where the op has no floating-point input."""
    refuses, found = OPS[op].kernels[backend].refuses, []
    for name in DTYPES:
        spec = Spec(op, NAMES[op][0], "tiny", name, 2, "all")
        case = make_case(spec, Maker(getattr(torch, name), torch.device("cpu"), cold=1))
        args = case.arguments(case.pool[0], case.layers[0])
        flat = [item for value in args for item in (value if isinstance(value, list) else [value])]
        floats = [t for t in flat if isinstance(t, torch.Tensor) and t.is_floating_point()]
        if floats and (refuses is None or refuses(*args) is None):
            found.append(name)
    return found


def _cell(op: str, backend: str) -> str:
    if backend not in OPS[op].kernels:
        return "–"
    return " ".join(DTYPES[name] for name in dtypes(op, backend)) or "yes"


def table() -> str:
    """Markdown, a row for each op in the order of the table."""
    lines = ["| op | " + " | ".join(BACKENDS) + " |", "|---" * (1 + len(BACKENDS)) + "|"]
    for op in OPS:
        lines.append(f"| `{op}` | " + " | ".join(_cell(op, backend) for backend in BACKENDS) + " |")
    return "\n".join(lines) + "\n"


def main(
    write: Annotated[bool, typer.Option("--write", help="Into README, between its marks.")] = False,
) -> None:
    """Print the table, or write it."""
    if not write:
        print(table(), end="")
        return
    before, rest = README.read_text(encoding="utf-8").split(START)
    after = rest[rest.index(END) :]
    text = before + START + table() + after
    write_whole(README, lambda part: part.write_text(text, encoding="utf-8"))


if __name__ == "__main__":
    typer.run(main)
