"""Trained runs, put to work on files."""
