"""The process that speaks to the network: requests in, frames to samplers, parcels to gateways; knows no torch, no model and no KV page."""
