"""What the attention kernels share: what they know of a model, queries padded together, pages read on a CPU and with torch's operations."""
