"""One step: from a plan to a batch, to logits, to tokens; knows no scheduler's reasons and no wire."""
