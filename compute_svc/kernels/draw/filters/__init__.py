"""What top_k and top_p leave of a row, found without a sort: between the draw's two kernels."""
