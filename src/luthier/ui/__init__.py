"""The web page: five pages over what the commands do. It computes nothing: runs are the command line's own processes."""
