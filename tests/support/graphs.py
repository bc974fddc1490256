"""The cuda_graph executor on a CPU: its graphs are lists of ops that are run again."""

from __future__ import annotations

from dynkern.llm import LLM
from dynkern.runtime.executors.cuda_graph import CudaGraphExecutor
from dynkern.runtime.executors.recorded_graphs import RecordedGraphs


def on_graphs(llm: LLM) -> CudaGraphExecutor:
    """Put the executor in the place of the eager one."""
    engine = llm.engine
    assert engine.executor.name == "eager"
    engine.executor = CudaGraphExecutor(engine.spec, engine.weights, RecordedGraphs(), True)
    return engine.executor
