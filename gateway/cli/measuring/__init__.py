"""What `triserve bench` measures with: a workload, its load on a server, times from transcripts, a report; knows no part's inside."""
