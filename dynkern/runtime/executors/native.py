"""The native executor: csrc/cpu runs whole passes, many of them in one call."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from itertools import accumulate

import torch
from torch import Tensor

from dynkern.controller_file import GateStack
from dynkern.kernels import native, native_engine
from dynkern.models.packed import PackedWeights
from dynkern.models.spec import DecoderSpec
from dynkern.routes import TokenProgram, check_choice
from dynkern.runtime.batch import DecodeBatch, Passes, PassLimits, PassResult, PrefillResult
from dynkern.runtime.cells import cells
from dynkern.runtime.executors.gates import check_gates
from dynkern.runtime.executors.kv_fill import DEFERRED_TOKENS
from dynkern.runtime.kv_cache import KVCache
from dynkern.runtime.sampling import TokenPicker

# passes in one call at most: what they report lies in buffers of this length
_MOST_PASSES = 256


class NativeHead:
    """The packed LM head (see sampling.Head); hidden states and logits are float32."""

    def __init__(self, weights: PackedWeights) -> None:
        self.weights = weights
        self._head = native.cpu_library().dynkern_cpu_head

    def argmax(self, hidden: Tensor, n: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Without a [C, V] result."""
        count = hidden.shape[0]
        token = torch.empty(count, dtype=torch.int64)
        top, margin, log_sum = (torch.empty(count) for _ in range(3))
        self._run(hidden, n, None, token, top, margin, log_sum)
        return token, top, margin, log_sum

    def logits(self, hidden: Tensor, n: Tensor | None) -> Tensor:
        """[C, V] in float32."""
        logits = torch.empty(hidden.shape[0], self.weights.spec.vocab_size)
        self._run(hidden, n, logits, None, None, None, None)
        return logits

    def losses(self, hidden: Tensor, wanted: Tensor) -> Tensor:
        """Cross entropy [C] of the tokens wanted [C], without torch's threads (copy_kv.cpp)."""
        count = hidden.shape[0]
        logits = torch.empty(count, self.weights.spec.vocab_size)
        token = torch.empty(count, dtype=torch.int64)
        top, margin, log_sum = (torch.empty(count) for _ in range(3))
        self._run(hidden, None, logits, token, top, margin, log_sum)
        return log_sum - logits.gather(1, wanted[:, None])[:, 0]

    def _run(self, hidden: Tensor, n: Tensor | None, *outputs: Tensor | None) -> None:
        hidden = hidden.to(torch.float32).contiguous()
        rows = hidden.shape[0] if n is None else int(n)
        result = self._head(
            ctypes.byref(self.weights.model),
            hidden.data_ptr(),
            rows,
            torch.get_num_threads(),
            *(None if tensor is None else tensor.data_ptr() for tensor in outputs),
        )
        native_engine.check_memory(result, f"LM head over {rows} rows")


class NativeExecutor:
    """Runs prefill and decode passes of one packed model on the CPU.

    Hidden states are float32 in every format; keys and values have the weights' dtype. MemoryError
    where a pass finds no memory: a batch stands in the middle of it then, all else goes on.
    """

    name = "native"

    def __init__(self, spec: DecoderSpec, weights: PackedWeights) -> None:
        self.spec, self.weights = spec, weights
        self.device, self.dtype = weights.device, weights.dtype
        self.head = NativeHead(weights)
        self._library = native.cpu_library()
        self._model = ctypes.byref(weights.model)

    @property
    def isa(self) -> str:
        """Instruction set level of the kernels."""
        return native.cpu_isa()

    def prefill(
        self, prompts: Sequence[Sequence[int]], routes: Tensor | None = None
    ) -> PrefillResult:
        """One pass over packed prompts. routes: bool [R, L] on the host, or None for full depth.

        Under routes, a row's tokens run only its layers, and only their K/V is written.
        """
        spec, rows = self.spec, len(prompts)
        bounds = [0, *accumulate(len(prompt) for prompt in prompts)]
        ids = torch.tensor([i for prompt in prompts for i in prompt], dtype=torch.int64)
        edges = torch.tensor(bounds, dtype=torch.int64)
        shape = (spec.num_layers, len(ids), spec.num_heads, spec.head_size)
        keys, values = (torch.empty(shape, dtype=self.dtype) for _ in range(2))
        hidden = torch.empty(rows, spec.embed_size)
        kept, layer_rows = None, [rows] * spec.num_layers
        if routes is not None:
            kept, layer_rows = routes.to(torch.uint8).contiguous(), routes.sum(dim=0).tolist()
        arguments = native_engine.Prefill(
            torch.get_num_threads(),
            rows,
            ids.data_ptr(),
            edges.data_ptr(),
            None if kept is None else kept.data_ptr(),
            keys.data_ptr(),
            values.data_ptr(),
            hidden.data_ptr(),
        )
        result = self._library.dynkern_cpu_prefill(self._model, ctypes.byref(arguments))
        native_engine.check_memory(result, f"prefill of {len(ids)} tokens in {rows} prompts")
        return PrefillResult(hidden, keys, values, bounds, layer_rows)

    def decode(self, batch: DecodeBatch, cache: KVCache, picker: TokenPicker) -> PassResult:
        """One routed pass for the live rows of `batch`; appends to `cache` and picks tokens.

        The batch is not advanced. A picker of its own kind picks here, from the hidden states.
        """
        state = self._state_of(batch, cache, picker)
        state.single_pass()
        self._run(self._library.dynkern_cpu_decode, state)
        result = state.results(1)[0]
        if not picker.picks_by_params:
            result.token = _picked(batch, state.hidden, picker)
        return result

    def advance(
        self, batch: DecodeBatch, cache: KVCache, picker: TokenPicker, limits: PassLimits
    ) -> Sequence[PassResult]:
        """Passes up to the limits, or until no row is live; the batch is advanced.

        Rows that end are no longer alive in it, so that later passes run without them.
        """
        if not picker.picks_by_params:
            if not batch.alive.any():
                return []
            result = self.decode(batch, cache, picker)
            picker.note(batch.alive, batch.position, result.token)
            batch.advance(result.token)
            return [result]
        state = self._state_of(batch, cache, picker)
        state.many_passes(limits)
        passes = self._run(self._library.dynkern_cpu_decode, state)
        batch.rows_changed()
        return state.results(passes)

    def fixed_part(
        self, batch: DecodeBatch, cache: KVCache, picker: TokenPicker, count: int = 1
    ) -> Tensor:
        """Embedding, final norm and LM head of the live rows: t_fixed of the cost model."""
        state = self._state_of(batch, cache, picker)
        state.single_pass()
        for _ in range(count):
            self._run(self._library.dynkern_cpu_fixed, state)
        return state.results(1)[0].token

    def fill_part(self, batch: DecodeBatch, cache: KVCache) -> None:
        """K/V projections of the live rows at every layer, as kv_fill "project" does them."""
        state = self._state_of(batch, cache, None)
        state.single_pass()
        self._run(self._library.dynkern_cpu_fill, state)

    def _run(self, function: Callable[..., int], state: _DecodeState) -> int:
        result = function(self._model, state.pointer)
        return native_engine.check_memory(result, f"decode pass over {state.batch.n_slots} slots")

    def _state_of(
        self, batch: DecodeBatch, cache: KVCache, picker: TokenPicker | None
    ) -> _DecodeState:
        # kept with the batch: batches of two streams may take turns
        if batch.fill is None or batch.fill.cache is not cache:
            batch.fill = _DecodeState(self.spec, batch, cache)
        if picker is not None and picker is not batch.fill.picker:
            batch.fill.pick_with(picker)
        return batch.fill


def _picked(batch: DecodeBatch, hidden: Tensor, picker: TokenPicker) -> Tensor:
    """Tokens [B] that `picker` picks for the live rows of hidden [B, E]."""
    rows, n = batch.alive_rows()
    index = rows.long()
    token = picker.pick(
        hidden.index_select(0, index),
        n,
        rows,
        batch.request.index_select(0, index),
        batch.step.index_select(0, index),
    )
    return torch.zeros_like(batch.token).scatter_(0, index, token)


class _DecodeState:
    """The Decode struct of one batch, and all that it points to.

    Built once; a call sets only what differs from the last one.
    """

    def __init__(self, spec: DecoderSpec, batch: DecodeBatch, cache: KVCache) -> None:
        self.spec, self.batch, self.cache = spec, batch, cache
        self.picker: TokenPicker | None = None
        self.hidden: Tensor | None = None
        self._held: dict[str, Tensor] = {}
        self._waiting_count: Tensor | None = None
        self._eos_of: list[frozenset[int]] | None = None
        self.arguments = native_engine.Decode(
            n_slots=batch.n_slots,
            n_lanes=cache.n_lanes,
            capacity=cache.capacity,
            slot_stride=cache.n_slots,
            seed=batch.seed,
            top_p=1.0,
            repetition_penalty=1.0,
        )
        self.pointer = ctypes.byref(self.arguments)
        self._point(token=batch.token, position=batch.position, step=batch.step)
        self._point(request=batch.request, alive=batch.alive, route=batch.route)
        self._point(k=cache.k, v=cache.v, lane=cache.lane, length=cache.length)
        remaining = torch.zeros(batch.n_slots, dtype=torch.int64)
        self._point(remaining=remaining)
        self._remaining = cells(remaining)
        self._end_with([frozenset()] * batch.n_slots)
        self._fill_by(batch.kv_fill if batch.program is not None else "none")
        if batch.program is not None:
            self._lower(batch.program)
        self._room = 0
        self._make_room(1)

    def _point(self, **fields: Tensor) -> None:
        """Hand tensors over by address, and keep them."""
        for name, tensor in fields.items():
            setattr(self.arguments, name, tensor.data_ptr())
            self._held[name] = tensor

    def _fill_by(self, kv_fill: str) -> None:
        check_choice("kv_fill", kv_fill, tuple(native_engine.KV_FILLS))
        self.arguments.kv_fill = native_engine.KV_FILLS[kv_fill]
        if kv_fill == "deferred":
            layers, slots = self.spec.num_layers, self.batch.n_slots
            self.arguments.waiting_tokens = DEFERRED_TOKENS
            self._waiting_count = torch.zeros(layers, slots, dtype=torch.int64)
            self._point(
                waiting=torch.empty(layers, slots, DEFERRED_TOKENS, self.spec.hidden_size),
                waiting_count=self._waiting_count,
            )

    def forget(self, slot: int) -> None:
        """Another row takes the slot: drop what waits there for the one before."""
        if self._waiting_count is not None:
            self._waiting_count[:, slot] = 0

    def _lower(self, program: TokenProgram) -> None:
        a = self.arguments
        a.program = native_engine.PROGRAMS[program.kind]
        a.budget, a.force_first = program.budget, program.force_first
        a.measure = native_engine.MEASURES[program.measure]
        a.threshold = _float32(program.threshold)
        if program.kind == "bernoulli":
            self._point(probability=torch.tensor(program.probability, dtype=torch.float32))
        elif program.kind == "confidence":
            exits = torch.zeros(self.spec.num_layers, dtype=torch.bool)
            exits[list(program.exit_layers)] = True
            self._point(exits=exits)
        elif program.kind == "controller":
            self._lower_gates(program.gates)

    def _lower_gates(self, stack: GateStack) -> None:
        check_gates(stack, self.spec.hidden_size, self.spec.embed_size)
        a, depth = self.arguments, stack.info.depth
        weights, biases = stack.cast(torch.device("cpu"), torch.float32)
        table = (native_engine.Gate * (self.spec.num_layers * depth))()
        for layer, (matrices, offsets) in enumerate(zip(weights, biases, strict=True)):
            for i, (weight, bias) in enumerate(zip(matrices, offsets, strict=True)):
                place = table[layer * depth + i]
                place.weight, place.bias = weight.data_ptr(), bias.data_ptr()
        # the stack keeps the tensors, and the batch's program the stack
        self._gates = table
        a.gates, a.gate_depth = ctypes.addressof(table), depth
        a.gate_width = stack.info.width
        a.gate_input = native_engine.GATE_INPUTS[stack.info.input]
        a.gate_sampled = int(stack.sampled)

    def pick_with(self, picker: TokenPicker) -> None:
        """Pick tokens by the picker's parameters, or hand out hidden states for it."""
        a, p, self.picker = self.arguments, picker.params, picker
        a.out_hidden, a.history = None, None
        if not picker.picks_by_params:
            a.pick = native_engine.PICK_HIDDEN
            self.hidden = torch.empty(self.batch.n_slots, self.spec.embed_size)
            self._point(out_hidden=self.hidden)
        elif picker.is_greedy:
            a.pick = native_engine.PICK_GREEDY
        else:
            a.pick = native_engine.PICK_SAMPLE
            a.temperature, a.top_p = _float32(p.temperature), _float32(p.top_p)
            a.top_k, a.repetition_penalty = p.top_k, _float32(p.repetition_penalty)
            if picker.history is not None:
                a.history_stride = picker.history.shape[1]
                self._point(history=picker.history)

    def _end_with(self, eos_ids: Sequence[frozenset[int]]) -> None:
        if eos_ids == self._eos_of:
            return
        self._eos_of = list(eos_ids)
        bounds = [0, *accumulate(len(ids) for ids in eos_ids)]
        flat = [i for ids in eos_ids for i in ids]
        self._eos = torch.tensor(bounds), torch.tensor(flat, dtype=torch.int64)
        self.arguments.eos_bounds, self.arguments.eos_ids = (t.data_ptr() for t in self._eos)

    def _make_room(self, passes: int) -> None:
        """Outputs for this many passes."""
        if passes <= self._room:
            return
        layers, slots = self.spec.num_layers, self.batch.n_slots
        self._room = passes
        token = torch.empty(passes, slots, dtype=torch.int64)
        ran = torch.empty(passes, layers, slots, dtype=torch.bool)
        filled = torch.empty(passes, layers, dtype=torch.int64)
        head_rows = torch.empty(passes, dtype=torch.int64)
        self._point(out_token=token, out_ran=ran, out_filled=filled, out_head_rows=head_rows)
        self._point(
            out_alive=torch.empty(passes, slots, dtype=torch.bool),
            out_seconds=torch.empty(passes, dtype=torch.float64),
        )
        self._outputs = tuple(map(cells, (token, ran, filled, head_rows)))

    def single_pass(self) -> None:
        """Set up one pass that advances nothing."""
        a = self.arguments
        a.n_threads, a.max_passes, a.advance = torch.get_num_threads(), 1, 0

    def many_passes(self, limits: PassLimits) -> None:
        """Set up passes that advance the batch."""
        passes = max(1, min(limits.max_passes, _MOST_PASSES))
        self._make_room(passes)
        self._end_with(limits.eos_ids)
        self._remaining[:] = limits.remaining
        a = self.arguments
        a.n_threads, a.max_passes = torch.get_num_threads(), passes
        a.advance = 2 if limits.until_end else 1
        a.max_seconds = limits.max_seconds

    def results(self, passes: int) -> Passes:
        """What the last call's passes reported, copied out of the buffers."""
        return Passes(*(part[:passes].copy() for part in self._outputs))


def _float32(number: float) -> float:
    """The float32 that a kernel compares with or divides by, as the reference does."""
    return ctypes.c_float(number).value
