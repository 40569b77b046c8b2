"""What attention kernels share: sizes of a model, padded queries, pages read on CPUs and with torch's operations, splits; knows no request."""
