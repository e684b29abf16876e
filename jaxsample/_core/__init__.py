"""Passes over logits and what they are made of; imports no public module."""
