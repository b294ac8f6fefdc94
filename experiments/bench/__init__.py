"""Speed, as ratios against code that does the same: `make bench`."""
