"""Distilled sets as a start for generative models: a VAE whose encoder was pre-trained, and a flow that was aligned."""
