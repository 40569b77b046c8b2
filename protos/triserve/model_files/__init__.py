"""Reads the header of model files that more than one service needs, every byte checked before it is used; knows no tensor library."""
