"""Measurements that our claims rest on. Each prints ratios against a reference in the same run: `python -m benchmarks.NAME`."""
