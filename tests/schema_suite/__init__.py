"""JSON schemas of many kinds, and answers that are drawn at random under their masks: each that ends is what its schema allows."""
