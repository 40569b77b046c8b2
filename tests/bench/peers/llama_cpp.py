"""llama.cpp's programs, as `build.sh` has built them, and the same weights in its formats."""

from __future__ import annotations

import json
import re
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench.peers.contender import (
    CONTEXT_TOKENS,
    DECODE_SIZES,
    DECODE_STEPS,
    PREFILL_TOKENS,
    THREADS,
    Figures,
    ServedLoad,
    decode_column,
    prefill_column,
)
from tests.bench.peers.load import longest_request, measure_server
from tests.ports import free_port

PEERS = Path(__file__).parents[3] / ".peers"
_REQUIREMENTS = Path(__file__).parent / "requirements.txt"
# What is made of the source itself; the others are made of the first.
_UNPACKED = ("F32", "F16", "BF16")
FORMATS = (*_UNPACKED, "Q8_0", "Q4_0", "Q4_1", "Q4_K_M")
_READY_S = 60.0
_POLL_S = 0.05
# Each of its sequences has room of its own for so many tokens more than the longest request.
_SPARE_TOKENS = 32


@dataclass(frozen=True)
class LlamaFormat:
    """One format.

    Args:
        format: As llama-quantize calls it.
        weights: A GGUF file.
        vocabulary: How many ids the model has.
    """

    format: str
    weights: Path
    vocabulary: int
    maker: str = "llama.cpp"
    serves: bool = True

    def computed(self, seed: int) -> Figures:
        """See `Contender`; its programs draw prompts of their own. Of one request that decodes the better of its two programs' figures."""
        batched = self._batched()
        alone = self._bench(0, DECODE_STEPS, CONTEXT_TOKENS)
        figures = {prefill_column(): self._bench(PREFILL_TOKENS, 0, 0)}
        figures |= {decode_column(size): batched[size] for size in DECODE_SIZES}
        figures[decode_column(1)] = max(alone, batched[1])
        return figures

    def served(self, load: ServedLoad) -> Figures:
        """See `Contender`."""
        with self._serving(load.concurrency, longest_request(load, self.vocabulary)) as url:
            return measure_server(url, self.format, load, self.vocabulary)

    def answers(self, prompts: Sequence[Sequence[int]], num_tokens: int) -> list[list[int]]:
        """See `Contender`."""
        found = []
        with self._serving(1, max(len(prompt) for prompt in prompts) + num_tokens) as url:
            for prompt in prompts:
                asked = {"prompt": prompt, "n_predict": num_tokens, "temperature": 0, "ignore_eos": True, "return_tokens": True}
                found.append(list(_post(f"{url}/completion", asked)["tokens"]))
        return found

    def _bench(self, prefill: int, decode: int, depth: int) -> float:
        """Tokens per second of llama-bench, whose own warming up is left in."""
        command = [*_command("llama-bench", self.weights), "-p", str(prefill), "-n", str(decode), "-d", str(depth), "-r", "1", "-o", "json"]
        return read_bench(_output(command))

    def _batched(self) -> dict[int, float]:
        """Tokens per second that llama-batched-bench decodes, by requests."""
        tokens = max(DECODE_SIZES) * (CONTEXT_TOKENS + DECODE_STEPS)
        sizes = ["-npp", str(CONTEXT_TOKENS), "-ntg", str(DECODE_STEPS), "-npl", ",".join(map(str, DECODE_SIZES))]
        # -pps: the prompt is computed once, and each request gets a copy of its keys and values.
        command = [*_command("llama-batched-bench", self.weights), "--ctx-size", str(tokens), *sizes, "-pps", "--output-format", "jsonl"]
        return read_batched(_output(command))

    @contextmanager
    def _serving(self, concurrency: int, longest: int) -> Iterator[str]:
        """Its server with room for so many requests of that length; ended behind the block."""
        port = free_port()
        room = concurrency * (longest + _SPARE_TOKENS)
        command = [*_command("llama-server", self.weights), "--host", "127.0.0.1", "--port", str(port)]
        # Prompts are all different: it need not keep, and so copy, the state of those that are done.
        command += ["--parallel", str(concurrency), "--ctx-size", str(room), "--cache-ram", "0"]
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            url = f"http://127.0.0.1:{port}"
            _wait_ready(server, f"{url}/health")
            yield url
        finally:
            server.terminate()
            server.wait()


def prepare(folder: Path, formats: Sequence[str]) -> list[Path]:
    """The weights of a model folder with a GGUF file in some formats, made where they are not there yet.

    Raises:
        ValueError: The folder has no GGUF file.
    """
    source = next(iter(folder.glob("*.gguf")), None)
    if source is None:
        raise ValueError(f"{folder} has no GGUF file to make llama.cpp's formats of")
    made = PEERS / "weights" / folder.name
    made.mkdir(parents=True, exist_ok=True)
    for format_ in dict.fromkeys(["F32", *formats]):
        path = made / f"{format_}.gguf"
        if not path.exists():
            part = path.with_suffix(".part")
            given = source if format_ in _UNPACKED else made / "F32.gguf"
            _output([str(_program("llama-quantize")), "--allow-requantize", str(given), str(part), format_, str(THREADS)])
            part.replace(path)
    return [made / f"{format_}.gguf" for format_ in formats]


def version() -> dict[str, str]:
    """Package and commit."""
    text = _REQUIREMENTS.read_text()
    package, commit = re.search(r"^llama-cpp-python==\S+", text, re.MULTILINE), re.search(r"at commit (\w+)", text)
    assert package is not None and commit is not None, "the requirements name both"
    return {"package": package[0], "commit": commit[1]}


def read_bench(output: str) -> float:
    """Tokens per second of a run of llama-bench that measured one thing."""
    (measured,) = json.loads(output)
    return float(measured["avg_ts"])


def read_batched(output: str) -> dict[int, float]:
    """Tokens per second of decode by number of requests, of a run of llama-batched-bench."""
    lines = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    return {int(line["pl"]): float(line["speed_tg"]) for line in lines}


def _program(name: str) -> Path:
    return PEERS / version()["commit"] / "build" / "bin" / name


def _command(program: str, weights: Path) -> list[str]:
    return [str(_program(program)), "--model", str(weights), "--threads", str(THREADS)]


def _output(command: Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} has failed:\n{done.stderr[-2000:]}")
    return done.stdout


def _wait_ready(server: subprocess.Popen[bytes], url: str) -> None:
    end = time.monotonic() + _READY_S
    while time.monotonic() < end:
        if server.poll() is not None:
            raise RuntimeError(f"llama-server has ended with {server.returncode}")
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            # It does not listen yet, or loads: then it answers 503.
            time.sleep(_POLL_S)
    raise TimeoutError(f"llama-server is not ready after {_READY_S:g} s")


def _post(url: str, fields: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(url, json.dumps(fields).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as response:
        answer: dict[str, Any] = json.load(response)
    return answer
