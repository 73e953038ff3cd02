"""Networks whose features the metrics compare: one file each, and one row of `FEATURES` in network.py."""
