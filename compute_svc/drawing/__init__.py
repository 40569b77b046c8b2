"""Draws the tokens of all rows of a step on the device that has their logits, and their log-probabilities; knows no scheduler and no KV."""

from compute_svc.drawing.changes import RowToDraw
from compute_svc.drawing.drawer import Drawer
from compute_svc.drawing.request_draw import RequestDraw
from compute_svc.drawing.results import Drawn, RowLogprobs, RowStatus

__all__ = ["Drawer", "Drawn", "RequestDraw", "RowLogprobs", "RowStatus", "RowToDraw"]
