"""What the services cost and carry: real processes, real connections."""
