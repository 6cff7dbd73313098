"""Trains a student on a release of `builder`, stage by stage. Reads the release, never the builder."""
