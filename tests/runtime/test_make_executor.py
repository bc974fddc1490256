"""Which executor runs a model's passes: by its weights, and by name."""

from __future__ import annotations

import pytest
import torch

from dynkern.llm import LLM
from dynkern.runtime.executors import cuda_graph, make_executor
from support.errors import one_line_error
from support.opt import save_opt


@pytest.fixture
def llm(tmp_path) -> LLM:
    save_opt(tmp_path)
    return LLM(tmp_path, backend="reference")


def test_the_executor_is_chosen_by_the_weights_and_by_name(monkeypatch, llm):
    spec, weights = llm.spec, llm.engine.weights
    assert make_executor(spec, weights).name == "eager"
    with one_line_error(ValueError, "^executor: got 'cuda_graph', expected auto or eager for"):
        make_executor(spec, weights, "cuda_graph")
    with one_line_error(ValueError, "^executor: got 'fast', expected one of auto, eager, cuda"):
        make_executor(spec, weights, "fast")
    monkeypatch.setenv("DYNKERN_EXECUTOR", "native")
    with one_line_error(ValueError, "^DYNKERN_EXECUTOR: got 'native', expected auto or eager for"):
        make_executor(spec, weights)


def test_on_a_gpu_graphs_are_the_first_choice(monkeypatch, llm):
    class OnGpu:
        device, dtype = torch.device("cuda", 0), torch.bfloat16
        lm_head = llm.engine.weights.lm_head

    monkeypatch.setattr(cuda_graph, "CudaGraphs", lambda device: device)
    chosen = make_executor(llm.spec, OnGpu())
    assert chosen.name == "cuda_graph" and chosen.graphs == OnGpu.device and not chosen.demanded
    assert make_executor(llm.spec, OnGpu(), "cuda_graph").demanded
    assert make_executor(llm.spec, OnGpu(), "eager").name == "eager"
