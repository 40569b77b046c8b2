"""Files for TLS are checked as a service starts, in words that name the file and show nothing of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.fakes.certificates import Authority
from triserve.rpc.tls.certificate import BadCertificate, CertificateFiles
from triserve.rpc.tls.choice import client_door_files, stage_files


@pytest.fixture
def files(tmp_path: Path) -> CertificateFiles:
    return Authority(tmp_path).files("gateway")


def test_files_that_fit_are_read_whole(files: CertificateFiles) -> None:
    pem = files.read()
    assert files.ca is not None
    assert pem == (files.cert.read_bytes(), files.key.read_bytes(), files.ca.read_bytes())


@pytest.mark.parametrize("name", ["cert", "key", "ca"])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot be read: No such file"),
        (b"", "holds no "),
        (b"-----BEGIN CERTIFICATE-----\nMII", "holds no "),
        (b"\xff\xfe", "holds no "),
    ],
    ids=["gone", "empty", "half", "binary"],
)
def test_a_file_that_is_none_is_named(files: CertificateFiles, name: str, content: bytes | None, words: str) -> None:
    file = getattr(files, name)
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content)
    with pytest.raises(BadCertificate) as refused:
        files.read()
    assert str(refused.value).startswith(f"{file} {words}")


def test_a_key_of_another_certificate_is_named_with_it(files: CertificateFiles, tmp_path: Path) -> None:
    files.key.write_bytes(Authority(tmp_path).files("gateway").key.read_bytes())
    with pytest.raises(BadCertificate, match=f"{files.key} is not the key of the certificate in {files.cert}"):
        files.read()


def test_a_key_with_a_passphrase_is_refused_and_nobody_is_asked_for_it(files: CertificateFiles) -> None:
    cryptography = pytest.importorskip("cryptography.hazmat.primitives.serialization")
    key = cryptography.load_pem_private_key(files.key.read_bytes(), None)
    encryption = cryptography.BestAvailableEncryption(b"secret")
    files.key.write_bytes(key.private_bytes(cryptography.Encoding.PEM, cryptography.PrivateFormat.PKCS8, encryption))
    with pytest.raises(BadCertificate, match=f"{files.key} has a passphrase"):
        files.read()


def test_without_files_the_stages_speak_plain_text() -> None:
    assert stage_files("X_", cert=None, key=None, ca=None) is None
    assert client_door_files("X_", cert=None, key=None) is None


def test_some_of_the_files_are_not_enough_and_the_missing_variable_is_named(files: CertificateFiles) -> None:
    with pytest.raises(ValueError, match=r"X_TLS_CERT_FILE, X_TLS_KEY_FILE, X_TLS_CA_FILE go together: X_TLS_CA_FILE is not set"):
        stage_files("X_", cert=files.cert, key=files.key, ca=None)
    with pytest.raises(ValueError, match=r"X_TLS_CERT_FILE and X_TLS_KEY_FILE are not set"):
        stage_files("X_", cert=None, key=None, ca=files.ca)
    with pytest.raises(ValueError, match="X_HTTP_TLS_KEY_FILE is not set"):
        client_door_files("X_", cert=files.cert, key=None)


def test_files_that_cannot_be_used_are_named_with_their_variables(files: CertificateFiles) -> None:
    files.key.write_text("no key")
    with pytest.raises(ValueError, match=f"X_HTTP_TLS_CERT_FILE, X_HTTP_TLS_KEY_FILE: {files.key} holds no private key"):
        client_door_files("X_", cert=files.cert, key=files.key)


@pytest.mark.parametrize("service", ["tokenizer", "sampler", "compute", "gateway"])
def test_a_service_ends_at_once_with_a_line_that_names_variable_and_file(service: str, files: CertificateFiles) -> None:
    prefix, model = service.upper(), Path(__file__).parents[3] / "tiny_model"
    files.key.write_text("no key")
    variables = {f"{prefix}_TLS_CERT_FILE": files.cert, f"{prefix}_TLS_KEY_FILE": files.key, f"{prefix}_TLS_CA_FILE": files.ca}
    ended = started(service, {**variables, **({} if service == "gateway" else {f"{prefix}_MODEL": model})})
    assert ended.returncode == 2
    assert f"{prefix}_TLS_KEY_FILE" in ended.stderr and f"{files.key} holds no private key" in ended.stderr


@pytest.mark.parametrize(
    ("service", "variables", "named"),
    [
        ("tokenizer", {"TOKENIZER_LISTEN": "0.0.0.0:0"}, ["TOKENIZER_LISTEN is 0.0.0.0:0"]),
        ("sampler", {"SAMPLER_LISTEN": "[::]:0"}, ["SAMPLER_LISTEN is [::]:0"]),
        (
            "compute",
            {"COMPUTE_LISTEN": "0.0.0.0:0", "COMPUTE_SAMPLERS": "dns:///sampler:7400"},
            ["COMPUTE_LISTEN is 0.0.0.0:0", "COMPUTE_SAMPLERS is dns:///sampler:7400"],
        ),
        (
            "gateway",
            {
                "GATEWAY_LISTEN": "0.0.0.0:0",
                "GATEWAY_TOKENIZERS": "tokenizer:7200",
                "GATEWAY_REDIS_URL": "redis://user:hidden@redis:6379/0",
                "GATEWAY_CACHE_SECRET": "0123456789abcdef-hidden",
            },
            ["GATEWAY_LISTEN is 0.0.0.0:0", "GATEWAY_TOKENIZERS is tokenizer:7200", "GATEWAY_REDIS_URL is redis://redis:6379/0"],
        ),
    ],
    ids=["tokenizer", "sampler", "compute", "gateway"],
)
def test_a_service_that_must_not_speak_plain_text_refuses_to_and_names_all_of_it(
    service: str, variables: dict[str, object], named: list[str]
) -> None:
    prefix, model = service.upper(), Path(__file__).parents[3] / "tiny_model"
    own = {f"{prefix}_REQUIRE_TLS": "true", **({} if service == "gateway" else {f"{prefix}_MODEL": model})}
    ended = started(service, {**variables, **own})
    assert ended.returncode == 2
    assert f"{prefix}_REQUIRE_TLS refuses plain text" in ended.stderr
    assert all(one in ended.stderr for one in named)
    assert "hidden" not in ended.stderr and len(ended.stderr.splitlines()) == 1


def started(service: str, variables: dict[str, object]) -> subprocess.CompletedProcess[str]:
    root = Path(__file__).parents[4]
    environment = {
        "PYTHONPATH": f"{root}:{root / 'protos'}",
        "PATH": "/usr/bin:/bin",
        **{name: str(value) for name, value in variables.items()},
    }
    module = service if service == "gateway" else f"{service}_svc"
    return subprocess.run([sys.executable, "-m", module], env=environment, capture_output=True, text=True, timeout=60, check=False)
