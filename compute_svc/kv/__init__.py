"""Where keys and values live: the tensors, and which pages of them are whose; knows no model."""
