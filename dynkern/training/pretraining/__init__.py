"""Training of a small OPT on the task suite's stream, from nothing: recipe, stream, growth, run."""
