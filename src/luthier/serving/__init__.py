"""Serving: the arms of runs over HTTP, in OpenAI's dialect, by the scheduler and the reader of runs that commands use."""
