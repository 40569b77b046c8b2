"""`triserve up` as a newcomer meets it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from compute_svc.kernels.native.settings import cache_folder
from tests.e2e.local_pipeline import Pipeline, wait_until
from tests.ports import free_port

ROOT = Path(__file__).parents[2]


def test_the_demo_streams_an_answer_and_leaves() -> None:
    ports = ["--port", str(free_port()), "--grpc-port", str(free_port())]
    command = [sys.executable, "-m", "gateway.cli", "up", *ports, "--model", "tiny", "--ask", "What is Triserve?", "--exit-after-ask"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "What is Triserve?" in done.stdout
    assert "Triserve" in done.stdout.split("What is Triserve?", 1)[1]


def test_a_real_model_answers_straight_from_its_gguf_file(tmp_path: Path) -> None:
    # Its converted files are made anew. The kernels are those that this machine has: a compiler takes half a minute.
    native = cache_folder()
    native.mkdir(mode=0o700, parents=True, exist_ok=True)
    (tmp_path / "triserve").mkdir()
    (tmp_path / "triserve" / native.name).symlink_to(native)
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    command = [sys.executable, "-m", "gateway.cli", "up", "--port", "0", "--max-model-len", "64"]
    question = "Why is the sky blue?"
    arguments = ["--ask", question, "--exit-after-ask"]
    done = subprocess.run([*command, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr[-4000:] + done.stdout[-4000:]
    assert "Serving SmolLM2-135M-Instruct" in done.stdout
    answer = done.stdout.split(question, 1)[1].split("gateway   |")[0]
    assert len(answer.split()) > 3
    (folder,) = (tmp_path / "triserve" / "gguf").iterdir()
    assert sum(path.lstat().st_size for path in folder.iterdir()) < 4_000_000, "weights are not copied"


def test_several_replicas_of_each_stage_serve_together() -> None:
    pipeline = Pipeline(["--tokenizers", "2", "--samplers", "2", "--computes", "2", "--dtype", "float32"])
    pipeline.start()
    try:
        assert [len(pipeline.parts(part)) for part in ("tokenizer_svc", "sampler_svc", "compute_svc")] == [2, 2, 2]
        chat = [sys.executable, "-m", "gateway.cli", "chat", "--url", pipeline.url, "--question", "What is Triserve?"]
        answers = [subprocess.run(chat, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True).stdout for _ in range(3)]
        assert "Triserve" in answers[0]
        assert len(set(answers)) == 1
        wait_until(pipeline.is_idle, "nothing is left over")
    finally:
        pipeline.stop()


def test_a_port_that_is_taken_is_named(pipeline: Pipeline) -> None:
    command = [sys.executable, "-m", "gateway.cli", "up", "--model", "tiny", "--port", str(pipeline.port), "--grpc-port", str(free_port())]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode != 0
    assert str(pipeline.port) in done.stderr + done.stdout


def test_a_model_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "gateway.cli", "up", "--port", str(free_port()), "--model", str(tmp_path / "nothing")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode != 0
    assert "nothing" in done.stderr + done.stdout


def test_the_first_lines_say_what_is_served_where_how_to_talk_to_it_and_how_to_stop(pipeline: Pipeline) -> None:
    serving, page, api, chat, stop, *_ = pipeline.log
    assert serving.startswith("Serving ")
    assert page.split() == ["page", pipeline.url]
    assert api.split()[:2] == ["API", f"{pipeline.url}/v1"] and f"127.0.0.1:{pipeline.grpc_port}" in api
    assert chat.endswith(f"triserve chat --url 127.0.0.1:{pipeline.port}")
    assert stop.split() == ["stop", "Ctrl-C"]


def test_a_question_without_the_key_that_is_asked_for_is_told_of_by_where_the_key_is_given(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"acme {'0' * 64}\n")
    ports = ["--port", str(free_port()), "--grpc-port", str(free_port())]
    command = [sys.executable, "-m", "gateway.cli", "up", *ports, "--model", "tiny", "--ask", "What is Triserve?", "--exit-after-ask"]
    environment = {**os.environ, "GATEWAY_API_KEYS_FILE": str(keys), "TRISERVE_API_KEY": ""}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 1
    assert done.stderr == f"triserve up: http://127.0.0.1:{ports[1]} asks for an API key: use the variable TRISERVE_API_KEY\n"


def test_what_a_part_refuses_is_told_once_and_by_the_option_that_set_it() -> None:
    command = [sys.executable, "-m", "gateway.cli", "up", "--port", str(free_port()), "--model", "tiny", "--max-model-len", "100000"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 1
    message = "--max-model-len is 100000, the limit is the model's own, 2048"
    assert done.stderr == f"triserve up: compute ended with status 1 before it was ready: {message}\n"
    assert "the limit is" not in done.stdout and "Traceback" not in done.stdout
