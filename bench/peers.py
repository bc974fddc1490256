"""Engines of bench.end_to_end, dynkern among them, each in a process of its own.

`python -m bench.peers KIND CHECKPOINT CONVERTED` loads one engine and answers JSON lines on stdin,
so that no engine's threads spin beside another's; a peer that reads a format of its own keeps it in
the folder CONVERTED. Every answer carries the load that others put on the machine meanwhile.
Prompts are given or fresh random ids; new_tokens are generated, or fewer where rows end at EOS.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench.peer_runs import EOS, How, Run, Watch, first_steps, padded

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
    "hf_static-float32",
    "hf_static-bfloat16",
)
# lengths of static caches, of which each is compiled for: multiples of so many entries
CACHE_STEP = 128
EXTRA = "pip install 'dynkern[bench]'"


def _dynkern(checkpoint: Path, dtype: str, converted: Path) -> Run:
    import dynkern
    from dynkern.policies import policy as make_policy
    from dynkern.runtime.engine import RunOptions
    from dynkern.runtime.request import Request, RunStats

    llm = dynkern.LLM(checkpoint, dtype=dtype)

    def run(prompts: list[list[int]], new_tokens: int, how: How) -> None:
        if how.watch is not None:
            watched(prompts, new_tokens, how)
            return
        llm.run(
            prompts,
            how.policy,
            max_new_tokens=new_tokens,
            batch_size=len(prompts),
            force_length=not how.natural,
        )

    def watched(prompts: list[list[int]], new_tokens: int, how: How) -> None:
        policy, eos = make_policy(how.policy), frozenset([EOS])
        requests = [
            Request(i, tuple(prompt), policy, new_tokens, eos, force_length=not how.natural)
            for i, prompt in enumerate(prompts)
        ]
        options = RunOptions(batch_size=len(prompts))
        with llm.engine.session(options, RunStats(), expected=len(prompts)) as session:
            session.submit(requests)
            while session.busy:
                events = session.step()
                at = how.watch.now()
                for event in events:
                    how.watch.note(event.request_id, at)

    return run


def _hf(checkpoint: Path, dtype: str, converted: Path) -> Run:
    return _transformers(checkpoint, dtype, lambda model, rows, entries: {})


def _hf_static(checkpoint: Path, dtype: str, converted: Path) -> Run:
    import torch
    from torch._dynamo import config as dynamo
    from torch._inductor import config as inductor
    from transformers import CompileConfig, StaticCache

    # packs the weights: 17 ms a token instead of 26, OPT-125m in bfloat16, 1 row. A cache becomes
    # part of the graph too, so that there is one for each size.
    inductor.freezing = True
    # eager passes must not pass for compiled ones
    dynamo.fail_on_recompile_limit_hit = True
    # generate compiles on a GPU of its own accord, on a CPU only when told; a graph for each number
    # of rows, as the one for all of them that the second number brings is slower
    compiled = CompileConfig(mode="default", dynamic=False)
    compiled._compile_all_devices = True
    caches: dict[tuple[int, int], StaticCache] = {}

    def options(model: torch.nn.Module, rows: int, entries: int) -> dict[str, Any]:
        size = rows, -(-entries // CACHE_STEP) * CACHE_STEP
        if size not in caches:
            caches[size] = StaticCache(config=model.config, max_cache_len=size[1])
        caches[size].reset()
        return {"past_key_values": caches[size], "compile_config": compiled}

    return _transformers(checkpoint, dtype, options)


def _transformers(checkpoint: Path, dtype: str, options: Callable[..., dict[str, Any]]) -> Run:
    """options: of generate, from the model, rows, and K/V entries of a row."""
    import torch
    from transformers import OPTForCausalLM, StoppingCriteria

    model = OPTForCausalLM.from_pretrained(checkpoint, dtype=getattr(torch, dtype)).eval()

    class Told(StoppingCriteria):
        """Called once a step's tokens are there."""

        def __init__(self, watch: Watch) -> None:
            self.watch = watch

        def __call__(self, input_ids: Any, scores: Any, **other: Any) -> Any:
            at = self.watch.now()
            for row in range(len(input_ids)):
                self.watch.note(row, at)
            return torch.zeros(len(input_ids), dtype=torch.bool)

    def run(prompts: list[list[int]], new_tokens: int, how: How) -> None:
        ids, mask = map(torch.tensor, padded(prompts))
        new = {"max_new_tokens": new_tokens, "do_sample": False}
        new |= options(model, len(prompts), ids.shape[1] + new_tokens)
        if not how.natural:
            new["min_new_tokens"] = new_tokens
        if how.watch is not None:
            new["stopping_criteria"] = [Told(how.watch)]
        out = model.generate(ids, attention_mask=mask, **new)[:, ids.shape[1] :].tolist()
        if how.watch is not None and how.natural:
            for row, tokens in enumerate(out):
                how.watch.cut(row, tokens.index(EOS) + 1 if EOS in tokens else len(tokens))

    return run


def _openvino(checkpoint: Path, dtype: str, converted: Path) -> Run:
    # optimum-intel imports torchvision where there is one, and fails beside a CPU build of torch
    sys.modules["torchvision"] = None  # type: ignore[assignment]
    os.environ.setdefault("OPENVINO_TELEMETRY", "0")
    import numpy as np
    import openvino
    import openvino_genai as genai

    int8 = dtype == "int8"
    converted /= "openvino-int8" if int8 else "openvino"
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

    def run(prompts: list[list[int]], new_tokens: int, how: How) -> None:
        ids, mask = (np.array(part, dtype=np.int64) for part in padded(prompts))
        config = genai.GenerationConfig()
        config.max_new_tokens = new_tokens
        if how.natural:
            config.set_eos_token_id(EOS)
        else:
            config.min_new_tokens, config.ignore_eos = new_tokens, True
        config.do_sample, config.apply_chat_template = False, False
        inputs = genai.TokenizedInputs(openvino.Tensor(ids), openvino.Tensor(mask))
        result = pipeline.generate(inputs, config)
        lengths = [len(row) for row in result.tokens]
        if not how.natural and lengths != [new_tokens] * len(prompts):
            raise RuntimeError(f"openvino generated {lengths[0]} tokens, not {new_tokens}")
        if how.watch is not None:
            first = result.perf_metrics.get_ttft().mean / 1e3
            raw = result.perf_metrics.raw_metrics
            steps = raw.m_new_token_times
            # a prefill of many tokens takes several steps, of which each lets some rows in
            begins = first_steps(raw.m_batch_sizes, lengths)
            for row, (begin, length) in enumerate(zip(begins, lengths, strict=True)):
                for step in steps[begin : begin + length]:
                    how.watch.note(row, first + (step - steps[0]) / 1e3)

    return run


def _ctranslate2(checkpoint: Path, dtype: str, converted: Path) -> Run:
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

    converted /= "ctranslate2"
    if not (converted / "model.bin").is_file():
        Converter(str(checkpoint)).convert(str(converted), force=True)
    threads = os.cpu_count() or 1
    compute = "int8_float32" if dtype == "int8" else dtype
    generator = ctranslate2.Generator(
        str(converted), device="cpu", compute_type=compute, intra_threads=threads
    )

    def run(prompts: list[list[int]], new_tokens: int, how: How) -> None:
        def told(step: Any) -> bool:
            how.watch.note(step.batch_id, how.watch.now())
            return False

        results = generator.generate_batch(
            [[f"t{i}" for i in prompt] for prompt in prompts],
            max_length=new_tokens,
            min_length=0 if how.natural else new_tokens,
            include_prompt_in_result=False,
            end_token=f"t{EOS}" if how.natural else [],
            callback=told if how.watch is not None else None,
        )
        lengths = [len(result.sequences_ids[0]) for result in results]
        if not how.natural and lengths != [new_tokens] * len(prompts):
            raise RuntimeError(f"ctranslate2 generated {lengths[0]} tokens, not {new_tokens}")

    return run


_LOADERS = {
    "dynkern": _dynkern,
    "hf": _hf,
    "hf_static": _hf_static,
    "openvino": _openvino,
    "ctranslate2": _ctranslate2,
}


_PACKAGES = {"hf": "transformers", "hf_static": "transformers", "openvino": "openvino-genai"}


def _version(name: str) -> str:
    """Version of an engine and, of dynkern's, the instruction set."""
    if name == "dynkern":  # a checkout need not be installed
        import dynkern
        from dynkern.kernels import native

        return f"{dynkern.__version__} {native.cpu_isa()}"
    return version(_PACKAGES.get(name, name))


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".strip().splitlines()[0]


def _resident_bytes() -> int:
    """Anonymous memory of this process: mapped files come and go with the page cache."""
    with open("/proc/self/status", encoding="ascii") as status:
        for line in status:
            if line.startswith("RssAnon"):
                return int(line.split()[1]) << 10
    return 0


def serve(kind: str, checkpoint: Path, converted: Path) -> None:
    """Load, say what was used of memory, then answer requests until stdin ends."""
    from dynkern.evaluation.load_meter import MIN_WINDOW, LoadMeter

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
        run = _LOADERS[name](checkpoint, dtype, converted)
        held = _resident_bytes() - before
        answer(ready=True, loaded_bytes=held, version=_version(name))
    except ModuleNotFoundError as error:
        answer(ready=False, reason=f"{error.name} is not installed ({EXTRA})")
        return
    except Exception as error:
        answer(ready=False, reason=_one_line(error))
        return
    for line in sys.stdin:
        wanted = json.loads(line)
        prompts = wanted.get("prompts") or [
            [2, *(random.randrange(4, wanted["vocabulary"]) for _ in range(wanted["prompt"] - 1))]
            for _ in range(wanted["batch"])
        ]
        try:
            with LoadMeter() as meter:
                watch = Watch(len(prompts))
                listens = watch if "prompts" in wanted else None
                how = How(listens, wanted.get("natural", False), wanted.get("policy", "full"))
                run(prompts, wanted["new_tokens"], how)
                seconds = watch.now()
                # a shorter window cannot be judged: one tick of /proc/stat is 10 ms
                time.sleep(max(0.0, MIN_WINDOW - meter.elapsed()))
        except Exception as error:
            answer(reason=_one_line(error))
            continue
        load = {"foreign": meter.load.worst, "metered": meter.load.metered}
        answer(seconds=seconds, times=watch.times if listens else None, **load)


if __name__ == "__main__":
    serve(sys.argv[1], *map(Path, sys.argv[2:]))
