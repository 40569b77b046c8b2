"""Memory of the host: copies to and from a device, the C library's allocator, pages of 2 MiB; knows no kernel."""
