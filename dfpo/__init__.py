"""Distributional Value Flow Policy Optimization."""
