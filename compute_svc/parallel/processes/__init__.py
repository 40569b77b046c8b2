"""The processes of one model: the first one starts the others, tells them what to compute and knows when one is lost; knows no weight."""
