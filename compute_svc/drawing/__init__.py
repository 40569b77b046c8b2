"""Draws the tokens of all rows of a step on the device that has their logits, and their log-probabilities; knows no scheduler and no KV."""

from compute_svc.drawing.changes import RowToDraw
from compute_svc.drawing.direct import DirectDraws, DrawInto
from compute_svc.drawing.drawer import Drawer, OnTokens
from compute_svc.drawing.request_draw import RequestDraw
from compute_svc.drawing.results import Drawn, RowLogprobs, RowStatus

__all__ = ["DirectDraws", "DrawInto", "Drawer", "Drawn", "OnTokens", "RequestDraw", "RowLogprobs", "RowStatus", "RowToDraw"]
