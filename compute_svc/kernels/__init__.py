"""One folder per operation, one public function in each; knows no layer and no request."""

from compute_svc.kernels.exact_products import use_reproducible_mkl

# Before anybody multiplies: MKL looks at its settings once.
use_reproducible_mkl()
