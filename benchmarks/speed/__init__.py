"""Each operation beside the floor: the least that does the same, measured in the same run."""
