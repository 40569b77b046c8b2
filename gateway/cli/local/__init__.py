"""What `triserve up` runs on one machine: the parts, their processes, ports and readiness; knows no request."""
