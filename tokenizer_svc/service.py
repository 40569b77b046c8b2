"""Brings the tokenize stage up and takes it down."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import logging
import time
from functools import partial
from importlib.metadata import version
from typing import NamedTuple

from tokenizer_svc.chat_encoder import ChatEncoder
from tokenizer_svc.chat_template import ChatTemplate, RenderLimits, TemplateSourceError
from tokenizer_svc.folder_audit import audit_tokenizer
from tokenizer_svc.input_limits import InputLimits
from tokenizer_svc.lanes import Lane, LaneLimits, Lanes
from tokenizer_svc.metrics import Metrics, QueueCollector
from tokenizer_svc.model_folder import ModelFolder, ModelFolderError, read_model_folder
from tokenizer_svc.reasoning_format import reasoning_format
from tokenizer_svc.servicer import TokenizerServicer
from tokenizer_svc.settings import Settings
from tokenizer_svc.system_prompts import SystemPrompts
from tokenizer_svc.tokenizer import Tokenizer, eos_token_ids
from triserve.rpc.fingerprint import fingerprint_of
from triserve.rpc.machine import usable_cores
from triserve.rpc.metrics_server import new_registry
from triserve.rpc.server import Health, ServiceServer
from triserve.rpc.traces.spans import Tracer
from triserve.v1 import tokenizer_pb2 as pb
from triserve.v1 import tokenizer_pb2_grpc

logger = logging.getLogger(__name__)

SERVICE = pb.DESCRIPTOR.services_by_name["TokenizerService"].full_name
_WATCH_INTERVAL_S = 1.0


class TokenizerService:
    """The tokenize stage of one model.

    Args:
        settings: the operator's.
        tracer: records spans; None = nothing is traced.

    Raises:
        ModelFolderError: the model folder cannot be served.
    """

    def __init__(self, settings: Settings, tracer: Tracer | None = None) -> None:
        self._settings = settings
        model = _load(settings)
        for name, chats in (("chat template", model.chats), ("chat template for tools", model.tool_chats)):
            if chats is not None:
                logger.info("%s: %s", name, chats.forms)
        _return_freed_memory()
        self._lanes = _lanes(settings)
        self.registry = new_registry("tokenizer", version("triserve"))
        self.registry.register(QueueCollector(self._lanes))
        self._servicer = TokenizerServicer(
            model.tokenizer,
            model.chats,
            tool_chats=model.tool_chats,
            limits=InputLimits(
                max_bytes=settings.max_input_bytes,
                max_messages=settings.max_messages,
                template_arguments=frozenset(settings.template_allowed_arguments),
            ),
            lanes=self._lanes,
            info=model.info,
            max_requests_per_stream=settings.max_requests_per_stream,
            metrics=Metrics(self.registry),
            tracer=tracer,
        )
        self._server: ServiceServer | None = None
        self._watch: asyncio.Task[None] | None = None

    @property
    def health(self) -> Health:
        """Whether it takes requests, after `start`."""
        assert self._server is not None, "the service was started"
        return self._server.health

    @property
    def port(self) -> int:
        """The port listened on, after `start`."""
        assert self._server is not None, "the service was started"
        return self._server.port

    async def start(self) -> None:
        """Listens, ready."""
        register = partial(tokenizer_pb2_grpc.add_TokenizerServiceServicer_to_server, self._servicer)
        server = ServiceServer([SERVICE], register, self._settings.listen, tls=self._settings.server_tls())
        server.tell(self.registry)
        self._server = server
        await server.start()
        await server.health.set_ready(True)
        self._watch = asyncio.create_task(self._watch_progress(server))
        logger.info("listening on port %d", server.port)

    async def stop(self) -> None:
        """Answers what is under way, for at most `drain_timeout_s`, and takes nothing new."""
        assert self._server is not None and self._watch is not None, "the service was started"
        deadline = time.monotonic() + self._settings.drain_timeout_s
        self._watch.cancel()
        await self._server.leave(has_peers=self._servicer.has_streams)
        self._servicer.leave()
        await self._server.stop(self._settings.drain_timeout_s)
        self._lanes.close()
        if not await asyncio.to_thread(self._lanes.join, max(0.0, deadline - time.monotonic())):
            logger.warning("leaving while an encoding is under way")

    async def _watch_progress(self, server: ServiceServer) -> None:
        """Not ready while work waits and nothing moves: a template that never ends must not keep taking requests."""
        while True:
            await asyncio.sleep(min(_WATCH_INTERVAL_S, self._settings.stall_timeout_s / 4))
            await server.health.set_ready(not self._lanes.stalled(self._settings.stall_timeout_s))


class _Model(NamedTuple):
    tokenizer: Tokenizer
    chats: ChatEncoder | None
    # Of chats with tools; None = as the others.
    tool_chats: ChatEncoder | None
    info: pb.GetTokenizerInfoResponse


def _load(settings: Settings) -> _Model:
    folder = read_model_folder(settings.model)
    template, tool_template = (_template(source, folder, settings) for source in (folder.chat_template, folder.tool_template))
    chats = tool_chats = None
    if template is None:
        tokenizer = Tokenizer(folder)
    else:
        templates = [one for one in (template, tool_template) if one is not None]
        tokenizer = Tokenizer(folder, frames_with=lambda token: any(one.frames_with(token) for one in templates))
        prompts = SystemPrompts(max_entries=settings.system_prompts_entries, max_bytes=settings.system_prompts_bytes)
        chats, *others = (ChatEncoder(one, tokenizer, prompts) for one in templates)
        tool_chats = others[0] if others else None
    info = _info(folder, tokenizer, settings, has_chat_template=chats is not None)
    if template is not None and chats is not None:
        tools = (tool_chats or chats).forms.tools
        info.takes_tools, info.tool_call_format = tools.takes_tools, tools.call_format
        info.reasoning_format = reasoning_format(template.source)
        info.template_arguments.extend(sorted(template.reads.intersection(settings.template_allowed_arguments)))
    for line in audit_tokenizer(folder, tokenizer, template).lines():
        logger.info("%s", line)
    return _Model(tokenizer, chats, tool_chats, info)


def _return_freed_memory() -> None:
    """Gives what loading has freed back to the system: of a large vocabulary it is more than what stays in use."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:  # glibc alone has it
        trim(0)


def _template(source: str | None, folder: ModelFolder, settings: Settings) -> ChatTemplate | None:
    if source is None:
        return None
    try:
        return ChatTemplate(source, folder.special_tokens, limits=RenderLimits(timeout_s=settings.render_timeout_s))
    except TemplateSourceError as error:
        raise ModelFolderError(f"{folder.path}: the chat template has an error on {error}") from error


def _lanes(settings: Settings) -> Lanes:
    threads = settings.threads or usable_cores()
    limits = LaneLimits(threads=threads, max_waiting=settings.max_queued_requests, max_waiting_bytes=settings.max_queued_bytes)
    middle, long = Lane("encode-middle", limits), Lane("encode-long", limits)
    return Lanes(settings.inline_bytes, [(settings.long_bytes, middle), (settings.max_input_bytes, long)])


def _info(folder: ModelFolder, tokenizer: Tokenizer, settings: Settings, *, has_chat_template: bool) -> pb.GetTokenizerInfoResponse:
    try:
        fingerprint = fingerprint_of(folder.path)
    except OSError as error:
        raise ModelFolderError(f"{folder.path} has no fingerprint: {error}") from error
    return pb.GetTokenizerInfoResponse(
        fingerprint=fingerprint,
        vocab_size=tokenizer.vocab_size,
        eos_token_ids=eos_token_ids(tokenizer, folder),
        has_chat_template=has_chat_template,
        default_temperature=folder.defaults.temperature,
        default_top_k=folder.defaults.top_k,
        default_top_p=folder.defaults.top_p,
        default_min_p=folder.defaults.min_p,
        default_typical_p=folder.defaults.typical_p,
        default_repetition_penalty=folder.defaults.repetition_penalty,
        max_input_bytes=settings.max_input_bytes,
        takes_more=True,
        chat_template=folder.chat_template or "",
        tokenizer_class=folder.tokenizer_class,
        special_tokens=[pb.NamedToken(name=name, content=content) for name, content in folder.special_tokens.items()],
        additional_special_tokens=folder.additional_special_tokens,
    )
