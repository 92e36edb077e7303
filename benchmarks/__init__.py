"""Measurements that take too long for the test suite; `make scaling` runs them."""
