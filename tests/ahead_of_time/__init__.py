"""Compiles Triton kernels for GPUs that are not there and tells what they would use of one."""
