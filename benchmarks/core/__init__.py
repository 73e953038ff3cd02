"""Measuring, reporting and plotting."""
