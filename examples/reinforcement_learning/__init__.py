"""Distilled sets as a start for control: probes of an encoder, and behaviour cloning in rooms that were not seen."""
