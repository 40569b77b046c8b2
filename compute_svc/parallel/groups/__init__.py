"""Ranks as layers and stages see them: sums over a stage's, hidden states from stage to stage; knows no batch and no request."""
