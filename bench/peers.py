"""Engines of bench.end_to_end, dynkern among them, each in a process of its own.

`python -m bench.peers KIND CHECKPOINT` loads one engine and answers JSON lines on stdin, so that no
engine's threads spin beside another's. Every answer carries the load that others put on the machine
meanwhile. Prompts are fresh random ids in every run; exactly new_tokens are generated, greedily.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

# generated, prompt tokens and rows of one run; the reply's seconds are of the whole loop
Run = Callable[[list[list[int]], int], None]

KINDS = (
    "dynkern-float32",
    "dynkern-bfloat16",
    "dynkern-int8",
    "openvino-float32",
    "openvino-bfloat16",
    "openvino-int8",
    "ctranslate2-float32",
    "ctranslate2-int8",
    "hf-float32",
    "hf-bfloat16",
)
EXTRA = "pip install 'dynkern[bench]'"


def _dynkern(checkpoint: Path, dtype: str) -> Run:
    import dynkern

    llm = dynkern.LLM(checkpoint, dtype=dtype)

    def run(prompts: list[list[int]], new_tokens: int) -> None:
        llm.run(
            prompts,
            "full",
            max_new_tokens=new_tokens,
            batch_size=len(prompts),
            force_length=True,
        )

    return run


def _hf(checkpoint: Path, dtype: str) -> Run:
    import torch
    from transformers import OPTForCausalLM

    model = OPTForCausalLM.from_pretrained(checkpoint, dtype=getattr(torch, dtype)).eval()

    def run(prompts: list[list[int]], new_tokens: int) -> None:
        ids = torch.tensor(prompts)
        mask = torch.ones_like(ids)
        new = {"min_new_tokens": new_tokens, "max_new_tokens": new_tokens, "do_sample": False}
        model.generate(ids, attention_mask=mask, **new)

    return run


def _openvino(checkpoint: Path, dtype: str) -> Run:
    # optimum-intel imports torchvision where there is one, and fails beside a CPU build of torch
    sys.modules["torchvision"] = None  # type: ignore[assignment]
    os.environ.setdefault("OPENVINO_TELEMETRY", "0")
    import numpy as np
    import openvino
    import openvino_genai as genai

    int8 = dtype == "int8"
    converted = checkpoint / ("openvino-int8" if int8 else "openvino")
    if not (converted / "openvino_model.xml").is_file():
        from optimum.intel import OVModelForCausalLM

        model = OVModelForCausalLM.from_pretrained(
            checkpoint, export=True, load_in_8bit=int8, compile=False, local_files_only=True
        )
        model.save_pretrained(converted)
        del model
    # paged attention was the faster of openvino-genai's two at 1, 8 and 32 rows (2026.4.1), and
    # bfloat16 arithmetic the faster one for int8 weights
    scheduler = genai.SchedulerConfig()
    scheduler.enable_prefix_caching = False
    hint = "f32" if dtype == "float32" else "bf16"
    settings = {
        "INFERENCE_PRECISION_HINT": hint,
        "ATTENTION_BACKEND": "PA",
        "scheduler_config": scheduler,
    }
    pipeline = genai.LLMPipeline(str(converted), "CPU", settings)

    def run(prompts: list[list[int]], new_tokens: int) -> None:
        ids = np.array(prompts, dtype=np.int64)
        config = genai.GenerationConfig()
        config.max_new_tokens = config.min_new_tokens = new_tokens
        config.ignore_eos, config.do_sample = True, False
        config.apply_chat_template = False
        inputs = genai.TokenizedInputs(openvino.Tensor(ids), openvino.Tensor(np.ones_like(ids)))
        tokens = pipeline.generate(inputs, config).tokens
        if [len(row) for row in tokens] != [new_tokens] * len(prompts):
            raise RuntimeError(f"openvino generated {len(tokens[0])} tokens, not {new_tokens}")

    return run


def _ctranslate2(checkpoint: Path, dtype: str) -> Run:
    sys.modules["torchvision"] = None  # type: ignore[assignment]
    import ctranslate2
    from ctranslate2.converters import TransformersConverter

    vocabulary = json.loads((checkpoint / "config.json").read_text())["vocab_size"]

    class Numbers:
        """A tokenizer whose tokens are the ids themselves."""

        bos_token = eos_token = "t2"
        unk_token = "t3"

        def get_vocab(self) -> dict[str, int]:
            return {f"t{i}": i for i in range(vocabulary)}

    class Converter(TransformersConverter):
        def load_tokenizer(self, *arguments: Any, **options: Any) -> Numbers:
            return Numbers()

    converted = checkpoint / "ctranslate2"
    if not (converted / "model.bin").is_file():
        Converter(str(checkpoint)).convert(str(converted), force=True)
    threads = os.cpu_count() or 1
    compute = "int8_float32" if dtype == "int8" else dtype
    generator = ctranslate2.Generator(
        str(converted), device="cpu", compute_type=compute, intra_threads=threads
    )

    def run(prompts: list[list[int]], new_tokens: int) -> None:
        results = generator.generate_batch(
            [[f"t{i}" for i in prompt] for prompt in prompts],
            max_length=new_tokens,
            min_length=new_tokens,
            include_prompt_in_result=False,
            end_token=[],
        )
        lengths = [len(result.sequences_ids[0]) for result in results]
        if lengths != [new_tokens] * len(prompts):
            raise RuntimeError(f"ctranslate2 generated {lengths[0]} tokens, not {new_tokens}")

    return run


_LOADERS = {
    "dynkern": _dynkern,
    "hf": _hf,
    "openvino": _openvino,
    "ctranslate2": _ctranslate2,
}


_PACKAGES = {"hf": "transformers", "openvino": "openvino-genai"}


def _version(name: str) -> str:
    """Version of an engine and, of dynkern's, the instruction set."""
    if name == "dynkern":  # a checkout need not be installed
        import dynkern
        from dynkern.kernels import native

        return f"{dynkern.__version__} {native.cpu_isa()}"
    return version(_PACKAGES.get(name, name))


def _resident_bytes() -> int:
    """Anonymous memory of this process: mapped files come and go with the page cache."""
    with open("/proc/self/status", encoding="ascii") as status:
        for line in status:
            if line.startswith("RssAnon"):
                return int(line.split()[1]) << 10
    return 0


def serve(kind: str, checkpoint: Path) -> None:
    """Load, say what was used of memory, then answer requests until stdin ends."""
    from dynkern.evaluation.load_meter import LoadMeter

    # libraries talk on stdout; answers go out on a descriptor of their own
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(**content: Any) -> None:
        print(json.dumps(content), file=answers, flush=True)

    name, _, dtype = kind.partition("-")
    try:
        if name == "dynkern":
            import dynkern  # noqa: F401  (its own weight is not the model's)
        before = _resident_bytes()
        run = _LOADERS[name](checkpoint, dtype)
        held = _resident_bytes() - before
        answer(ready=True, loaded_bytes=held, version=_version(name))
    except ModuleNotFoundError as error:
        answer(ready=False, reason=f"{error.name} is not installed ({EXTRA})")
        return
    except Exception as error:
        answer(ready=False, reason=f"{type(error).__name__}: {error}".splitlines()[0])
        return
    for line in sys.stdin:
        wanted = json.loads(line)
        prompts = [
            [2, *(random.randrange(4, wanted["vocabulary"]) for _ in range(wanted["prompt"] - 1))]
            for _ in range(wanted["batch"])
        ]
        with LoadMeter() as meter:
            started = time.perf_counter()
            run(prompts, wanted["new_tokens"])
            seconds = time.perf_counter() - started
        answer(seconds=seconds, foreign=meter.load.worst, metered=meter.load.metered)


class Engine:
    """One worker process. python: the interpreter that has the engine installed."""

    def __init__(self, kind: str, checkpoint: Path, python: str = sys.executable) -> None:
        self.kind = kind
        root = Path(__file__).resolve().parent.parent
        paths = [str(root), os.environ.get("PYTHONPATH", "")]
        environment = {
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        }
        self._process = subprocess.Popen(
            [python, "-m", "bench.peers", kind, str(checkpoint)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        first = self._read()
        self.obstacle: str | None = None if first["ready"] else first["reason"]
        self.loaded_bytes = int(first.get("loaded_bytes", 0))
        self.version = str(first.get("version", ""))

    def run(self, batch: int, prompt: int, new_tokens: int, vocabulary: int) -> dict[str, Any]:
        """seconds of the whole loop, foreign load in cores, whether it was metered."""
        wanted = {"batch": batch, "prompt": prompt, "new_tokens": new_tokens}
        self._process.stdin.write(json.dumps({**wanted, "vocabulary": vocabulary}) + "\n")
        self._process.stdin.flush()
        return self._read()

    def close(self) -> None:
        """End the process."""
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()

    def _read(self) -> dict[str, Any]:
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            return {"ready": False, "reason": f"{self.kind} ended with exit code {code}"}
        return json.loads(line)


if __name__ == "__main__":
    serve(sys.argv[1], Path(sys.argv[2]))
