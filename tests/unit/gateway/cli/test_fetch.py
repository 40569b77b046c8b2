"""`triserve fetch` makes a folder what a manifest says, and says what it will not fetch."""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from gateway.cli import fetch
from gateway.cli.fetch import FetchFailed, prefix_of, read_manifest
from tests.fakes.file_server import FileServer, serving

FILES = {
    "config.json": b"{}",
    "tokenizer.json": b'{"model": {}}',
    "chat_template.jinja": b"{{ messages }}",
    "model.safetensors": b"weights" * 99,
}
SMALL = {"config.json", "tokenizer.json", "chat_template.jinja"}


def lines(files: Mapping[str, bytes]) -> str:
    return "".join(f"{hashlib.sha256(body).hexdigest()}  {name}\n" for name, body in files.items())


def manifest_of(folder: Path, text: str) -> Path:
    path = folder / "model.sha256"
    path.write_text(text)
    return path


def visible(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if not path.name.startswith(".")}


@pytest.fixture
def server() -> Iterator[FileServer]:
    with serving(FileServer({f"/m/{name}": body for name, body in FILES.items()})) as running:
        yield running


def call(server: FileServer, tmp_path: Path, *options: str, text: str | None = None) -> int:
    parser = argparse.ArgumentParser()
    fetch.add_arguments(parser)
    manifest = manifest_of(tmp_path, lines(FILES) if text is None else text)
    arguments = parser.parse_args([f"{server.url}m", str(tmp_path / "model"), "--manifest", str(manifest), *options])
    return fetch.run(arguments)


def test_a_folder_gets_every_file_of_the_manifest(server: FileServer, tmp_path: Path) -> None:
    assert call(server, tmp_path) == 0
    assert {name: (tmp_path / "model" / name).read_bytes() for name in visible(tmp_path / "model")} == FILES


def test_only_small_leaves_weights_out(server: FileServer, tmp_path: Path) -> None:
    assert call(server, tmp_path, "--only-small") == 0
    assert visible(tmp_path / "model") == SMALL
    assert "/m/model.safetensors" not in server.paths


def test_files_that_are_there_and_right_are_not_asked_for(server: FileServer, tmp_path: Path) -> None:
    call(server, tmp_path)
    server.asked.clear()
    (tmp_path / "model" / "config.json").write_bytes(b"changed")
    assert call(server, tmp_path) == 0
    assert server.paths == ["/m/config.json"]


def test_a_wrong_file_ends_it_with_status_1(server: FileServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server.files["/m/model.safetensors"] = b"other weights"
    assert call(server, tmp_path) == 1
    assert "model.safetensors has sha256" in capsys.readouterr().err
    assert visible(tmp_path / "model") == SMALL


def test_progress_and_what_is_never_fetched_are_said(server: FileServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    others = {"README.md": b"", "pytorch_model.bin": b"pickle", "modeling_x.py": b"code"}
    assert call(server, tmp_path, text=lines({**FILES, **others})) == 0
    said = capsys.readouterr().err
    assert "never fetched: README.md, pytorch_model.bin, modeling_x.py\n" in said
    assert "model.safetensors: 0.0 of 0.0 MB\n" in said
    assert "has 4 files, as the manifest says" in said


def test_a_folder_with_weights_of_another_revision_is_refused(
    server: FileServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model-00002-of-00002.safetensors").touch()
    assert call(server, tmp_path) == 1
    assert "a folder of its own" in capsys.readouterr().err
    assert server.asked == []


def test_a_second_process_waits_for_the_first_and_finds_its_files(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call(server, tmp_path)
    server.asked.clear()
    waits = threading.Event()
    monkeypatch.setattr(fetch, "_say", lambda line: waits.set() if "waits for another process" in line else None)
    with (tmp_path / "model" / ".fetch.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        second = threading.Thread(target=call, args=(server, tmp_path))
        second.start()
        assert waits.wait(60), "it did not wait"
        assert second.is_alive()
    second.join()
    assert server.asked == []


def test_a_token_is_read_from_a_file_and_sent(server: FileServer, tmp_path: Path) -> None:
    server.token = "hf_secret"
    (tmp_path / "token").write_text("hf_secret\n")
    assert call(server, tmp_path, "--token-file", str(tmp_path / "token")) == 0


@pytest.mark.parametrize("token", ["", "two words", "na\u00efve"])
def test_a_file_without_a_token_is_refused(server: FileServer, tmp_path: Path, token: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "token").write_text(token)
    assert call(server, tmp_path, "--token-file", str(tmp_path / "token")) == 1
    assert "no token that a header can carry" in capsys.readouterr().err
    assert server.asked == []


def test_a_token_is_not_sent_where_everybody_can_read_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "token").write_text("secret")
    assert call(FileServer(url="http://models.example.com/"), tmp_path, "--token-file", str(tmp_path / "token")) == 1
    assert "--token-file needs an https:// address" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("not a sum\n", "line 1 is not of the form"),
        (f"{'0' * 63}  config.json\n", "line 1 is not of the form"),
        (f"{'0' * 64}  ../config.json\n", "'../config.json' is no plain file name"),
        (f"{'0' * 64}  a/model.safetensors\n", "is no plain file name"),
        (f"{'0' * 64}  .hidden.json\n", "is no plain file name"),
        (lines(FILES) + f"{'0' * 64}  config.json\n", "line 5: config.json is there twice"),
        ("# nothing yet\n", "does not list config.json and tokenizer.json"),
        ("#" * (1 << 20) + "\n", "has more than 1048576 bytes"),
    ],
)
def test_a_manifest_that_is_none_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(FetchFailed, match=reason):
        read_manifest(manifest_of(tmp_path, text))


def test_lines_of_sha256sum_in_both_modes_comments_and_empty_lines_are_read(tmp_path: Path) -> None:
    binary = lines(FILES).replace("  ", " *").upper().replace("CONFIG.JSON", "config.json").replace("TOKENIZER.JSON", "tokenizer.json")
    manifest = read_manifest(manifest_of(tmp_path, f"# a comment\n\n{binary}"))
    assert manifest.files["config.json"] == hashlib.sha256(FILES["config.json"]).hexdigest()


def test_a_manifest_without_weights_needs_only_small(server: FileServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = lines({name: FILES[name] for name in SMALL})
    assert call(server, tmp_path, text=small) == 1
    assert "--only-small" in capsys.readouterr().err
    assert call(server, tmp_path, "--only-small", text=small) == 0


def test_a_revision_of_the_hub_is_an_address_of_its_files() -> None:
    assert prefix_of("org/name@refs/pr/1", "https://hub.example.com/") == "https://hub.example.com/org/name/resolve/refs%2Fpr%2F1/"
    assert fetch.source("org/name@0123abc") == "org/name@0123abc"


def test_an_address_gets_a_slash() -> None:
    assert fetch.source("https://bucket.s3.example.com/model") == "https://bucket.s3.example.com/model/"


@pytest.mark.parametrize(
    "text",
    [
        "org/name",
        "/a/folder",
        "ftp://host/m",
        "file:///etc",
        "https://user:password@host/m",
        "https://host/m?x=1",
        "https://host/m#x",
        "https://",
    ],
)
def test_a_source_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        fetch.source(text)


def test_a_server_that_is_gone_ends_it_with_status_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(FileServer()) as gone:
        pass
    assert call(gone, tmp_path) == 1
    assert capsys.readouterr().err.startswith("triserve fetch: ")
