"""python -m bench.keep_eval OUTPUT MODEL DATA [FOLDER]: append a `dynkern eval` result to FOLDER.

OUTPUT is the folder that eval wrote; MODEL and DATA name in words what it ran on, since paths of
somebody's machine say nothing: of a path only the last part is kept. Rows go to FOLDER/eval.csv
(bench/results by default), those of the synthetic task suite to FOLDER/eval_tasks.csv, the plot
beside them.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from bench.results_file import append, commit
from dynkern.tasks import is_task_source

RESULTS = Path(__file__).resolve().parent / "results"
COLUMNS = (
    "policy",
    "rougeL",
    "agreement_with_full",
    "mean_layers",
    "new_tokens",
    "seconds",
    "speedup",
    "speedup_decode",
    "predicted_speedup",
    "realisation",
    "saved_fraction",
    "roofline_efficiency",
    "peak_memory_bytes",
    "loaded",
)


def main(arguments: list[str]) -> int:
    """Keep one result; 2 on bad arguments."""
    if len(arguments) not in (3, 4) or not (Path(arguments[0]) / "results.json").is_file():
        print(
            "keep_eval: expected OUTPUT (with results.json), MODEL, DATA, [FOLDER]", file=sys.stderr
        )
        return 2
    output, model, data = Path(arguments[0]), *(Path(word).name for word in arguments[1:3])
    folder = Path(arguments[3]) if len(arguments) == 4 else RESULTS
    content = json.loads((output / "results.json").read_text(encoding="utf-8"))
    meta, where = content["meta"], content["meta"]["environment"]
    on = {
        "time": meta["started"],
        "commit": commit(),
        "model": model,
        "data": data,
        "prompts": meta["prompts"],
        "batch_size": meta["arguments"]["batch_size"],
        "max_new_tokens": meta["arguments"]["max_new_tokens"],
        # as `stamp` has it
        "device": where["device"] + (f", {where['isa']}" if where["isa"] != "cuda" else ""),
        **{key: where[key] for key in ("dtype", "executor", "threads")},
        "torch": where["torch"],
    }
    rows = [
        {
            **on,
            **{key: run[key] for key in COLUMNS},
            "rougeL_low": run["rougeL_ci"][0],
            "rougeL_high": run["rougeL_ci"][1],
        }
        for run in content["runs"]
    ]
    name = "eval_tasks" if is_task_source(meta["arguments"]["data"]) else "eval"
    append(folder / f"{name}.csv", rows)
    shutil.copy(output / "curve.png", folder / f"{name}.png")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
