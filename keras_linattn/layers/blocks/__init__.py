"""Transformer blocks: encoder, decoder, and groups of decoder blocks."""
