"""Runs the scheduler on simulated time against a cost model of steps; knows no model, no tensor and no network."""
