"""Offline commands: tables of a network, what it costs, what the TPU compiler says."""
