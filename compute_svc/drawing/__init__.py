"""Draws the tokens of a step's rows on the device of their logits; knows no model, no scheduler and no text."""

from compute_svc.drawing.changes import RowToDraw
from compute_svc.drawing.drawer import Drawer
from compute_svc.drawing.request_draw import RequestDraw
from compute_svc.drawing.results import Drawn, RowLogprobs, RowStatus

__all__ = ["Drawer", "Drawn", "RequestDraw", "RowLogprobs", "RowStatus", "RowToDraw"]
