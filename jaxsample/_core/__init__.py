"""Passes over logits and their parts. Nothing here imports a public module."""
