"""What an operator's variables say of TLS, checked as a service starts."""

from __future__ import annotations

from pathlib import Path

from triserve.rpc.tls.certificate import BadCertificate, CertificateFiles

# A name that a certificate may have, of one process: no wildcard.
DNS_NAME = r"^[A-Za-z0-9_]([A-Za-z0-9_.-]{0,251}[A-Za-z0-9_])?$"


def stage_files(prefix: str, *, cert: Path | None, key: Path | None, ca: Path | None) -> CertificateFiles | None:
    """The files for the connections between stages; None = these are in plain text.

    Args:
        prefix: of the service's variables, such as "GATEWAY_".
        cert: value of TLS_CERT_FILE.
        key: value of TLS_KEY_FILE.
        ca: value of TLS_CA_FILE.

    Raises:
        ValueError: some are set and others not, or they cannot be used; names the variables and the file.
    """
    given = {f"{prefix}TLS_CERT_FILE": cert, f"{prefix}TLS_KEY_FILE": key, f"{prefix}TLS_CA_FILE": ca}
    if _require_all_or_none(given) is None:
        return None
    assert cert is not None and key is not None, "all of them are set"
    return _checked(CertificateFiles(cert=cert, key=key, ca=ca), given)


def client_door_files(prefix: str, *, cert: Path | None, key: Path | None) -> CertificateFiles | None:
    """The files for clients from outside, who show no certificate; as `stage_files`.

    Args:
        prefix: of the service's variables.
        cert: value of HTTP_TLS_CERT_FILE.
        key: value of HTTP_TLS_KEY_FILE.
    """
    given = {f"{prefix}HTTP_TLS_CERT_FILE": cert, f"{prefix}HTTP_TLS_KEY_FILE": key}
    if _require_all_or_none(given) is None:
        return None
    assert cert is not None and key is not None, "both of them are set"
    return _checked(CertificateFiles(cert=cert, key=key), given)


def _require_all_or_none(given: dict[str, Path | None]) -> dict[str, Path | None] | None:
    missing = [variable for variable, file in given.items() if file is None]
    if len(missing) == len(given):
        return None
    if missing:
        raise ValueError(f"{', '.join(given)} go together: {' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not set")
    return given


def _checked(files: CertificateFiles, given: dict[str, Path | None]) -> CertificateFiles:
    try:
        files.read()
    except BadCertificate as error:
        raise ValueError(f"{', '.join(given)}: {error}") from None
    return files
