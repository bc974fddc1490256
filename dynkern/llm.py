"""LLM: a checkpoint and its tokenizer in, texts under a policy out."""

from __future__ import annotations

import logging
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import torch

from dynkern._version import __version__
from dynkern.arguments import check_callable, check_flag, check_integer, check_number, shown
from dynkern.assets import DEFAULT_MODEL
from dynkern.kernels.invariance import is_batch_invariant
from dynkern.machine import device_name
from dynkern.models.checkpoint import Checkpoint, check_texts, read_config, resolve_model
from dynkern.models.opt import pack_for_cpu, pack_weights, spec_from_config
from dynkern.models.storage import DTYPES, choose_storage
from dynkern.policies import check_policy
from dynkern.policies import policy as make_policy
from dynkern.runtime.engine import Engine, RunOptions
from dynkern.runtime.request import (
    Completion,
    Policy,
    Request,
    RunResult,
    RunStats,
    SamplingParams,
)
from dynkern.runtime.text_stream import TextStream

logger = logging.getLogger("dynkern")
Prompt = str | Sequence[int]


def choose_device(device: str | torch.device | None) -> torch.device:
    """The device named, or the first GPU, or the CPU. ValueError where it cannot be used."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError):
        raise ValueError(f"device: got {shown(device)}, expected cpu, cuda or cuda:N") from None
    if chosen.type not in ("cpu", "cuda"):
        raise ValueError(f"device: got {device!r}, expected cpu, cuda or cuda:N")
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device: got {device!r}, but torch sees no GPU here")
    return chosen


class LLM:
    """An OPT checkpoint ready to generate under any policy.

    model: directory or hub id; "default" is the bundled one. dtype: of the weights; "auto",
    "float32", "bfloat16", "float16", or "int8" (CPU engine only). backend: "auto", or one that
    everything must run on; on a CPU, "auto" takes the CPU engine where it is there, "cpu" demands
    it, "reference" leaves it out. device: None picks a GPU if there is one. tokenizer: a
    transformers tokenizer; by default the checkpoint's own, None if it has none. batch_invariant:
    a row's result is bit for bit what it would be alone, prefill included (the CPU engine's always
    is); None leaves it to DYNKERN_BATCH_INVARIANT. Raises FileNotFoundError or ValueError, one
    line, on a checkpoint, or a combination, that cannot be used.
    """

    def __init__(
        self,
        model: str | Path = DEFAULT_MODEL,
        dtype: str = "auto",
        backend: str = "auto",
        device: str | torch.device | None = None,
        tokenizer: Any = None,
        batch_invariant: bool | None = None,
    ) -> None:
        self.device = choose_device(device)
        if tokenizer is not None and not (callable(tokenizer) and hasattr(tokenizer, "decode")):
            raise ValueError(f"tokenizer: got {shown(tokenizer)}, expected one of transformers")
        self.path = resolve_model(model)
        config = read_config(self.path)
        self.spec = spec_from_config(config)
        stored = config.get("dtype", config.get("torch_dtype"))
        if stored is not None and not isinstance(stored, str):
            raise ValueError(f"model: config.json's dtype is {shown(stored)}, expected a name")
        storage = choose_storage(dtype, stored, self.device, backend)
        self.dtype = DTYPES[storage.dtype]
        with Checkpoint(self.path) as tensors:
            if storage.packed:
                weights = pack_for_cpu(tensors, self.spec, storage.dtype)
            else:
                weights = pack_weights(tensors, self.spec, self.dtype, self.device)
        self.weight_bytes = weights.nbytes
        self.engine = Engine(self.spec, weights, backend, batch_invariant)
        self.engine.name = str(model)
        name, isa = self.engine.executor.name, self.engine.executor.isa
        logger.info("weights: %s, %s executor (%s): %s", storage.dtype, name, isa, storage.reason)
        self.backend = backend
        self.tokenizer = tokenizer if tokenizer is not None else _load_tokenizer(self.path)

    def describe(self) -> dict[str, str]:
        """What decides the numbers, for stamping results."""
        return {
            "dynkern": __version__,
            "torch": torch.__version__,
            "device": device_name(self.device),
            "dtype": str(self.dtype).removeprefix("torch."),
            "backend": self.backend,
            "executor": self.engine.executor.name,
            "isa": self.engine.executor.isa,
            "threads": str(torch.get_num_threads()),
            "batch_invariant": "yes" if self.batch_invariant else "no",
        }

    @property
    def batch_invariant(self) -> bool:
        """Whether a row's bits may not depend on its batch: on a CPU engine they never do."""
        own = self.engine.batch_invariant
        return is_batch_invariant() if own is None else own

    def encode(self, text: str) -> list[int]:
        """Token ids of a prompt: BOS once, then the text without further special tokens."""
        tokenizer = self._need_tokenizer()
        if not isinstance(text, str):
            raise ValueError(f"text: got {shown(text)}, expected a text")
        try:
            text.encode()
        except UnicodeEncodeError:
            # tokenizers read UTF-8, in which half of a surrogate pair cannot be said
            raise ValueError(
                f"prompt: got half a surrogate pair in {shown(text)}, expected text"
            ) from None
        ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
        bos = self.spec.bos_token_id
        return ids if ids[:1] == [bos] else [bos, *ids]

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text up to the first EOS, special tokens dropped."""
        tokenizer, eos = self._need_tokenizer(), self.spec.eos_token_id
        last = self.spec.vocab_size - 1
        try:
            ids = [check_integer("token_ids", i, 0, last) for i in token_ids]
        except TypeError:
            raise ValueError(f"token_ids: got {shown(token_ids)}, expected token ids") from None
        ids = ids[: ids.index(eos)] if eos in ids else ids
        return tokenizer.decode(ids, skip_special_tokens=True)

    def run(
        self,
        prompts: Sequence[Prompt],
        policy: str | Policy | Sequence[str | Policy] = "full",
        *,
        max_new_tokens: int | Sequence[int] = 64,
        batch_size: int = 8,
        prefill: str = "full",
        kv_fill: str = "project",
        seed: int = 0,
        force_length: bool = False,
        sampling: SamplingParams | Sequence[SamplingParams] | None = None,
        request_ids: Sequence[int] | None = None,
        schedule: str = "auto",
        deadlines: Sequence[float | None] | None = None,
        on_token: Callable[[int, int], None] | None = None,
    ) -> RunResult:
        """Generate for every prompt; completions in order, and what the run took.

        prompts: texts, or lists of token ids (BOS included, as they are). policy, max_new_tokens,
        sampling: one for all, or one for each prompt. batch_size: rows at a time; one that ends
        makes room for the next. prefill: "full" or "routed"; kv_fill: "project", "copy",
        "deferred" or "mask". force_length: EOS ignored. request_ids: counters of the randomness,
        by default 0, 1, …. schedule: "fifo", "cohort" (like routes together) or "auto", by cost.
        deadlines: any numbers, the earliest are served first. on_token(request_id, token_id):
        called as tokens are read.
        Raises ValueError, one line, before anything runs.
        """
        options = RunOptions(batch_size, prefill, kv_fill, seed, schedule=schedule)
        check_callable("on_token", on_token, "a function of request id and token id,")
        requests = self._requests(
            prompts, policy, max_new_tokens, force_length, sampling, request_ids, deadlines
        )
        result = self.engine.run(requests, options, on_token)
        if self.tokenizer is not None:
            for completion in result.completions:
                completion.text = self.decode(completion.token_ids)
        return result

    def generate(
        self, prompts: Sequence[Prompt], policy: Any = "full", **options: Any
    ) -> list[Completion]:
        """`run` without the timing: one Completion for each prompt, in order."""
        return self.run(prompts, policy, **options).completions

    def stream(
        self,
        prompt: Prompt,
        policy: str | Policy = "full",
        *,
        max_new_tokens: int = 64,
        prefill: str = "full",
        kv_fill: str = "project",
        seed: int = 0,
        sampling: SamplingParams | None = None,
        on_done: Callable[[Completion, RunStats], None] | None = None,
    ) -> Iterator[str]:
        """Pieces of text as they come; on_done(completion, stats) once the row has ended."""
        check_callable("on_done", on_done, "a function of completion and stats,")
        with self.stream_many(
            [prompt],
            policy,
            max_new_tokens=max_new_tokens,
            batch_size=1,
            prefill=prefill,
            kv_fill=kv_fill,
            seed=seed,
            sampling=sampling,
        ) as stream:
            for event in stream:
                if event.text:
                    yield event.text
                if event.completion is not None and on_done is not None:
                    on_done(event.completion, stream.stats)

    def stream_many(
        self,
        prompts: Sequence[Prompt],
        policy: str | Policy | Sequence[str | Policy] = "full",
        *,
        max_new_tokens: int | Sequence[int] = 64,
        batch_size: int = 8,
        prefill: str = "full",
        kv_fill: str = "project",
        seed: int = 0,
        sampling: SamplingParams | Sequence[SamplingParams] | None = None,
        request_ids: Sequence[int] | None = None,
        schedule: str = "auto",
        deadlines: Sequence[float | None] | None = None,
    ) -> TextStream:
        """Pieces of all texts as they come, as events with a request id; `cancel(id)` ends one.

        Arguments as of `run`. Use it in a `with` where it may be left early.
        """
        tokenizer = self._need_tokenizer()
        options = RunOptions(batch_size, prefill, kv_fill, seed, schedule=schedule)
        requests = self._requests(
            prompts, policy, max_new_tokens, False, sampling, request_ids, deadlines
        )
        session = self.engine.session(options, RunStats(), expected=len(requests))
        return TextStream(session, requests, tokenizer._tokenizer, self.decode)

    def _need_tokenizer(self) -> Any:
        if self.tokenizer is None:
            raise ValueError(
                f"prompts: {self.path} has no tokenizer, expected token ids or tokenizer=…"
            )
        return self.tokenizer

    def _requests(
        self,
        prompts: Sequence[Prompt],
        policy: Any,
        max_new_tokens: int | Sequence[int],
        force_length: bool,
        sampling: SamplingParams | Sequence[SamplingParams] | None,
        request_ids: Sequence[int] | None,
        deadlines: Sequence[float | None] | None,
    ) -> list[Request]:
        if isinstance(prompts, str):
            raise ValueError("prompts: got one string, expected a list of prompts")
        if isinstance(prompts, Mapping) or not hasattr(prompts, "__len__"):
            raise ValueError(f"prompts: got {shown(prompts)}, expected a list of prompts")
        check_flag("force_length", force_length)
        count = len(prompts)
        columns = {
            "request_ids": _request_ids(request_ids, count),
            "max_new_tokens": max_new_tokens,
            "sampling": SamplingParams() if sampling is None else sampling,
            "deadlines": deadlines,
        }
        ids, limits, samplings, dues = (
            _one_each(name, given, count) for name, given in columns.items()
        )
        policies = self._policies(policy, count)
        return [
            Request(
                id=ids[i],
                prompt_ids=tuple(self._prompt_ids(prompt)),
                policy=policies[i],
                max_new_tokens=limits[i],
                eos_token_ids=frozenset([self.spec.eos_token_id]),
                force_length=force_length,
                sampling=samplings[i],
                deadline=dues[i],
            )
            for i, prompt in enumerate(prompts)
        ]

    def _policies(self, policy: Any, count: int) -> list[Policy]:
        if isinstance(policy, list | tuple):
            if len(policy) != count:
                raise ValueError(
                    f"policy: got {len(policy)} for {count} prompts, expected one for each"
                )
            made = {id(entry): make_policy(entry) for entry in policy}
            policies = [made[id(entry)] for entry in policy]
        else:
            policies = [make_policy(policy)] * count
        for chosen in {id(p): p for p in policies}.values():
            check_policy(chosen, self.spec.num_layers)
        return policies

    def _prompt_ids(self, prompt: Prompt) -> list[int]:
        if not isinstance(prompt, str):
            try:
                if isinstance(prompt, bytes | Mapping | Set) or bool in map(type, prompt):
                    raise TypeError
                return [operator.index(i) for i in prompt]
            except TypeError:
                kind = type(prompt).__name__
                raise ValueError(f"prompt: got {kind}, expected text or token ids") from None
        if not prompt.strip():
            raise ValueError("prompt: empty, expected some text")
        return self.encode(prompt)


def _one_each(name: str, given: Any, count: int) -> Sequence[Any]:
    """One value for each prompt, of a value for all or of a sequence. ValueError, one line, for a
    value that cannot be one, even where there is no prompt.
    """
    is_many = isinstance(given, Sequence) and not isinstance(given, str | bytes)
    if is_many and len(given) != count:
        raise ValueError(f"{name}: got {len(given)} for {count} prompts, expected one for each")
    for value in given if is_many else [given]:
        if name == "max_new_tokens":
            check_integer(name, value, 1)
        elif name == "sampling" and not isinstance(value, SamplingParams):
            raise ValueError(f"sampling: got {shown(value)}, expected SamplingParams or None")
        elif name == "deadlines" and value is not None:
            check_number(name, value, lambda x: True, "finite numbers or None")
    return given if is_many else [given] * count


def _request_ids(given: Sequence[int] | None, count: int) -> list[int]:
    if given is None:
        return list(range(count))
    try:
        return [check_integer("request_ids", i, 0, (1 << 63) - 1, "integers from 0") for i in given]
    except TypeError:
        raise ValueError(f"request_ids: got {shown(given)}, expected integers from 0") from None


def _load_tokenizer(directory: Path) -> Any:
    from transformers import AutoTokenizer

    names = ("tokenizer.json", "vocab.json", "tokenizer_config.json")
    if not any((directory / name).is_file() for name in names):
        return None
    check_texts(directory)
    try:
        return AutoTokenizer.from_pretrained(directory)
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"model: the tokenizer of {directory} cannot be read ({reason}), expected one of "
            "transformers"
        ) from None
