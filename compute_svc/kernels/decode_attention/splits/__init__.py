"""How decode rows are split over a device: from lengths to work items, on the device itself."""
