"""The contract between the stages: schema, generated code and the rpc helpers that two or more services share; knows no service."""
