"""python -m bench.keep_reproduce OUTPUT SECONDS [FOLDER]: append what `dynkern reproduce` found.

Rows go to FOLDER/reproduce.csv, a claim each. OUTPUT is the folder that reproduce wrote, SECONDS
what the run took by the clock. FOLDER is bench/results by default. Of paths only the last part is
kept.
"""

from __future__ import annotations

import json
import sys
from datetime import datetime, timezone
from pathlib import Path

import torch

from bench.results_file import append, commit, processor

RESULTS = Path(__file__).resolve().parent / "results"
SETTINGS = ("limit", "states_limit", "samples_limit", "train_limit", "steps", "max_new_tokens")


def main(arguments: list[str]) -> int:
    """Keep one run's claims; 2 on bad arguments."""
    if (
        len(arguments) not in (2, 3)
        or not (Path(arguments[0]) / "report.json").is_file()
        or not arguments[1].isdecimal()
    ):
        print(
            "keep_reproduce: expected OUTPUT (with report.json), SECONDS, [FOLDER]", file=sys.stderr
        )
        return 2
    output, folder = Path(arguments[0]), Path(arguments[2] if len(arguments) == 3 else RESULTS)
    content = json.loads((output / "report.json").read_text(encoding="utf-8"))
    asked = content["arguments"]
    written = datetime.fromtimestamp((output / "report.json").stat().st_mtime, timezone.utc)
    on = {
        "time": written.isoformat(timespec="seconds"),
        "commit": commit(),
        "device": processor(torch.device("cpu")),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "model": Path(asked["model"]).name,
        "data": Path(asked["test"] or asked["data"]).name,
        **{name: asked[name] for name in SETTINGS},
        "seconds": int(arguments[1]),
    }
    rows = [
        {
            **on,
            "claim": claim["claim"],
            "holds": claim["holds"],
            "low": low,
            "high": high,
            "measured": claim["measured"],
        }
        for claim in content["claims"]
        for low, high in [claim["interval"] or ("", "")]
    ]
    append(folder / "reproduce.csv", rows)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
