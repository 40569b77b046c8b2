"""What the scheduler and the choice of a replica decide, in simulated time and on real engines."""
