"""Comparisons with other libraries and with the paper."""
