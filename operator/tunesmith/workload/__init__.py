"""Pods and what is around them: how they are made and how they are read."""
