"""What a step of the engine costs on a CPU, and where its time goes."""
