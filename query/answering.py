"""Answers to any number of queries under several measures, computed in blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gradstore.progress import progress
from indexer import measure_of
from query.blocks import Blocks, block_size, made_from
from query.engines import fitted
from query.searching import search
from query.true_influence import Sources, rerank

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from indexer import ExactEngine, SearchIndex
    from query.queries import Queries
    from query.question import Question
    from query.results.answer import Answer


class Answering:
    """Answers to a question, stored in blocks. A killed process loses at most one block.

    Args:
        question: the question.
        engines: one engine per measure.
        queries: the queries.
        folder: folder that holds the blocks until all are done.

    Attributes:
        blocks: the finished blocks.
    """

    def __init__(
        self,
        question: Question,
        engines: Sequence[SearchIndex | ExactEngine],
        queries: Queries,
        folder: Path,
    ) -> None:
        config, keep = question.config, question.keep
        left = question.store.samples if keep is None else len(keep)
        self._question, self._engines, self._queries = question, engines, queries
        self._most = min(left, max(config.k, config.rerank))
        self._sizes = [block_size(engine, self._most, queries.store.slots) for engine in engines]
        self._measures = [measure_of(name) for name in config.measures]
        origin = [
            made_from(engine, queries, name, keep=keep)
            for name, engine in zip(config.measures, engines, strict=True)
        ]
        how = {"k": config.k, "most": self._most, "rerank": config.rerank, "sizes": self._sizes}
        self.blocks = Blocks(folder, {"answers": origin, **how})
        self._seen: dict[int, Answer] = {}

    def run(self, shown: int) -> None:
        """Answer all missing blocks, and cache the answers to the first queries.

        Args:
            shown: number of queries that `first` will be called with.
        """
        missing = [
            (place, start)
            for place, size in enumerate(self._sizes)
            for start in range(0, len(self._queries), size)
            if not self.blocks.has(place, start)
        ]
        sizes, count = self._sizes, len(self._queries)
        total = sum(min(sizes[place], count - start) for place, start in missing)
        with progress(total, "answering", "queries") as bar:
            for place, start in missing:
                part = self._queries.part(start, start + sizes[place])
                answer = self._answered(place, part)
                if start == 0 and len(part) >= min(shown, count):
                    self._seen[place] = answer.first(shown, self._question.config.k)
                self.blocks.write(place, start, answer)
                bar.update(len(part))

    def first(self, queries: int, k: int) -> list[Answer]:
        """Answers to the first queries under each measure, with at most `k` samples per side."""
        return [
            (
                self._seen[place]
                if place in self._seen
                else self._answered(place, self._queries.part(0, queries))
            ).first(queries, k)
            for place in range(len(self._measures))
        ]

    def _answered(self, place: int, part: Queries) -> Answer:
        config, engine = self._question.config, self._engines[place]
        # Fitted on first use and only once, because a kernel takes a pass over the store.
        self._measures[place] = fitted(self._measures[place], engine.store)
        found = search(
            engine, part, self._most, measure=self._measures[place], keep=self._question.keep
        )
        if not config.rerank:
            return found
        return rerank(
            found,
            engine.features,
            config.k,
            Sources(checkpoints=config.checkpoints),
            batch_size=config.batch_size,
            memory=config.memory,
            device=config.device,
        )
