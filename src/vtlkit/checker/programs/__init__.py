"""Small programs with a known answer, for the searches of the checker."""
