"""Whether an entry's answer was right for a question, told afterwards: from the model's own answer, and by a judge where there is one."""

from __future__ import annotations

from prompt_cache.embedding.embedder import Embedder, EmbeddingFailed
from prompt_cache.semantic.judge import Judge
from prompt_cache.semantic.normalise import normalise
from prompt_cache.semantic.same_answer import is_same_answer

# What a judge is asked about, beside the guards: answers that differ.
ANSWERS = "answers"


class Comparer:
    """Compares, and counts what it finds.

    Args:
        embedder: Of answers.
        judge: Is asked about what the rules cannot tell; None = nobody is.

    Attributes:
        comparisons: Answers that were compared, by result.
        judged: Judgements, by what was judged, answers that differ or what a guard refused, and by what was said.
    """

    def __init__(self, embedder: Embedder, judge: Judge | None) -> None:
        self._embedder = embedder
        self.judge = judge
        self.comparisons = {"same": 0, "different": 0}
        self.judged: dict[tuple[str, str], int] = {}

    async def is_same(self, asked: str, question: str, kept: str, made: str) -> bool:
        """Whether an entry's answer did for a question.

        Args:
            asked: The question.
            question: The entry's.
            kept: Its answer.
            made: The model's to the question that was asked.
        """
        cosine: float | None = None
        if kept != made:
            try:
                first, second = await self._embedder.embed([normalise(kept), normalise(made)])
            except EmbeddingFailed:
                first = second = None
            cosine = float(first @ second) if first is not None and second is not None else None
        # A model that is asked in other words answers in other words: that they differ says little of the question.
        is_same = is_same_answer(kept, made, cosine) or await self._judged(ANSWERS, asked, question) == "same"
        self.comparisons["same" if is_same else "different"] += 1
        return is_same

    async def check_refusal(self, guard: str, asked: str, question: str) -> None:
        """Counts whether a guard was right to refuse an entry."""
        await self._judged(guard, asked, question)

    async def close(self) -> None:
        """Lets go of the judge."""
        if self.judge is not None:
            await self.judge.close()

    async def _judged(self, subject: str, asked: str, question: str) -> str | None:
        if self.judge is None:
            return None
        judgement = await self.judge.compare(question, asked)
        self.judged[subject, judgement] = self.judged.get((subject, judgement), 0) + 1
        return judgement
