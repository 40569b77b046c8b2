"""Decoder-only language models, described declaratively; knows no request and no page allocator."""
