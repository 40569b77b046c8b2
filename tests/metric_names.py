"""The metrics that dashboards, alerts and autoscalers may use, by service; that services tell of them is tested against real ones."""

from __future__ import annotations

from collections.abc import Mapping

NAMES: Mapping[str, frozenset[str]] = {
    "gateway": frozenset(
        {
            "triserve_active_requests",
            "triserve_cache_lookups_total",
            "triserve_dns_failures_total",
            "triserve_gateway_loop_lag_seconds",
            "triserve_gateway_open_streams",
            "triserve_gateway_refused_total",
            "triserve_group_ready",
            "triserve_inter_token_latency_seconds",
            "triserve_peer_in_flight",
            "triserve_peer_ready",
            "triserve_prefix_pages",
            "triserve_request_duration_seconds",
            "triserve_requests_total",
            "triserve_retries_total",
            "triserve_time_to_first_token_seconds",
            "vllm:e2e_request_latency_seconds",
            "vllm:inter_token_latency_seconds",
            "vllm:request_success_total",
            "vllm:time_to_first_token_seconds",
        }
    ),
    "tokenizer": frozenset(
        {
            "triserve_tokenizer_encode_seconds",
            "triserve_tokenizer_queued_requests",
            "triserve_tokenizer_queued_seconds",
            "triserve_tokenizer_requests_total",
            "triserve_tokenizer_tokens_total",
        }
    ),
    "sampler": frozenset(
        {
            "triserve_sampler_frame_seconds",
            "triserve_sampler_frames_total",
            "triserve_sampler_oldest_frame_seconds",
            "triserve_sampler_open_requests",
            "triserve_sampler_rows_total",
        }
    ),
    "compute": frozenset(
        {
            "triserve_compute_batch_tokens",
            "triserve_compute_generated_tokens_total",
            "triserve_compute_kv_page_bytes",
            "triserve_compute_kv_pages",
            "triserve_compute_kv_token_bytes",
            "triserve_compute_kv_used_ratio",
            "triserve_compute_preemptions_total",
            "triserve_compute_prefix_hit_tokens_total",
            "triserve_compute_prefix_query_tokens_total",
            "triserve_compute_prompt_tokens_total",
            "triserve_compute_queued_prefill_seconds",
            "triserve_compute_running_requests",
            "triserve_compute_step_seconds",
            "triserve_compute_waiting_requests",
            "vllm:generation_tokens_total",
            "vllm:kv_cache_usage_perc",
            "vllm:num_preemptions_total",
            "vllm:num_requests_running",
            "vllm:num_requests_waiting",
            "vllm:prefix_cache_hits_total",
            "vllm:prefix_cache_queries_total",
            "vllm:prompt_tokens_total",
        }
    ),
}
EVERY_SERVICE = frozenset(
    {"process_cpu_seconds_total", "process_resident_memory_bytes", "triserve_build_info", "triserve_tls_refused_total"}
)
