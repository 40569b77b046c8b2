"""Settings of the compute stage, read from COMPUTE_* and nowhere else."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

from pydantic import DirectoryPath, Field, FilePath, ValidationInfo, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from triserve.rpc.machine import usable_cores
from triserve.rpc.peer_names import parse_peer_names
from triserve.rpc.tls.certificate import CertificateFiles
from triserve.rpc.tls.choice import DNS_NAME, stage_files
from triserve.rpc.tls.loopback import PlainText, require_no_plain_text
from triserve.rpc.traces.choice import OTLP_ENDPOINT, plain_text_to_collector

_ADDRESS = r"^.+:\d{1,5}$"


_DEFAULT_SINKS = 4
_DEFAULT_SPINS = 5000
_WAITING_VARIABLES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


class Settings(BaseSettings):
    """What an operator can set. Each field is COMPUTE_ and its name."""

    model_config = SettingsConfigDict(env_prefix="COMPUTE_", frozen=True)

    listen: str = Field("127.0.0.1:7300", pattern=_ADDRESS, description="Address to listen on, host:port; port 0 picks a free one")
    metrics_listen: str | None = Field(
        None, pattern=_ADDRESS, description="Address of /metrics, /livez and /readyz, host:port, apart from the data port; unset = none"
    )
    vllm_listen: str | None = Field(
        None,
        pattern=_ADDRESS,
        description="Address of vLLM's engine gRPC, host:port, for routers that drive vLLM workers; needs `triserve[vllm-grpc]`; unset = none",
    )
    vllm_model_name: str | None = Field(
        None, min_length=1, max_length=256, description="Name under which those routers find the model; default: the model folder's"
    )
    log_format: Literal["text", "json"] = Field("text", description="Form of the log: lines of text, or a JSON object a line")
    otlp_endpoint: str | None = Field(
        None,
        pattern=OTLP_ENDPOINT,
        description="Collector that traces go to over OTLP/gRPC, http://HOST:PORT, or https:// for TLS; unset = there are no traces",
    )
    tls_cert_file: FilePath | None = Field(
        None, description="Certificate shown to gateways and samplers, PEM; with key and CA, or none of the three; read again when replaced"
    )
    tls_key_file: FilePath | None = Field(None, description="Key of that certificate, without a passphrase")
    tls_ca_file: FilePath | None = Field(None, description="What their certificates are checked against")
    tls_clients: Annotated[tuple[Annotated[str, Field(pattern=DNS_NAME)], ...], NoDecode] = Field(
        ("gateway",), min_length=1, description="DNS names of which a gateway's certificate must have one, separated by commas"
    )
    tls_sampler_name: str = Field(
        "sampler", pattern=DNS_NAME, description="DNS name that a sampler's certificate must have, whatever address was dialled"
    )
    require_tls: bool = Field(False, description="Whether to refuse to start where it listens or connects beyond loopback in plain text")
    name: str = Field("compute", min_length=1, max_length=64, description="Name of the process in the logs of its samplers")
    model: DirectoryPath = Field(description="Folder with config.json, safetensors and tokenizer.json")
    samplers: Annotated[tuple[str, ...], NoDecode] = Field(
        ("127.0.0.1:7400",),
        min_length=1,
        description="Samplers to connect to, separated by commas: host:port, or `dns:///name:port` for one at every A or AAAA record of a name, or"
        " `srv:///name` for one for every SRV record, which are looked up again and again",
    )
    dns_interval_s: float = Field(
        3.0, ge=0.1, le=300, description="Seconds between two lookups of these names; a sampler that is lost is looked for at once"
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="Number format of weights and activations; auto: bfloat16 if the weights are and the device has instructions for it, else float32",
    )
    activations: Literal["auto", "float", "int8"] = Field(
        "auto",
        description="What integer weights are multiplied by: activations rounded to int8, each token by itself, or as they are, with weights made dense on a CPU; "
        "auto: rounded where the checkpoint is made for it, or where native kernels are there for it",
    )
    kv_format: Literal["auto", "float32", "bfloat16", "int8-g8", "int8-g32", "int8-g64", "fp8-g64"] = Field(
        "auto",
        description="What keys and values are stored as: numbers, or codes in groups of 8, 32 or 64 along a head with a float16 scale each; fp8 only on "
        "devices that have it; auto: what the model folder asks for, else what weights and activations are",
    )
    device: str = Field("cpu", pattern=r"^(cpu|cuda(:\d+)?)$", description="Where the model runs: cpu, cuda or cuda:N")
    tensor_parallel: int = Field(
        1,
        ge=1,
        le=64,
        description="Ranks of this machine that compute the model together, each a process with a part of the weights and of the KV heads: on a CPU, or on "
        "CUDA devices from that of COMPUTE_DEVICE on. COMPUTE_KV_CACHE_BYTES is of each rank, COMPUTE_THREADS of all",
    )
    pipeline_parallel: int = Field(
        1,
        ge=1,
        le=64,
        description="Stages of a pipeline, at most as many as layers: each has a run of layers with their KV, and COMPUTE_TENSOR_PARALLEL ranks; steps go "
        "through them in up to so many parts. With more than one there are no CUDA graphs",
    )
    threads: int = Field(
        default_factory=usable_cores,
        ge=1,
        le=1024,
        description="Threads of the CPU backend; default: the cores that affinity and quota grant",
    )
    openmp_spins: int = Field(
        _DEFAULT_SPINS,
        ge=0,
        le=1 << 40,
        description="How often a thread of the CPU backend looks whether the others are done before it sleeps; low where cores are shared. "
        "GOMP_SPINCOUNT and OMP_WAIT_POLICY of the environment go before the default",
    )
    native_kernels: Literal["auto", "off", "required"] = Field(
        "auto",
        description="Whether kernels of our own compute on the CPU, which a C++ compiler builds at the first start where the image has none "
        "built; required: the process ends where they cannot be used; off: torch's own operations compute. Bits of logits may differ",
    )
    triton_kernels: Literal["auto", "off", "required"] = Field(
        "auto",
        description="Whether Triton kernels compute on CUDA devices, which needs Triton; required: the process ends where they cannot be used; "
        "off: torch's own operations compute. Bits of logits may differ",
    )
    cuda_graphs: bool = Field(
        True,
        description="Whether decode steps on CUDA devices are graphs, begun before the host knows the tokens of the step before, where Triton computes",
    )
    batch_invariant: bool = Field(
        False,
        description="Whether a request gets the same bits whatever else is in the batch on CUDA devices, too, at a price in speed; CPUs keep to that anyway. "
        "Needs Triton kernels; prompts and answers are computed by different kernels, so an answer that is computed again as a prompt may differ",
    )
    page_size_tokens: int = Field(16, ge=1, le=256, description="KV page size; tokens per page")
    kv_cache_bytes: int | None = Field(
        None,
        ge=1,
        description="Memory for keys and values, bytes; default: 1 GiB on a CPU, on CUDA what weights and the largest steps leave of COMPUTE_DEVICE_MEMORY_SHARE, "
        "which is measured at the start, and which is the limit of what may be set",
    )
    device_memory_share: float = Field(
        0.9,
        gt=0,
        le=1,
        description="Share of a CUDA device's memory for weights, steps, keys and values and what others have of it; the rest is for what cannot be measured",
    )
    kv_reservation: Literal["pages", "predicted"] = Field(
        "pages",
        description="What a request gets in advance: nothing, or room for its predicted answer in one run of pages, at a cost in prefix hits",
    )
    draw: Literal["device", "service"] = Field(
        "device",
        description="Where tokens are drawn that are not simply the likeliest: with the logits, or in the samplers, which then get whole "
        "rows while their requests wait",
    )
    audited_share: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Share of the rows drawn here that a sampler draws again, to compare; a disagreement is a fault and logged",
    )
    policy: Literal["fcfs", "priority", "shortest-first", "multi-level", "longest-prefix", "fair-tenants"] = Field(
        "fcfs", description="Who is served first (compute_svc/scheduler/policies); `priority` alone looks at the priorities clients ask for"
    )
    max_model_len_tokens: int | None = Field(None, ge=2, description="Most tokens of prompt and answer together; default: the model's")
    streaming_window_tokens: int | None = Field(
        None,
        ge=1,
        description="Most tokens a token sees, itself included, besides the sinks; longer requests are answered otherwise; unset = all",
    )
    streaming_sinks: int | None = Field(
        None, ge=1, le=32, description="First tokens of a request that every token sees beside streaming_window_tokens; default: 4"
    )
    step_budget_tokens: int = Field(512, ge=1, le=1 << 17, description="Most tokens computed in one step")
    max_running_requests: int = Field(
        256, ge=1, le=4096, validate_default=True, description="Most requests in the batch; at most step_budget_tokens"
    )
    max_waiting_requests: int = Field(1024, ge=1, le=1 << 20, description="Most requests that wait for the batch; one more is refused")
    max_unanswered_frames: int = Field(64, ge=1, le=4096, description="Frames a sampler may leave unanswered before its requests pause")
    sampler_timeout_s: float = Field(10.0, gt=0, le=3600, description="A sampler that leaves a frame unanswered for so long is lost")
    max_backlog_bytes: int = Field(
        16 << 20, ge=1 << 20, le=32 << 20, description="Most bytes that wait for a gateway that does not read; then it is cut off"
    )
    stall_timeout_s: float = Field(30.0, gt=0, le=3600, description="Not ready after a step that takes longer than this")
    freeze_timeout_s: float = Field(
        10.0,
        gt=0,
        le=86400,
        description="The process ends when its engine neither answers nor uses the processor for so long, ten times as long while it loads",
    )
    step_timeout_s: float = Field(600.0, gt=0, le=86400, description="The process ends when a step takes longer than this")
    drain_timeout_s: float = Field(30.0, ge=0, le=3600, description="Most seconds for requests under way when the process is told to stop")

    @property
    def num_sinks(self) -> int:
        """First tokens of a request that every token sees; 0 without a streaming window."""
        if self.streaming_window_tokens is None:
            return 0
        return _DEFAULT_SINKS if self.streaming_sinks is None else self.streaming_sinks

    @property
    def num_ranks(self) -> int:
        """Processes that compute the model together."""
        return self.tensor_parallel * self.pipeline_parallel

    @property
    def threads_per_rank(self) -> int:
        """Threads of one process of the CPU backend."""
        return max(1, self.threads // self.num_ranks)

    def engine_environment(self) -> dict[str, str]:
        """Of the engine's process: this process's own, how OpenMP's threads wait, which is read when torch is loaded, and where ranks meet."""
        own = dict(os.environ)
        if self.num_ranks > 1 and sys.platform == "linux":
            # They are all of this machine, and nobody else is to reach them.
            own = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo", **own}
        if "openmp_spins" not in self.model_fields_set and any(name in own for name in _WAITING_VARIABLES):
            return own
        return {**own, "GOMP_SPINCOUNT": str(self.openmp_spins)}

    def computation(self, dtype: str, kv_format: str, kernels: str) -> str:
        """What bears on the bits of logits besides the weights: replicas that differ in it do not serve together.

        Args:
            dtype: What the engine computes in.
            kv_format: What it stores keys and values as.
            kernels: Which it has, where others round otherwise.
        """
        kv = "" if kv_format == dtype else f", KV {kv_format}"
        window = "" if self.streaming_window_tokens is None else f", window {self.streaming_window_tokens} and {self.num_sinks} sinks"
        return f"{dtype} on {self.device.partition(':')[0]}{kernels and f', {kernels}'}{kv}{window}"

    @field_validator("samplers", "tls_clients", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("samplers")
    @classmethod
    def _are_addresses(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        parse_peer_names(value)
        return value

    @field_validator("model")
    @classmethod
    def _require_files(cls, value: Path) -> Path:
        for name in ("config.json", "tokenizer.json"):
            if not (value / name).is_file():
                raise ValueError(f"the folder has no {name}")
        return value

    @field_validator("vllm_listen")
    @classmethod
    def _require_vllms_messages(cls, value: str | None) -> str | None:
        if value is not None and find_spec("smg_grpc_proto") is None:
            raise ValueError("smg-grpc-proto is not installed: pip install 'triserve[vllm-grpc]'")
        return value

    @field_validator("streaming_sinks")
    @classmethod
    def _require_a_window(cls, value: int | None, info: ValidationInfo) -> int | None:
        # A window that was refused is not in the data.
        if value is not None and info.data.get("streaming_window_tokens", value) is None:
            raise ValueError("there are no sinks without streaming_window_tokens")
        return value

    @field_validator("max_running_requests")
    @classmethod
    def _require_a_row_for_each(cls, value: int, info: ValidationInfo) -> int:
        budget = info.data.get("step_budget_tokens", value)
        if value > budget:
            raise ValueError(f"the limit is step_budget_tokens, {budget}")
        return value

    @model_validator(mode="after")
    def _keeps_plain_text_on_this_machine(self) -> Settings:
        files = self.tls_files()
        if self.require_tls:
            listens = [
                ("COMPUTE_LISTEN", self.listen),
                *([("COMPUTE_VLLM_LISTEN", self.vllm_listen)] if self.vllm_listen is not None else []),
            ]
            ways = [*listens, *(("COMPUTE_SAMPLERS", target) for target in self.samplers)] if files is None else []
            between_stages = [PlainText(*way, "COMPUTE_TLS_CERT_FILE") for way in ways]
            require_no_plain_text("COMPUTE_REQUIRE_TLS", [*between_stages, *plain_text_to_collector("COMPUTE_", self.otlp_endpoint)])
        return self

    def tls_files(self) -> CertificateFiles | None:
        """For the connections to gateways and samplers; None = plain text.

        Raises:
            ValueError: they cannot be used; names them.
        """
        return stage_files("COMPUTE_", cert=self.tls_cert_file, key=self.tls_key_file, ca=self.tls_ca_file)
