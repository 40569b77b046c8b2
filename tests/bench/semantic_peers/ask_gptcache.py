"""GPTCache as its `init_similar_cache` sets it up: SQLite, FAISS, distance as the evaluation, the whole prompt as what is embedded."""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from gptcache import Cache, Config
from gptcache.adapter.api import get, put
from gptcache.manager import CacheBase, VectorBase, get_data_manager
from gptcache.processor.post import temperature_softmax
from gptcache.processor.pre import get_prompt
from gptcache.similarity_evaluation import SearchDistanceEvaluation

from tests.bench.semantic_peers.task import Vectors, answer_task


def ask_gptcache(vectors: Vectors, answers: Mapping[str, str], asked: Sequence[str], **setting: float) -> list[str | None]:
    """Setting: similarity_threshold, a share of the evaluation's range."""

    def embed(text: str, **_: object) -> npt.NDArray[np.float32]:
        return np.asarray(vectors[text], dtype=np.float32)

    # It writes its index once more when the process ends: whoever starts this removes the working directory.
    folder = Path(tempfile.mkdtemp(dir=Path.cwd()))
    # It says on stdout what it downloads and installs.
    with contextlib.redirect_stdout(sys.stderr):
        cache = Cache()
        cache.init(
            pre_embedding_func=get_prompt,
            embedding_func=embed,
            data_manager=get_data_manager(
                CacheBase("sqlite", sql_url=f"sqlite:///{folder}/cache.db"),
                VectorBase("faiss", dimension=len(next(iter(vectors.values()))), index_path=str(folder / "faiss.index")),
            ),
            similarity_evaluation=SearchDistanceEvaluation(),
            post_process_messages_func=temperature_softmax,
            config=Config(**setting),
        )
        for text, answer in answers.items():
            put(text, answer, cache_obj=cache)
        return [get(text, cache_obj=cache) for text in asked]


if __name__ == "__main__":
    answer_task("gptcache", ask_gptcache)
