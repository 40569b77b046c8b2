"""`triserve pin`: computes a system prompt on compute replicas and keeps it in their prefix caches, so that no chat waits for it."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from typing import Any

import grpc

from gateway.auth import DEFAULT_TENANT
from gateway.cli.api import ApiClient, ApiError
from gateway.cli.chat import add_server_arguments
from gateway.cli.options import certificates_file, host_port, readable_file, real
from triserve.rpc.channel import open_channel
from triserve.rpc.tls.certificate import BadCertificate, CertificateFiles
from triserve.rpc.tls.ends import ClientTls, OwnCertificate
from triserve.v1 import compute_pb2, compute_pb2_grpc


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    add_server_arguments(parser)
    prompt = parser.add_mutually_exclusive_group(required=True)
    prompt.add_argument("--system", metavar="TEXT", help="the system prompt")
    prompt.add_argument("--system-file", metavar="FILE", type=readable_file, help="a file that holds it, in UTF-8")
    parser.add_argument(
        "--compute",
        type=host_port,
        metavar="HOST:PORT",
        action="append",
        required=True,
        help="a compute replica; give it once for each of them",
    )
    for name, read, what in (
        ("cert", certificates_file, "certificate shown to replicas that ask for one: of a name that COMPUTE_TLS_CLIENTS has"),
        ("key", readable_file, "its key"),
        ("ca", certificates_file, "what their certificates are checked against"),
    ):
        parser.add_argument(f"--compute-{name}", metavar="FILE", type=read, help=what)
    parser.add_argument("--compute-name", metavar="NAME", default="compute", help="DNS name of their certificates (default: %(default)s)")
    parser.add_argument(
        "--tenant", default=DEFAULT_TENANT, help="whose chats these are: prefixes are shared within a tenant alone (default: %(default)s)"
    )
    parser.add_argument("--timeout", metavar="SECONDS", type=real(above=0), default=60.0, help="for each replica (default: %(default)s)")
    parser.add_argument("--unpin", action="store_true", help="let it go again")


def run(arguments: argparse.Namespace) -> int:
    """Pins; returns the exit status: 0 if every replica has done it."""
    try:
        text = arguments.system if arguments.system_file is None else arguments.system_file.read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        sys.stderr.write(f"triserve pin: argument --system-file: {arguments.system_file} cannot be read: {error}\n")
        return 1
    try:
        tls = _compute_tls(arguments)
    except ValueError as error:
        sys.stderr.write(f"triserve pin: {error}\n")
        return 1
    try:
        return asyncio.run(_run(arguments, text, tls))
    except ApiError as error:
        sys.stderr.write(f"triserve pin: {error}\n")
        return 1
    except KeyboardInterrupt:
        return 130


def _compute_tls(arguments: argparse.Namespace) -> ClientTls | None:
    """This end of the connections to replicas; None = plain text.

    Raises:
        ValueError: some of the files are given and others not, or they do not fit together.
    """
    given = (arguments.compute_cert, arguments.compute_key, arguments.compute_ca)
    if given == (None, None, None):
        return None
    if None in given:
        raise ValueError("--compute-cert, --compute-key and --compute-ca go together")
    try:
        own = OwnCertificate(CertificateFiles(cert=given[0], key=given[1], ca=given[2]))
    except BadCertificate as error:
        raise ValueError(str(error)) from None
    return ClientTls(own, arguments.compute_name)


async def _run(arguments: argparse.Namespace, text: str, tls: ClientTls | None) -> int:
    async with ApiClient(arguments.url, api_key=arguments.api_key, ca=arguments.ca) as client:
        ids = await client.system_prompt_ids(text)
    done = await asyncio.gather(*(_ask(target, ids, arguments, tls) for target in arguments.compute))
    return 0 if all(done) else 1


async def _ask(target: str, ids: Sequence[int], arguments: argparse.Namespace, tls: ClientTls | None) -> bool:
    """Has one replica pin or unpin, and says what came of it."""
    async with open_channel(target, tls) as channel:
        stub: Any = compute_pb2_grpc.PrefixCacheServiceStub(channel)
        try:
            if arguments.unpin:
                unpin = compute_pb2.UnpinPrefixRequest(tenant=arguments.tenant, token_ids=ids)
                found = (await stub.UnpinPrefix(unpin, timeout=arguments.timeout)).was_pinned
                print(f"{target}: {'unpinned' if found else 'was not pinned'}")
                return True
            pin = compute_pb2.PinPrefixRequest(tenant=arguments.tenant, token_ids=ids)
            answer = await stub.PinPrefix(pin, timeout=arguments.timeout)
        except grpc.aio.AioRpcError as error:
            sys.stderr.write(f"triserve pin: {target}: {error.details()}\n")
            return False
    print(f"{target}: {answer.pinned_tokens} of {len(ids)} tokens pinned, {answer.computed_tokens} of them computed")
    return True
