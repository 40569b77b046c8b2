"""One module for each group of HTTP routes; reads bodies and shapes answers, and leaves the work to the pipeline."""
