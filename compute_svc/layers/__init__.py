"""The parts of a decoder layer, built from kernels; knows no checkpoint and no backend."""
