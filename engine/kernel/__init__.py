"""Thin wrappers, one a syscall or kernel file: OSError out, no policy, no domain types."""
