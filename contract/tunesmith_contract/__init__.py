"""What passes between the operator and its images: blocks of the specs, inputs and results of stages (docs/contract.md).

Needs pydantic and nothing else. Every image keeps the copy that it was built with, and an object keeps its image.
"""
