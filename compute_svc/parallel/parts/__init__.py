"""Which part of a model and its checkpoint is whose, and which part of a step goes through it at a time; pure, knows no process."""
