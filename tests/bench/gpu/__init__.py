"""What kernels and steps cost on a GPU, beside what its memory and its arithmetic allow; measured where there is one, tried anywhere."""
