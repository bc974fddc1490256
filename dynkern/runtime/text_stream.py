"""Texts of many prompts as they come: tokens of a session, turned into pieces of text."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from dynkern.runtime.request import Completion, Request, RunStats, TokenEvent
from dynkern.runtime.session import Session


@dataclass(frozen=True)
class TextEvent:
    """A piece of a request's text, "" where its token completes none.

    token_id: None where the row was cancelled. completion: set with the last event of a row.
    """

    request_id: int
    text: str
    token_id: int | None = None
    completion: Completion | None = None


class TextStream(Iterator[TextEvent]):
    """Iterates over the events of many prompts, pass by pass; ends when all of them have ended.

    Made by LLM.stream_many. A stream left early must be closed (or used in a `with`), or the
    engine keeps its cache until it is collected. stats: of the passes so far.
    """

    def __init__(
        self,
        session: Session,
        requests: Sequence[Request],
        tokenizer: Any,
        decode: Callable[[Sequence[int]], str],
    ) -> None:
        self._session = session
        self._tokenizer, self._decode = tokenizer, decode
        self._pending: deque[TokenEvent] = deque()
        self._texts: dict[int, tuple[Any, str]] = {}
        session.submit(requests)

    @property
    def stats(self) -> RunStats:
        """What the stream has taken so far."""
        return self._session.stats

    def __enter__(self) -> TextStream:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Drop what has not ended; the engine is free for others."""
        self._session.close()
        self._pending.clear()

    def cancel(self, request_id: int) -> bool:
        """End a request: its last event has what it generated. False where it has ended."""
        if self._session.closed or request_id not in self._session:
            return False
        completion = self._session.cancel(request_id)
        self._pending.append(TokenEvent(request_id, None, completion))
        return True

    def __next__(self) -> TextEvent:
        while not self._pending:
            if not self._session.busy:
                self.close()
                raise StopIteration
            self._pending.extend(self._session.step())
        return self._text_of(self._pending.popleft())

    def _text_of(self, event: TokenEvent) -> TextEvent:
        from tokenizers.decoders import DecodeStream

        request_id, completion = event.request_id, event.completion
        pieces, streamed = self._texts.pop(request_id, (None, ""))
        pieces = pieces or DecodeStream(skip_special_tokens=True)
        piece = ""
        if event.token_id is not None:
            piece = pieces.step(self._tokenizer, event.token_id) or ""
        if completion is None:
            self._texts[request_id] = pieces, streamed + piece
        else:
            completion.text = self._decode(completion.token_ids)
            # what a character that never came to its end has held back
            shown, text = streamed + piece, completion.text
            piece += text[len(shown) :] if text.startswith(shown) else ""
        return TextEvent(request_id, piece, event.token_id, completion)
