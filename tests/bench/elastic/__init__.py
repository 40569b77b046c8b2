"""Parts of the benchmark of elasticity: pods with a quota, load, and an autoscaler that does what Kubernetes' does."""
