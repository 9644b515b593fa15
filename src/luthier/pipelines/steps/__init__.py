"""Steps of the shipped jobs, from files to comparisons; they know kinds of components only."""
