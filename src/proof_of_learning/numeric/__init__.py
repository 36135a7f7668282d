"""Arithmetic: what a number is made of, below tasks and sessions."""
