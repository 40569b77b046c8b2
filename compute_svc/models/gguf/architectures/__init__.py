"""Every architecture of GGUF that is read, one file for those that are alike: its config.json, and how its tensors are made."""
