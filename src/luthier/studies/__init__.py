"""Published claims as runnable experiments, one file a paper."""
